"""Running a recipe: its stages in order, finished ones skipped, the interrupted one taken up."""

from __future__ import annotations

import atexit
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill3d.errors import UserError
from distill3d.files import folder_name, read_text, read_yaml, sweep_below
from distill3d.lock import LOCK, forget_dead_writer, only_writer
from distill3d.picture import canvas_side
from distill3d.settings import check_settings, from_plain
from distill3d.train import changes
from distill3d.train.card import CARD, RECIPE, read_card, require
from distill3d.train.checkpoint import (
    PREVIOUS,
    STATE,
    WEIGHTS,
    last_state,
    load_detector,
    load_weights,
    save_weights,
    weights_file,
    weights_sum,
)
from distill3d.train.classes import with_classes
from distill3d.train.evaluation import EVALUATION, PREDICTIONS
from distill3d.train.loggers import CSV
from distill3d.train.loop import CONFIG, METRICS, RunOptions, train_stage, write_settings
from distill3d.train.memory import keep_freed_memory
from distill3d.train.preflight import check_recipe
from distill3d.train.recipe import DatasetConfig, Recipe, StageConfig, SurroundDatasetConfig
from distill3d.train.rigs import refuse_other_rig
from distill3d.train.sources import source_of
from distill3d.train.teachers import refuse_overlap

if TYPE_CHECKING:  # importing it takes a second, which help texts and checks need not wait for
    from lightning_fabric import Fabric

#: The ego frame that is not the vehicle's.
SENSOR_FRAME = "lidar_sensor"
#: What a training writes into its stage's folder, the settings last.
STAGE_FILES = (METRICS, CSV, STATE, PREVIOUS, WEIGHTS, CARD, EVALUATION, PREDICTIONS, CONFIG)
#: The settings that ours begin with, by which they are told from other files of these names.
BEGINS = {RECIPE: ("name", "stages", "dataset"), CONFIG: ("name", "role", "detector")}


def run_recipe(recipe: Recipe, options: RunOptions, only: tuple[str, ...] = ()) -> Path:
    """Trains the stages of a recipe under ``<out>/<recipe>/<stage>`` and returns the run's folder.

    Finished stages are skipped, an interrupted one continues from its last state.  ``only`` names the stages to train;
    those that they need must be finished.  What is refused leaves the folder as it was.

    Raises:
        UserError: a setting lies outside its range, ``check_recipe`` finds a fault, a stage was begun or finished with
            other settings, one that is needed is not finished, another process trains the same stage, or files that are
            not of a training stand where it would write.
    """
    check_settings(recipe)
    check_settings(options)
    folder = options.out / folder_name(recipe.name, "the recipe's name")
    for stage in recipe.stages:
        folder_name(stage.name, "a stage's name")
    recipe = with_classes(with_taken(recipe, folder))
    chosen = [recipe.stage(name) for name in only] if only else _wanted(recipe)
    unfinished = []
    for stage in chosen:
        if is_finished(recipe, stage, folder):
            _tidy(folder / stage.name)
        else:
            unfinished.append(stage)
    for stage in unfinished:
        _refuse_unmet(recipe, stage, folder, [other.name for other in unfinished])
        _refuse_begun_otherwise(recipe, stage, folder)
    refuse_others_files(folder, unfinished)
    check_recipe(recipe, [stage for stage in unfinished if stage.taken_from is None], options)
    _check_taken(recipe, _taken_for(recipe, unfinished), folder, options)
    fabric = launch(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for stage in unfinished:
        with _alone(folder / stage.name, fabric):
            if is_finished(recipe, stage, folder):  # another process may have done so
                continue
            if stage.taken_from is None:
                train_stage(recipe, stage, folder / stage.name, options, fabric)
            elif fabric.global_rank == 0:
                _take(recipe, stage, stage.taken_from, folder / stage.name)
            fabric.barrier()
    return folder


def _wanted(recipe: Recipe) -> list[StageConfig]:
    """All stages but those that were to prepare for stages from elsewhere alone."""
    finished = {stage.name for stage in recipe.stages if stage.taken_from is not None}
    wanted: list[StageConfig] = []
    for stage in reversed(recipe.stages):
        later = {other.name for other in recipe.stages if stage.name in other.needs}
        if not later or later - finished:
            wanted.append(stage)
        else:
            finished.add(stage.name)
    return wanted[::-1]


def with_taken(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe, with the detectors that its stages taken from elsewhere really are; those that were taken into the
    run's folder already are read there, wherever their sources are by now.

    Raises:
        UserError: one of them is no finished stage, or sees the ground in another frame than the recipe gives it.
    """
    stages = []
    for stage in recipe.stages:
        if stage.taken_from is not None:
            source = _at_hand(stage.taken_from, folder / stage.name)
            detector, card = load_detector(source)
            require(card, stage.taken_from, "trained_on.frames")
            _refuse_other_frame(recipe, card, stage.taken_from)
            if isinstance(recipe.dataset, SurroundDatasetConfig):
                refuse_other_rig(stage.taken_from, detector.config, card, recipe.dataset.cameras)
            moved = source != stage.taken_from
            origin = card.get("taken_from", {}) if moved else {"sha256": weights_sum(source)}
            stage = replace(stage, detector=detector.config, taken_sha256=origin.get("sha256"))
        stages.append(stage)
    return replace(recipe, stages=tuple(stages))


def _at_hand(source: Path, taken: Path) -> Path:
    """Where a stage from elsewhere is read: at its source or, where that has gone, where it was taken to."""
    return taken if not weights_file(source).exists() and (taken / CARD).exists() else source


def _taken_for(recipe: Recipe, unfinished: list[StageConfig]) -> list[StageConfig]:
    """The stages from elsewhere among those that are to be done, and those that they stand on."""
    names = {name for stage in unfinished for name in (stage.name, *stage.needs)}
    return [stage for stage in recipe.stages if stage.taken_from is not None and stage.name in names]


def _check_taken(recipe: Recipe, taken: list[StageConfig], folder: Path, options: RunOptions) -> None:
    """Refuses finished stages from elsewhere that saw the evaluation's frames, before any file is written; warns of
    those that saw pictures of another size."""
    source = source_of(recipe)
    for stage in taken:
        assert stage.taken_from is not None
        _, card = load_weights(_at_hand(stage.taken_from, folder / stage.name))
        data = source.evaluation(stage, recipe.dataset.eval_split)
        refuse_overlap(card, str(stage.taken_from), recipe.dataset.identity, data.frame_ids, options.allow_overlap,
                       source.mapping, source.scenes(data))  # fmt: skip
        canvas, seen = recipe.dataset.canvas, tuple(card.get("canvas", recipe.dataset.canvas))
        known = seen
        if isinstance(recipe.dataset, DatasetConfig):  # rows more or less are new to no detector, another scale is
            known = (seen[0], canvas_side(canvas[1] * seen[0] / canvas[0]))
        if known != canvas and stage.detector.input not in ("points", "labels"):
            print(
                "warning: {} was trained on a canvas of {} x {} px, the recipe's is {} x {}: --dataset.canvas {} {} "
                "shows it what it knows".format(stage.taken_from, *seen, *canvas, *known),
                file=sys.stderr,
            )


def _refuse_other_frame(recipe: Recipe, card: dict[str, Any], source: Path) -> None:
    seen = other_frame(recipe, card)
    if seen is not None:
        raise UserError(
            f"{source}: was trained in the ego frame {seen[0]!r}, the recipe gives {seen[1]!r}: "
            f"add --dataset.ego-frame {seen[0]}"
        )


def other_frame(recipe: Recipe, card: dict[str, Any]) -> tuple[str, str] | None:
    """The ego frames of a card and of a recipe, if one is the vehicle's and one the LiDAR's own: a quarter turn and
    1.8 m lie between them."""
    if not isinstance(recipe.dataset, SurroundDatasetConfig):
        return None
    frames = card.get("ego_frame", SurroundDatasetConfig.ego_frame), recipe.dataset.ego_frame
    return frames if frames[0] != frames[1] and SENSOR_FRAME in frames else None


def _take(recipe: Recipe, stage: StageConfig, source: Path, folder: Path) -> None:
    """Puts a finished stage from elsewhere in a stage's folder, its card saying where it is from."""
    weights, card = load_weights(source)
    origin = {name: card[name] for name in ("recipe", "stage") if name in card}
    card |= {"recipe": recipe.name, "stage": stage.name, "role": stage.role,
             "fingerprint": recipe.stage_fingerprint(stage),
             "taken_from": {**origin, "folder": str(weights_file(source).parent.resolve()),
                            "sha256": stage.taken_sha256}}  # fmt: skip
    write_settings(recipe, stage, folder)
    save_weights(folder, weights, card)


def data_of(run: Path, surround: bool) -> DatasetConfig | SurroundDatasetConfig:
    """The data settings of the recipe that a finished stage is of; ``run`` is its folder or a file in it, ``surround``
    whether it looks at surround views.

    Raises:
        UserError: the recipe does not lie where training wrote it, or is none.
    """
    stage = run if run.is_dir() else run.parent
    path = stage.resolve().parent / RECIPE
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected the recipe beside the stage, as distill3d train leaves it")
    recipe = read_yaml(path)
    if not isinstance(recipe, dict) or "dataset" not in recipe:
        raise UserError(f"{path}: holds no dataset, expected a recipe written by distill3d train")
    kind = SurroundDatasetConfig if surround else DatasetConfig
    return from_plain(kind, recipe["dataset"], f"{path}: dataset")


def _tidy(folder: Path) -> None:
    """Removes what a training left that was killed between the last thing that it wrote and its end."""
    forget_dead_writer(folder)
    if not (folder / LOCK).exists():
        (folder / PREVIOUS).unlink(missing_ok=True)
        sweep_below(folder)


@contextmanager
def _alone(folder: Path, fabric: Fabric) -> Iterator[None]:
    """No other training in a stage's folder; the first of a training's processes sees to that for all of them.

    Raises:
        UserError: there is one.
    """
    with ExitStack() as stack:
        refusal = None
        if fabric.global_rank == 0:
            try:
                stack.enter_context(only_writer(folder, "is being trained"))
                sweep_below(folder)
            except UserError as error:
                refusal = str(error)
        refusal = fabric.broadcast(refusal)
        if refusal is not None:
            raise UserError(refusal)
        yield


def _refuse_unmet(recipe: Recipe, stage: StageConfig, folder: Path, to_come: list[str]) -> None:
    for needed in stage.needs if stage.taken_from is None else ():
        if needed not in to_come and not is_finished(recipe, recipe.stage(needed), folder):
            raise UserError(f"stage {stage.name!r} needs stage {needed!r}, which is not finished in {folder}")


def _refuse_begun_otherwise(recipe: Recipe, stage: StageConfig, folder: Path) -> None:
    path = last_state(folder / stage.name)
    begun = None if path is None else begun_with(path)
    known = {None, recipe.stage_fingerprint(stage), changes.shorter(recipe, stage, folder / stage.name)}
    if path is not None and begun not in known:
        raise UserError(_otherwise(recipe, stage, path, "was written"))


def begun_with(path: Path) -> str | None:
    """The fingerprint in a training state, without reading its tensors; None where there is none to be read, which
    training itself looks into."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # of a damaged file anything
        return None
    begun = state.get("fingerprint") if isinstance(state, dict) else None
    return begun if isinstance(begun, str) else None


def refuse_others_files(folder: Path, stages: list[StageConfig]) -> None:
    """Keeps files that no training wrote from being replaced by one."""
    written = {folder / RECIPE: RECIPE}
    for stage in stages:
        if any((folder / stage.name / name).exists() for name in STAGE_FILES):
            written[folder / stage.name / CONFIG] = CONFIG
    for path, kind in written.items():
        if not path.exists() and not path.is_symlink() and kind == RECIPE:
            continue
        try:
            begins = tuple(re.findall(r"^(\w+):", read_text(path), re.MULTILINE)[: len(BEGINS[kind])])
        except UserError:
            begins = ()
        if begins != BEGINS[kind]:
            others = path.name if kind == RECIPE else next(n for n in STAGE_FILES if (path.parent / n).exists())
            raise UserError(
                f"{path.parent / others}: is there already and was not written by a training: "
                "give another --out, or move it away"
            )


def launch(options: RunOptions) -> Fabric:
    """The devices and processes of a run; under torchrun it joins the processes that exist."""
    from lightning_fabric import Fabric

    many = options.devices * options.nodes > 1
    # Not every stage trains every parameter: a map can be taught before the head that reads it.
    fabric = Fabric(
        accelerator=options.accelerator, devices=options.devices, num_nodes=options.nodes,
        strategy="ddp_find_unused_parameters_true" if many else "auto", precision="32-true",
    )  # fmt: skip
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    fabric.launch()
    if many:
        atexit.register(_leave_processes)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    return fabric


def _leave_processes() -> None:
    """Ends the connection to the other processes, whose threads would abort a process that ends without; Fabric does so
    for CUDA's connections alone."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_finished(recipe: Recipe, stage: StageConfig, folder: Path) -> bool:
    """Whether a stage's card is there; of a stage from elsewhere the one of the same weights, whatever the recipe's
    other settings are, for nothing of it is trained here.

    Raises:
        UserError: the card was written with other settings, or cannot be read.
    """
    path = folder / stage.name / CARD
    if not path.exists():
        return False
    card = read_card(path)
    require(card, path, "fingerprint")
    origin = card.get("taken_from") or {}
    if stage.taken_from is not None and stage.taken_sha256 is not None and origin.get("sha256") == stage.taken_sha256:
        return True
    if card["fingerprint"] == recipe.stage_fingerprint(stage):
        return True
    tied = None
    if changes.shorter(recipe, stage, path.parent) is not None:
        tied = changes.tied_to_length(stage)
        if tied is None and last_state(path.parent) is not None:
            return False  # what there is, is its beginning
    raise UserError(_otherwise(recipe, stage, path.parent, "was trained", tied))


def _otherwise(recipe: Recipe, stage: StageConfig, path: Path, what: str, why: str | None = None) -> str:
    """What is said of a stage or its state that other settings made."""
    told = changes.told(recipe, stage, path if path.is_dir() else path.parent)
    differs = f" ({told})" if told else ""
    reason = f", and {why}" if why else ""
    return (
        f"{path} {what} with other settings than stage {stage.name!r} has now{differs}{reason}: "
        "give another --out, or remove that folder"
    )
