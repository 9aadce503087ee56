"""What finished and unfinished runs left on disk, read without trusting any of it to be there or to be sound.

Every file is held against its type in ``view.records`` here; what is read behind may trust it.  A file that is missing
or damaged is a problem of its stage, not of the page.

A recipe folder holds ``recipe.yaml`` and one folder per stage; a stage folder holds ``config.yaml``, ``metrics.jsonl``,
``card.json``, ``predictions/`` and ``evaluation.json`` as far as the stage has come.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from distill3d.data.kitti.names import LabelNames, names_of
from distill3d.errors import UserError, one_line
from distill3d.evaluate.kitti import Overlaps, Rules, rules_of
from distill3d.files import read_json, read_text, read_yaml, reason_of
from distill3d.train.card import RECIPE, read_card, runs_inside
from distill3d.typed import checked, fault_of
from distill3d.view.records import (
    BestOfReported,
    DatasetSettings,
    Evaluation,
    KittiCurves,
    MetricsLine,
    RecipeSettings,
    StageSettings,
)

T = TypeVar("T")

#: Parts in the order of the report; a stage of another part comes after them.
ROLES = ("teacher", "assistant", "label_encoder", "preparation", "baseline", "student", "control")
#: The part of stages that hold weights for others, and are no detectors by themselves: their heads are untrained.
PREPARATION = "preparation"
#: What is said of a stage that has no results because it came finished.
TAKEN = "taken from elsewhere, not evaluated here"
STAGE_FILES = ("config.yaml", "metrics.jsonl", "card.json", "evaluation.json")

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
    card: dict[str, Any] = field(default_factory=dict)  # as ``train.card.Card`` has it
    config: StageSettings = field(default_factory=StageSettings)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    train: list[MetricsLine] = field(default_factory=list)  # {"step", "epoch", "loss", "lr", "terms"}
    evals: list[MetricsLine] = field(default_factory=list)  # {"epoch", "step", "ap" or "nuscenes"}
    evaluation: Evaluation | None = None  # None: not finished, or the file cannot be used
    problems: tuple[str, ...] = ()  # one sentence each
    layout: Layout = "kitti"  # the same for all stages of a run

    @property
    def finished(self) -> bool:
        return self.evaluation is not None

    @property
    def taken(self) -> bool:
        """Whether it was trained elsewhere and put here: it has no log, and need not have been evaluated."""
        return bool(self.card.get("taken_from"))

    @property
    def unjudged(self) -> bool:
        """Whether it was taken from elsewhere and has no evaluation: TAKEN."""
        return self.taken and not self.finished

    @property
    def predictions(self) -> Path:
        """Folder of the result files; need not exist."""
        return self.folder / "predictions"

    @property
    def has_predictions(self) -> bool:
        try:
            return any(self.predictions.glob(RESULT_FILES[self.layout]))
        except OSError:
            return False

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
    def listed(self) -> StageSettings:
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

        def prepared_by(name: str) -> list[str]:
            return [n for n in _starts_from(_listed(self.recipe, name)) if self._prepares(n)]

        return everything_behind([name for name in names if self._prepares(name)], prepared_by)

    def _prepares(self, name: str) -> bool:
        return _role(name, _listed(self.recipe, name)) == PREPARATION

    @property
    def dataset(self) -> DatasetSettings:
        """The recipe's data set settings."""
        return self.recipe.get("dataset", {})

    def named_in_recipe(self, *keys: str) -> list[Any]:
        """The recipe's data set settings of these names.

        Raises:
            UserError: it lacks one.
        """
        settings: Mapping[str, Any] = self.dataset
        for key in keys:
            if settings.get(key) is None:
                raise UserError(f"the recipe of run {self.run} has no key dataset.{key}")
        return [settings[key] for key in keys]

    @property
    def names(self) -> LabelNames:
        """The classes of its data set."""
        others = self.dataset.get("label_names") or ()
        return names_of(Path(), tuple(self.dataset.get("classes") or ()), others)

    @property
    def rules(self) -> Rules:
        """By which it was evaluated on KITTI's layout."""
        return rules_of(self.names, self.dataset.get("overlaps") or ())

    @property
    def trained_classes(self) -> set[str]:
        """Lower-case names of the classes that its detector or its detector's head lists; none where no card does."""
        config = self.card.get("config") or {}
        head = config.get("head")
        head = head if isinstance(head, dict) else {}
        listed = (head.get("tasks"), config.get("classes"), head.get("classes"))
        return {name.lower() for name in next(filter(None, map(_names_in, listed)), [])}

    @property
    def leading(self) -> str:
        """The class that is shown first, in lower case: cars, or where there are none the first."""
        classes = self.rules.classes
        return "car" if "car" in classes else classes[0]

    def ap(self, name: str, metric: str, overlap: Overlaps) -> list[float] | None:
        """AP|R40 in percent (easy, moderate, hard) of e.g. ("car", "3d", "strict"), or None where there is none."""
        return self._curves(name, metric, overlap).get("AP_R40")

    def precision(self, name: str, metric: str, overlap: Overlaps) -> list[list[float]] | None:
        """Precision 0..1 at 41 recall points for each difficulty, or None where there is none."""
        return self._curves(name, metric, overlap).get("precision41")

    @property
    def best_of_reported(self) -> BestOfReported | None:
        """The best of its evaluations on the reported split, where the run was asked for it: no result of its own."""
        return (self.evaluation or Evaluation()).get("best_of_reported")

    def _curves(self, name: str, metric: str, overlap: Overlaps) -> KittiCurves:
        evaluation, key = self.evaluation or Evaluation(), f"{name}_{metric}"
        if key in evaluation.get("settings", {}).get("not_evaluated", ()):
            return {}
        return evaluation.get(overlap, {}).get(key, {})


def everything_behind(names: Collection[str], behind: Callable[[str], Collection[str]]) -> set[str]:
    """The names, those that stand ``behind`` each, and so on; whoever stands behind itself ends nothing."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += behind(name)
    return found


def _names_in(listed: Any) -> list[str]:
    """Names in lists of lists, or of objects with a name."""
    if isinstance(listed, dict):
        return _names_in(listed.get("name"))
    if isinstance(listed, list):
        return [name for one in listed for name in _names_in(one)]
    return [listed] if isinstance(listed, str) else []


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def read_runs(folders: Sequence[Path]) -> list[Stage]:
    """The stages of all given recipe or stage folders, in order of role, then as the recipes list them.

    Raises:
        UserError: a folder is missing, or neither a recipe folder nor a stage folder.
    """
    read = {stage.folder: stage for folder in folders for stage in _read_run(folder)}
    stages = _told_apart(list(read.values()))
    rank = {role: index for index, role in enumerate(ROLES)}
    names = list(dict.fromkeys(stage.name for stage in stages))  # the seeds of a stage come together
    return sorted(stages, key=lambda stage: (rank.get(stage.role, len(ROLES)), names.index(stage.name)))


def with_root(stages: Sequence[Stage], root: Path | None) -> list[Stage]:
    """The same stages, with the data set's folder where it is now; None leaves the one in their recipes."""
    if root is None:
        return list(stages)
    return [replace(s, recipe={**s.recipe, "dataset": {**s.dataset, "root": str(root)}}) for s in stages]


def _told_apart(stages: list[Stage]) -> list[Stage]:
    """Runs of one name that no seed tells apart are called by as much of their paths as does."""
    seeds: dict[str, dict[Path, int | None]] = {}
    for stage in stages:
        seeds.setdefault(stage.run, {}).setdefault(stage.folder.parent, stage.seed)
    called: dict[Path, str] = {}
    for seed_of in seeds.values():
        if len(set(seed_of.values())) < len(seed_of):
            longest = max(len(folder.parts) for folder in seed_of)
            parts = next(n for n in range(1, longest + 1) if len({f.parts[-n:] for f in seed_of}) == len(seed_of))
            called |= {folder: "/".join(folder.parts[-parts:]) for folder in seed_of}
    return [replace(stage, run=called.get(stage.folder.parent, stage.run)) for stage in stages]


def _read_run(folder: Path) -> list[Stage]:
    given = folder
    try:
        folder = folder.resolve()  # so that a run given as "." has a name
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: expected a run such as runs/<recipe> or runs/<recipe>/<stage>")
        children = sorted(folder.iterdir())
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise UserError(
            f"{folder}: {reason_of(error) if isinstance(error, OSError) else 'is no path of a folder'}"
        ) from None
    problems: list[str] = []
    if _is_stage(folder):
        recipe = _read_settings(folder.parent / RECIPE, RecipeSettings, problems)
        return _with_what_is_missing([_read_stage(folder, recipe, folder.parent.name, problems)])
    present = [child.name for child in children if _is_stage(child)]
    if not present and not os.path.lexists(folder / RECIPE):
        inside = runs_inside(given)
        if inside is not None:
            raise UserError(inside)
        raise UserError(
            f"{folder} is no run: expected {RECIPE} and a folder for each stage, or a stage with {STAGE_FILES[0]}"
        )
    recipe = _read_settings(folder / RECIPE, RecipeSettings, problems)
    names = dict.fromkeys([*(entry["name"] for entry in recipe.get("stages", ()) if "name" in entry), *present])
    if not names:
        raise UserError(f"{folder} holds no stage{''.join(f': {problem}' for problem in problems)}")
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
            lacks = (
                f"{stage.run}/{stage.name} has no predictions: it is left out of the gallery and of error against"
                " distance.",
            )
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
    return folder.is_dir() and any(os.path.lexists(folder / name) for name in STAGE_FILES)


def _read_stage(folder: Path, recipe: RecipeSettings, run: str, problems: list[str]) -> Stage:
    problems = list(problems)
    where = f"{run}/{folder.name}"
    listed = _listed(recipe, folder.name)
    if not os.path.isdir(folder):
        problems.append(f"{where} has not begun.")
        return Stage(folder, run, folder.name, _role(folder.name, listed), recipe=recipe, problems=tuple(problems))
    config = _read_settings(folder / "config.yaml", StageSettings, problems)
    card = _read_object(folder / "card.json", read_card, problems) or {}
    taken = bool(card.get("taken_from"))
    log, judged = folder / "metrics.jsonl", folder / "evaluation.json"
    train, evals = ([], []) if taken and not os.path.lexists(log) else _read_metrics(log, problems)
    evaluation = _read_object(judged, _read_evaluation, problems)
    if evaluation is None and not (taken and not os.path.lexists(judged)):
        last = f" (last line at step {train[-1]['step']})" if train else ""
        lacks = "its evaluation.json cannot be used" if os.path.lexists(judged) else ("it has no evaluation.json")
        problems.append(f"{where} is not finished{last}: {lacks}, so no results are shown.")
    role = card.get("role") or config.get("role") or _role(folder.name, listed)
    return Stage(folder, run, folder.name, role, card, config, recipe, train, evals, evaluation, tuple(problems))


def _listed(recipe: RecipeSettings, name: str) -> StageSettings:
    return next((entry for entry in recipe.get("stages", ()) if entry.get("name") == name), {})


def _starts_from(entry: StageSettings) -> list[str]:
    return [name for name in (entry.get("init"), *(entry.get("inherit") or [])) if name is not None]


def _epochs(entry: StageSettings) -> int | None:
    return entry.get("schedule", {}).get("epochs")


def _role(name: str, config: StageSettings) -> str:
    """The part a stage plays where no card says it: what its configuration says, else its own name."""
    return config.get("role") or name


# ------------------------------------------------------------------------------------------------------------ the files


def _read_settings(path: Path, kind: type[T], problems: list[str]) -> T:
    """Settings in YAML; none where the file is missing or damaged."""
    if not os.path.lexists(path):
        problems.append(f"{_short(path)} is missing: the settings it holds are not shown.")
        return kind()
    return _used(path, lambda: checked(read_yaml(path), kind, str(path)), problems) or kind()


def _read_object(path: Path, read: Callable[[Path], T], problems: list[str]) -> T | None:
    """What a file holds; None where it is damaged or there is none (that is for the caller to judge)."""
    if not os.path.lexists(path):
        return None
    return _used(path, lambda: read(path), problems)


def _used(path: Path, read: Callable[[], T], problems: list[str]) -> T | None:
    """What a file holds, or None and the reason as one more problem."""
    try:
        return read()
    except UserError as error:
        problems.append(f"{_shortened(str(error), path)}: the file is not used.")
        return None


def _read_evaluation(path: Path) -> Evaluation:
    evaluation = checked(read_json(path), Evaluation, path)
    if not ("nd_score" in evaluation or {"strict", "loose"} <= evaluation.keys()):
        raise UserError(f"{path}: holds no results of an evaluation")
    return evaluation


_DECODER = msgspec.json.Decoder(MetricsLine)


def _read_metrics(path: Path, problems: list[str]) -> tuple[list[MetricsLine], list[MetricsLine]]:
    """The training and the evaluation lines of metrics.jsonl."""
    if not os.path.lexists(path):
        problems.append(f"{_short(path)} is missing: no training curves are shown for it.")
        return [], []
    lines: list[MetricsLine] = []
    faults: list[str] = []
    for number, text in enumerate((_used(path, lambda: read_text(path), problems) or "").split("\n"), start=1):
        if not text.strip():
            continue
        try:
            lines.append(_DECODER.decode(text))
        except msgspec.ValidationError as error:
            faults.append(f"{_short(path)}, line {number}: {fault_of(error)}")
        except (msgspec.DecodeError, RecursionError):  # a run that was killed leaves half a line
            faults.append(f"{_short(path)}, line {number} is no JSON")
    if faults:
        more = f", and so are {len(faults) - 1} more" if len(faults) > 1 else ""
        problems.append(f"{one_line(faults[0])}: the line is left out{more}.")
    return _in_order(lines, "train"), _in_order(lines, "eval")


def _in_order(lines: list[MetricsLine], kind: str) -> list[MetricsLine]:
    """Lines of one kind by step; of a step that an interrupted run did twice, the later one."""
    by_step = {line["step"]: line for line in lines if line["kind"] == kind}
    return [by_step[step] for step in sorted(by_step)]


def _short(path: Path) -> str:
    """<recipe>/<stage>/<file>: enough to find it, without the reader's own folders."""
    return "/".join(path.parts[-3:] if path.name != RECIPE else path.parts[-2:])


def _shortened(sentence: str, path: Path) -> str:
    """A reader's sentence with the file's short name."""
    return one_line(sentence.replace(str(path), _short(path)))
