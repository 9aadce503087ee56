"""Every number among the settings has a range beside it, and what lies outside is refused by its name."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

import distill3d
from distill3d import cli
from distill3d.detectors.monodle import MonoDLEConfig
from distill3d.errors import UserError
from distill3d.layers.heads.anchors import AnchorClass
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.recipes import RECIPES, get_recipe
from distill3d.settings import (
    Ascending,
    Between,
    Count,
    Share,
    check_settings,
    fingerprint,
    from_plain,
    hints_of,
    members_of,
    to_plain,
)
from distill3d.synth.settings import StreetConfig, SurroundStreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.schedules import Schedule

ENDINGS = ("Config", "Options", "Settings", "Schedule", "Conditions")

# ------------------------------------------------------------------------------------------------------ which there are


class Found(Exception):
    """Carries what a command parses."""


def command_options() -> list[type]:
    """The options of every command, as the command line builds them."""
    kinds = []

    def catch(kind: type, *_: Any) -> None:
        raise Found(kind)

    calls = [(run, ["demo"] if name == "train" else []) for name, run in cli.COMMANDS.items() if name != "eval"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "parse", catch)
        for run, arguments in [*calls, *((run, []) for run in cli.EVALUATIONS.values())]:
            with pytest.raises(Found) as found:
                run(arguments)
            kinds.append(found.value.args[0])
    return kinds


def settings_classes() -> list[type]:
    """All dataclasses of settings: by name, or a part of those or of a command's options."""
    found: dict[type, None] = {}

    def add(kind: type) -> None:
        if kind not in found:
            found[kind] = None
            for hint in hints_of(kind).values():
                for part in parts_of(hint):
                    if isinstance(part, type) and dataclasses.is_dataclass(part):
                        add(part)

    for module in pkgutil.walk_packages(distill3d.__path__, "distill3d."):
        if module.name != "distill3d.__main__":
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and dataclasses.is_dataclass(value) and value.__name__.endswith(ENDINGS):
                    add(value)
    for kind in command_options():
        add(kind)
    return list(found)


def parts_of(hint: Any) -> Iterator[Any]:
    """A hint and all that it is made of, down to plain types."""
    yield hint
    if typing.get_origin(hint) is not Literal:
        for part in typing.get_args(hint):
            yield from parts_of(part)


def numbers_in(hint: Any, around: Between | None = None) -> Iterator[tuple[type, Between | None]]:
    """The plain numbers of a hint, each with the range that stands with it or with the tuple that holds it."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        yield from numbers_in(inner, next((e for e in extras if isinstance(e, Between)), around))
    elif hint in (int, float):
        yield hint, around
    elif typing.get_origin(hint) is not Literal:
        for part in typing.get_args(hint):
            yield from numbers_in(part, around)


CLASSES = settings_classes()
NUMBERS = [
    (kind, name, plain, between)
    for kind in CLASSES
    for name, hint in hints_of(kind).items()
    for plain, between in numbers_in(hint)
]


def test_all_are_found() -> None:
    assert {
        Recipe,
        RunOptions,
        Schedule,
        MonoDLEConfig,
        StreetConfig,
        SurroundStreetConfig,
        VoxelGrid,
        AnchorClass,
    } <= {*CLASSES}
    assert len(NUMBERS) > 250


def filled(hint: Any, value: Any) -> Any:
    """What a hint asks for, with ``value`` in place of its numbers."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return filled(parts[0], value)
    if origin is tuple:
        return (filled(parts[0], value),) if parts[-1] is Ellipsis else tuple(filled(part, value) for part in parts)
    if origin is dict:
        return {"x": filled(parts[1], value)}
    if len(members_of(hint)) > 1:
        return filled(next(part for part in parts if any(True for _ in numbers_in(part))), value)
    return value if hint in (int, float) else "x"


def outside(plain: type, between: Between) -> list[Any]:
    """Values that are no such number, or just outside the range."""
    values: list[Any] = [math.nan, -math.inf, True, "1"]
    if plain is int:
        values += [between.least - 1, between.most + 1, between.least + 0.5]
        return values + ([between.least + 1] if between.multiple_of > 1 else [])
    values.append(between.least if between.above else math.nextafter(between.least, -math.inf))
    if between.most < math.inf:
        values += [between.most if between.below else math.nextafter(between.most, math.inf), math.inf]
    return values


@pytest.mark.parametrize(
    ("kind", "name", "plain", "between"), NUMBERS, ids=[f"{k.__name__}-{name}" for k, name, _, _ in NUMBERS]
)
def test_every_number_has_a_range_and_stays_in_it(kind: type, name: str, plain: type, between: Between | None) -> None:
    assert between is not None, f"{kind.__name__}.{name} has no range"
    hint = hints_of(kind)[name]
    one = dataclasses.make_dataclass("One", [(name, hint)])
    for value in outside(plain, between):
        with pytest.raises(UserError, match=rf"^here: {name}[.\w]* is .*, expected an? (integer|number) (from|above) "):
            check_settings(one(filled(hint, value)), "here")
    inside = between.least + between.multiple_of if plain is int else (between.least + min(between.most, 1e9)) / 2
    check_settings(one(filled(hint, inside)))


# ---------------------------------------------------------------------------------------------------------- how it says


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes_are_sound(name: str) -> None:
    check_settings(get_recipe(name))


def changed(value: Any, **fields: Any) -> Any:
    """``replace`` without the checks of types that are on in tests."""
    value = copy.copy(value)
    for name, field in fields.items():
        object.__setattr__(value, name, field)
    return value


def recipe_with(where: str, value: Any) -> Recipe:
    """A recipe with one setting of it, or of a part of its baseline, changed."""
    recipe = get_recipe("tiny_monodle")
    part, _, name = where.rpartition(".")
    if part in ("", "dataset", "evaluation"):
        within = changed(getattr(recipe, part or "seed") if part else recipe, **{name: value})
        return changed(recipe, **{part: within}) if part else within
    baseline = recipe.stage("baseline")
    within = changed(getattr(baseline, part), **{name: value})
    return changed(recipe, stages=(changed(baseline, **{part: within}),))


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        ("schedule.epochs", 0, "stages.baseline.schedule.epochs is 0, expected an integer from 1 to 100000"),
        ("schedule.ema", 2, "stages.baseline.schedule.ema is 2, expected a number from 0 and below 1 or none"),
        ("schedule.lr", math.nan, "stages.baseline.schedule.lr is nan, expected a number above 0 and at most 100"),
        ("schedule.betas", (2, 0.9), "stages.baseline.schedule.betas.0 is 2, expected a number from 0 and below 1"),
        ("schedule.betas", 0.9, "stages.baseline.schedule.betas is 0.9, expected a list of 2"),
        ("schedule.weight_decay", -1, "stages.baseline.schedule.weight_decay is -1, expected a number from 0 to 100"),
        (
            "schedule.start_divisor", 0,
            "stages.baseline.schedule.start_divisor is 0, expected a number above 0 and at most 1e+09",
        ),
        (
            "schedule.optimiser", "sgd",
            "stages.baseline.schedule.optimiser is 'sgd', expected one of 'adam', 'adamw'",
        ),
        ("schedule.drop_last", 1, "stages.baseline.schedule.drop_last is 1, expected true or false"),
        (
            "detector.head_channels", 0,
            "stages.baseline.detector.head_channels is 0, expected an integer from 1 to 16384",
        ),
        ("evaluation.every", 0, "evaluation.every is 0, expected an integer from 1 to 1000000"),
        ("evaluation.batch_size", 0, "evaluation.batch_size is 0, expected an integer from 1 to 65536"),
        ("dataset.canvas", (320, 100),
         "dataset.canvas.1 is 100, expected an integer from 32 to 16384, a multiple of 32"),
        ("dataset.root", "x", "dataset.root is 'x', expected a path (pathlib.Path) or none"),
        ("dataset", None, "dataset is None, expected a DatasetConfig or a SurroundDatasetConfig"),
        ("stages", [], "stages is [], expected a list"),
        ("seed", 2**64, f"seed is {2**64}, expected an integer from {-(2**62)} to {2**62}"),
    ],
)  # fmt: skip
def test_settings_are_named_as_the_command_line_spells_them(where: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check_settings(recipe_with(where, value))
    assert str(error.value) == sentence


COMMAND_LINES = [
    ("train tiny_monodle --stages.baseline.schedule.epochs -3", "stages.baseline.schedule.epochs is -3"),
    ("train tiny_monodle --workers 999999999999", "workers is 999999999999"),
    ("train tiny_monodle --accelerator tpu", "invalid choice 'tpu'"),
    ("synth x --street.camera-height nan", "street.camera_height is nan"),
    ("synth x --drive.lidar-rate inf", "drive.lidar_rate is inf"),
    ("synth x --street.width 99999999", "street.width is 99999999"),
    ("synth x --street.width 4096 --street.height 4096", "ask for 67108864 rays"),
    ("synth x --frames 0", "frames is 0"),
    ("synth x --workers -1", "workers is -1"),
    ("report x --gallery -1", "gallery is -1"),
]


@pytest.mark.parametrize(("line", "sentence"), COMMAND_LINES, ids=[line for line, _ in COMMAND_LINES])
def test_commands_refuse_them(
    line: str, sentence: str, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_writers_refuse_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="noise.1 is 100"):
        write_kitti(tmp_path / "a", frames=1, seed=0, config=StreetConfig(noise=(0.0, 100.0)))
    with pytest.raises(UserError, match="seed is -1"):
        write_kitti(tmp_path / "a", frames=1, seed=-1)
    with pytest.raises(UserError, match="val: height is 0"):
        write_kitti(tmp_path / "a", splits={"val": 1}, seed=0, configs={"val": StreetConfig(height=0)})
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------------- plain data


@dataclass(frozen=True)
class Inner:
    share: Share = 0.5
    pairs: tuple[tuple[str, Count], ...] = ()


@dataclass(frozen=True)
class Outer:
    needed: Count
    inner: Inner | None = None
    where: Path | None = None
    span: Annotated[tuple[float, float], Between(0, 1), Ascending()] = (0.0, 1.0)
    by_name: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def test_plain_data_comes_back() -> None:
    value = Outer(3, Inner(0.25, (("a", 1), ("b", 2))), Path("x"), (0.25, 0.5), {"a": ("b", "c")})
    assert from_plain(Outer, to_plain(value), "card") == value


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "card: is [], expected the settings of a Outer"),
        ({"needed": 1, "other": 2}, "card: unknown setting 'other', Outer has needed, inner, where, span, by_name"),
        ({}, "card: Outer lacks its setting 'needed'"),
        ({"needed": "1"}, "card: needed is '1', expected an integer from 0 to 1000000"),
        ({"needed": 1, "inner": {"share": 2}}, "card: inner.share is 2, expected a number from 0 to 1"),
        ({"needed": 1, "inner": 5}, "card: inner is 5, expected an Inner or none"),
        (
            {"needed": 1, "inner": {"pairs": [["a", -1]]}},
            "card: inner.pairs.0.1 is -1, expected an integer from 0 to 1000000",
        ),
        ({"needed": 1, "inner": {"pairs": [["a"]]}}, "card: inner.pairs.0 is ('a',), expected a list of 2"),
        ({"needed": 1, "span": [1, 0]}, "card: span is (1, 0), expected two numbers in ascending order"),
        ({"needed": 1, "by_name": {"a": 1}}, "card: by_name.a is 1, expected a list"),
    ],
)
def test_plain_data_that_does_not_fit(data: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        from_plain(Outer, data, "card")
    assert str(error.value) == sentence


def test_fingerprints_know_added_settings_that_are_not_at_their_default() -> None:
    dataset = get_recipe("demo").dataset
    assert "scan_columns" in to_plain(dataset)
    assert len({fingerprint(replace(dataset, scan_columns=columns)) for columns in (4, 5, 6)}) == 3


def test_ranges_leave_fingerprints_alone() -> None:
    """Runs that were begun before settings had ranges go on."""
    assert fingerprint(Schedule()) == "8830796a1ddfb6bf"
    assert fingerprint([get_recipe("demo"), get_recipe("tiny_monodle")]) == "53c5abdca1b5efaf"
