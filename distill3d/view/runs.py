"""What finished and unfinished runs left on disk, read without trusting any of it to be there.

A recipe folder holds ``recipe.yaml`` and one folder per stage; a stage folder holds ``config.yaml``, ``metrics.jsonl``,
``card.json``, ``predictions/`` and ``evaluation.json`` as far as the stage has come.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from distill3d.errors import UserError

#: Parts in the order of the report; a stage of another part comes after them.
ROLES = ("teacher", "assistant", "label_encoder", "preparation", "baseline", "student", "control")
#: The part of stages that hold weights for others, and are no detectors by themselves: their heads are untrained.
PREPARATION = "preparation"
STAGE_FILES = ("config.yaml", "metrics.jsonl", "card.json", "evaluation.json")
RECIPE_FILE = "recipe.yaml"

#: The layout of a run's data set, which decides its metric: one camera (KITTI), or surround views (nuScenes).
Layout = Literal["kitti", "nuscenes"]
#: What lies in ``predictions/``, by layout.
RESULT_FILES: dict[Layout, str] = {"kitti": "*.txt", "nuscenes": "submission.json"}


@dataclass(frozen=True)
class Stage:
    """One stage of one run. Dictionaries are empty, lists too, where the file is missing."""

    folder: Path
    run: str  # name of the recipe folder
    name: str
    role: str  # one of ROLES, or another word
    card: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)  # {"step", "epoch", "loss", "lr", "terms"}
    evals: list[dict[str, Any]] = field(default_factory=list)  # {"epoch", "step", "ap" or "nuscenes"}
    #: KITTI: {"strict", "loose", "settings"}; nuScenes: {"mean_ap", "nd_score", ...}. None: not finished.
    evaluation: dict[str, Any] | None = None
    problems: tuple[str, ...] = ()  # one sentence each
    layout: Layout = "kitti"  # the same for all stages of a run

    @property
    def finished(self) -> bool:
        return self.evaluation is not None

    @property
    def predictions(self) -> Path:
        """Folder of the result files; need not exist."""
        return self.folder / "predictions"

    @property
    def has_predictions(self) -> bool:
        return any(self.predictions.glob(RESULT_FILES[self.layout]))

    @property
    def evaluated_frames(self) -> int | None:
        """On how many frames (KITTI) or samples (nuScenes) the evaluation rests."""
        settings = (self.evaluation or {}).get("settings", {})
        return _first(settings.get("frames"), settings.get("samples"))

    @property
    def training_frames(self) -> int | None:
        """On how many frames the weights rest, those of teachers included (card: a count, or the frames themselves)."""
        trained_on = self.card.get("trained_on") or {}
        frames = _first(trained_on.get("count"), trained_on.get("frames"))
        return len(frames) if isinstance(frames, list) else frames

    @property
    def seed(self) -> int | None:
        return _first(self.card.get("seed"), self.recipe.get("seed"))

    @property
    def min_height_scale(self) -> float:
        """By which the evaluation scaled KITTI's least heights (evaluation.json, else the recipe, else 1)."""
        settings = (self.evaluation or {}).get("settings", {})
        scale = _first(settings.get("min_height_scale"), self.dataset.get("min_height_scale"))
        return 1.0 if scale is None else float(scale)

    @property
    def listed(self) -> dict[str, Any]:
        """What the recipe says of the stage; empty where it does not list it."""
        return _listed(self.recipe, self.name)

    @property
    def teachers(self) -> list[str]:
        """Names of the stages that taught it, in order."""
        return list(next((v for s in (self.config, self.card, self.listed) if (v := s.get("teachers"))), []))

    @property
    def starts_from(self) -> list[str]:
        """Names of the stages whose weights it began with."""
        return _starts_from(self.config or self.listed)

    @property
    def epochs(self) -> int | None:
        """Epochs of its training, with those of the preparation stages that it goes on from."""
        own = _first(self.card.get("epochs"), _epochs(self.listed))
        before = [_listed(self.recipe, name) for name in self._prepared_by(self.starts_from)]
        return None if own is None else own + sum(_epochs(entry) or 0 for entry in before)

    def _prepared_by(self, names: Sequence[str]) -> set[str]:
        """Those of the named stages that are preparation stages, and those behind them."""
        found: set[str] = set()
        for name in names:
            entry = _listed(self.recipe, name)
            if _role(name, entry) == PREPARATION:
                found |= {name} | self._prepared_by(_starts_from(entry))
        return found

    @property
    def dataset(self) -> dict[str, Any]:
        """The recipe's data set settings."""
        dataset = self.recipe.get("dataset")
        return dataset if isinstance(dataset, dict) else {}

    def ap(self, name: str, metric: str, overlap: str) -> list[float] | None:
        """AP|R40 in percent (easy, moderate, hard) of e.g. ("car", "3d", "strict"), or None where there is none."""
        if self.evaluation is None or f"{name}_{metric}" in self.evaluation.get("settings", {}).get(
            "not_evaluated", ()
        ):
            return None
        return self.evaluation.get(overlap, {}).get(f"{name}_{metric}", {}).get("AP_R40")

    def precision(self, name: str, metric: str, overlap: str) -> list[list[float]] | None:
        """Precision 0..1 at 41 recall points for each difficulty, or None where there is none."""
        if self.ap(name, metric, overlap) is None or self.evaluation is None:
            return None
        return self.evaluation[overlap][f"{name}_{metric}"].get("precision41")


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def read_runs(folders: Sequence[Path]) -> list[Stage]:
    """The stages of all given recipe or stage folders, in order of role, then as the recipes list them.

    Raises:
        UserError: a folder is missing, or neither a recipe folder nor a stage folder.
    """
    stages = [stage for folder in folders for stage in _read_run(folder)]
    rank = {role: index for index, role in enumerate(ROLES)}
    names = list(dict.fromkeys(stage.name for stage in stages))  # the seeds of a stage come together
    return sorted(stages, key=lambda stage: (rank.get(stage.role, len(ROLES)), names.index(stage.name)))


def _read_run(folder: Path) -> list[Stage]:
    folder = folder.resolve()  # so that a run given as "." has a name
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: expected a run such as runs/<recipe> or runs/<recipe>/<stage>")
    problems: list[str] = []
    if _is_stage(folder):
        recipe = _read_yaml(folder.parent / RECIPE_FILE, problems)
        return _with_what_is_missing([_read_stage(folder, recipe, folder.parent.name, problems)])
    if not (folder / RECIPE_FILE).is_file() and not any(map(_is_stage, folder.iterdir())):
        raise UserError(
            f"{folder} is no run: expected {RECIPE_FILE} and a folder for each stage, or a stage with {STAGE_FILES[0]}"
        )
    recipe = _read_yaml(folder / RECIPE_FILE, problems)
    listed = [entry["name"] for entry in recipe.get("stages") or [] if isinstance(entry, dict) and "name" in entry]
    present = sorted(child.name for child in folder.iterdir() if _is_stage(child))
    names = dict.fromkeys([*listed, *present])
    return _with_what_is_missing(
        [_read_stage(folder / name, recipe, folder.name, problems if n == 0 else []) for n, name in enumerate(names)]
    )


def _with_what_is_missing(run: list[Stage]) -> list[Stage]:
    """The stages of a run with its layout, and with what that makes them lack."""
    layout = _layout(run)
    told = []
    for stage in run:
        stage = replace(stage, layout=layout)
        lacks = ()
        if stage.finished and not stage.has_predictions:
            places = "the gallery and of error against distance" if layout == "kitti" else "the gallery"
            lacks = (f"{stage.run}/{stage.name} has no predictions: it is left out of {places}.",)
        told.append(replace(stage, problems=(*stage.problems, *lacks)))
    return told


def _layout(run: Sequence[Stage]) -> Layout:
    """What the recipe says of the data set or, where it says nothing, what any stage left behind."""
    surround = any("version" in stage.dataset for stage in run) or any(
        "version" in stage.card or "nd_score" in (stage.evaluation or {}) or any("nuscenes" in e for e in stage.evals)
        for stage in run
        if not stage.dataset
    )
    return "nuscenes" if surround else "kitti"


def refuse_surround(stages: Sequence[Stage], what: str) -> None:
    """Keeps runs of surround views from what is made for KITTI's layout.

    Raises:
        UserError: one of the stages belongs to such a run.
    """
    for stage in stages:
        if stage.layout == "nuscenes":
            raise UserError(
                f"run {stage.run} is of surround views, {what} is for runs in KITTI's layout: use distill3d report"
            )


def _is_stage(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in STAGE_FILES)


def _read_stage(folder: Path, recipe: dict[str, Any], run: str, problems: list[str]) -> Stage:
    problems = list(problems)
    where = f"{run}/{folder.name}"
    listed = _listed(recipe, folder.name)
    if not folder.is_dir():
        problems.append(f"{where} has not begun.")
        return Stage(folder, run, folder.name, _role(folder.name, listed), recipe=recipe, problems=tuple(problems))
    config = _read_yaml(folder / "config.yaml", problems)
    card = _read_json(folder / "card.json", problems) or {}
    train, evals = _read_metrics(folder / "metrics.jsonl", problems)
    evaluation = _read_json(folder / "evaluation.json", problems)
    if evaluation is None:
        last = f" (last line at step {train[-1]['step']})" if train else ""
        problems.append(f"{where} is not finished{last}: it has no evaluation.json, so no results are shown.")
    role = card.get("role") or _role(folder.name, {**listed, **config})
    return Stage(folder, run, folder.name, role, card, config, recipe, train, evals, evaluation, tuple(problems))


def _listed(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    return next((s for s in recipe.get("stages") or [] if isinstance(s, dict) and s.get("name") == name), {})


def _starts_from(entry: dict[str, Any]) -> list[str]:
    return [name for name in (entry.get("init"), *(entry.get("inherit") or [])) if name is not None]


def _epochs(entry: dict[str, Any]) -> int | None:
    return (entry.get("schedule") or {}).get("epochs")


def _role(name: str, config: dict[str, Any]) -> str:
    """The part a stage plays where no card says it: what its configuration says, else its own name."""
    return str(config.get("role") or name)


def _read_yaml(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        problems.append(f"{_short(path)} is missing: the settings it holds are not shown.")
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        problems.append(f"{_short(path)} is no YAML ({' '.join(str(error).split())}).")
        return {}
    return value if isinstance(value, dict) else {}


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    """The object in the file; None where there is none (a missing file is for the caller to judge)."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        problems.append(f"{_short(path)}, line {error.lineno} is no JSON: the file is not used.")
        return None
    if isinstance(value, dict):
        return value
    problems.append(f"{_short(path)} holds no JSON object: the file is not used.")
    return None


def _read_metrics(path: Path, problems: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the evaluation lines of metrics.jsonl."""
    if not path.is_file():
        problems.append(f"{_short(path)} is missing: no training curves are shown for it.")
        return [], []
    lines: list[dict[str, Any]] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a run that was killed leaves half a line
            problems.append(f"{_short(path)}, line {number} is no JSON: the line is left out.")
            continue
        if isinstance(line, dict):
            lines.append(line)
    return _in_order(lines, "train"), _in_order(lines, "eval")


def _in_order(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Lines of one kind by step; of a step that an interrupted run did twice, the later one."""
    by_step = {line["step"]: line for line in lines if line.get("kind") == kind and isinstance(line.get("step"), int)}
    return [by_step[step] for step in sorted(by_step)]


def _short(path: Path) -> str:
    """<recipe>/<stage>/<file>: enough to find it, without the reader's own folders."""
    return "/".join(path.parts[-3:] if path.name != RECIPE_FILE else path.parts[-2:])
