"""The benchmark's rows: which detectors are trained on what, and what teaches them.

A group is a recipe whose stages are rows: a teacher, a baseline, a student of each method, and controls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from distill3d.detectors.monodle import HEAT_CLASSES
from distill3d.distill.methods.dense_truth import DenseTruthConfig
from distill3d.distill.methods.labeldistill import LabelDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.layers.heads.anchors import KITTI_ANCHORS
from distill3d.recipes import get_recipe, monosd
from distill3d.recipes.head_start import NAME, head_start
from distill3d.recipes.kitti import BASES, METHODS
from distill3d.recipes.surround import tiny_labeldistill, tiny_surround, tiny_surround_labelled
from distill3d.recipes.surround_family import TINY_METHODS, tiny_surround_family
from distill3d.recipes.synthetic import tiny_labelled
from distill3d.train.recipe import EvaluationConfig, Recipe, StageConfig, SurroundDatasetConfig

from . import few_labels, worlds
from .search import continued, twice_as_long, with_candidates
from .sizes import FEW, MANY, Size

#: The controls have this method's terms, or some of them.
CONTROLLED = "monoskd"
#: Stages of LabelDistill's preset that are its terms one by one.
LABELDISTILL_PARTS = ("lidar", "label")
#: Curves are of no interest here.
ONLY_AT_THE_END = EvaluationConfig(every=10**6)
#: What a base's detectors have otherwise than in its preset.  GUPNet's threshold looks at the product of the score and
#: the confidence in the depth, which is small after so few steps: at the published 0.2 it keeps next to nothing.
OTHERWISE = {"gupnet": {"score_threshold": 0.02}}
#: The group in which the search's outcome stands beside all controls.
CONFIRMED_IN = "monodle"
#: The group whose rows are candidates and no results.
SEARCH = "search"
#: The groups of CaDDN's rows on few labels and many drives, and of the ceiling; MonoDLE's have its name behind.
FEW_LABELS, ALL_LABELS = "few_labels", "all_labels"
#: Least steps of LabelDistill's longer students, and the share of them over which its terms rise where nothing is
#: learned yet.
LONG_STEPS, WARM_UP = 2500, 0.2
#: Groups of the sweep are called so, with their number of frames.
SWEEP = "frames_"
#: Bases whose groups are trained only where they are named.
NAMED_BASES = ("monocon",)
#: What a row's gain is measured against, where nothing else is said.
BASELINE = "baseline"
#: The baseline trained twice as long, and its rows: what trains twice as long, too, or goes on from what is trained.
LONGER = f"{BASELINE}_longer"
TWICE = {name: f"{name}_longer" for name in (*METHODS, NAME, "dense_truth")}
#: The trained baseline trained on, and the rows that go on from it, too.
CONTINUED = "continued"
SURROUND_LABELLED = tuple(stage.name for stage in tiny_surround_labelled().stages if stage.role == "student")
LABELLED = (
    *(stage.name for stage in tiny_labelled().stages if stage.role == "student"),
    monosd.controls(tiny_labelled())[1].name,
)
AGAINST_LONGER = (*TWICE.values(), f"{NAME}_from_baseline", f"{CONTROLLED}_continued")


@dataclass(frozen=True)
class Group:
    """Rows that share a base detector, a baseline and training frames."""

    name: str
    title: str
    recipe: Callable[[Size, int, Path], Recipe]  # size, seed, folder of the data
    seeds: range  # that there can be
    asked: int  # of these seeds, without which a row is not finished
    surround: bool = False
    when_named: bool = False  # takes hours of its own: trained only where it is named
    chosen_here: bool = False  # whether rows are also judged on the validation split, by which one is chosen
    short: str = ""  # what a picture calls it, by default its title up to the comma
    against: Mapping[str, str] = field(default_factory=dict)  # row: the row its gain is measured against
    curves: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # gain against steps; curve: its rows

    remark: str = ""  # what is to be known of its record

    def stated(self) -> dict[str, Any]:
        """What the page says of it beside its record."""
        short = self.short or self.title.partition(",")[0]
        return {"short": short, "against": self.against, "curves": self.curves, "remark": self.remark}


def groups(size: Size) -> dict[str, Group]:
    """All groups by name, the search last."""
    seeds, other = range(size.seeds), size.other_seeds
    frames = f"{size.frames} training frames"
    camera = [
        Group(
            base,
            f"{about.title}, {frames}",
            partial(_camera, base),
            seeds,
            size.seeds if base == CONFIRMED_IN else other,
            against=dict.fromkeys(AGAINST_LONGER, LONGER) if base == CONFIRMED_IN else {},
            when_named=base in NAMED_BASES,
            curves={name: (name, longer) for name, longer in TWICE.items()} if base == CONFIRMED_IN else {},
        )
        for base, about in BASES.items()
    ]
    sweep = [
        Group(f"{SWEEP}{count}", f"MonoDLE, {count} training frames", partial(_sweep, count), seeds, other,
              short=f"MonoDLE, {count} frames")
        for count in size.sweep
    ]  # fmt: skip
    bev = Group("caddn", f"CaDDN on the ground, {size.bev_frames} training frames", _bev, seeds, other)
    labelled = Group("caddn_labelled", f"CaDDN, students that keep their labels, {size.bev_frames} training frames",
                     _labelled, seeds, size.seeds, chosen_here=True, short="CaDDN, labels kept",
                     against=dict.fromkeys(LABELLED, CONTINUED))  # fmt: skip
    search = Group(SEARCH, f"The search: MonoDLE, {frames}, validation split", _search,
                   range(size.seeds, size.seeds + size.search_seeds), size.search_seeds, when_named=True)  # fmt: skip
    known = (*camera, *sweep, bev, labelled, *_few_label_groups(size), *_surround_groups(size), search)
    return {group.name: group for group in known}


def _few_label_groups(size: Size) -> list[Group]:
    """Those with few labels, and the ceilings of both bases; none where the pool of frames is too small."""
    if not size.has_many:
        return []
    groups = []
    for base, preset, rows, title, asked in (
        ("", "tiny_bev", few_labels.bev, "CaDDN", size.seeds),
        ("_monodle", "tiny_monodle", few_labels.camera, "MonoDLE", size.other_seeds),
    ):
        for name, stages, about, short in (
            (f"{FEW_LABELS}{base}", rows, f"{FEW} labelled frames, {MANY} without labels", "few labels"),
            (f"{ALL_LABELS}{base}", few_labels.ceiling, f"the same {FEW + MANY} frames, all with labels", "all labels"),
        ):
            recipe = partial(_few_labels, name, preset, stages)
            groups.append(
                Group(
                    name,
                    f"{title}, {about}",
                    recipe,
                    range(size.seeds),
                    asked,
                    short=f"{title}, {short}",
                    when_named=True,
                )
            )
    return groups


def _surround_groups(size: Size) -> list[Group]:
    seeds, other = range(size.seeds), size.other_seeds
    on = f"six cameras, {size.drives * size.drive_frames} training key frames"
    long = {"labeldistill_begun": CONTINUED, "labeldistill_long": "baseline_long"}
    return [
        Group("bevdepth", f"BEVDepth, {on}", _surround, seeds, other, surround=True),
        Group("bevdepth_labelled", f"BEVDepth, from the trained baseline, {on}", _surround_labelled, seeds, other,
              surround=True, short="BEVDepth, labels kept", against=dict.fromkeys(SURROUND_LABELLED, CONTINUED)),
        Group("surround_family", f"The surround family on BEVDepth, from the trained baseline, {on}", _surround_family,
              seeds, size.seeds, surround=True, when_named=True, short="Surround family",
              against=dict.fromkeys(TINY_METHODS, CONTINUED)),
        Group("labeldistill", f"LabelDistill for {LONG_STEPS} steps, {on}", _labeldistill_long, seeds, size.seeds,
              surround=True, when_named=True, short="BEVDepth, longer", against=long),
    ]  # fmt: skip


def _camera(base: str, size: Size, seed: int, out: Path) -> Recipe:
    """The preset of a base with all classes; on MonoDLE with the controls."""
    recipe = _on_streets(get_recipe(f"tiny_{base}"), base, size, size.frames, seed, out)
    changed = {"classes": HEAT_CLASSES, **OTHERWISE.get(base, {})}
    stages = tuple(replace(s, detector=replace(s.detector, **changed)) for s in recipe.stages)
    recipe = replace(recipe, stages=stages)
    return replace(recipe, stages=recipe.stages + more(recipe)) if base == CONFIRMED_IN else recipe


def more(recipe: Recipe) -> tuple[StageConfig, ...]:
    """Beside a recipe's teacher, baseline and students: our own recipe, the same from the baseline; all of them trained
    twice as long; MonoSKD as its paper trains it, from the trained baseline; and what a sceptic asks for."""
    ours = head_start(recipe.stage(CONTROLLED))
    students = [*(stage for stage in recipe.stages if stage.role == "student"), ours]
    longer = [replace(twice_as_long(stage), name=f"{stage.name}_longer") for stage in students]
    from_baseline = replace(ours, name=f"{ours.name}_from_baseline", role="control", inherit=("baseline",))
    as_published = replace(continued(recipe.stage(CONTROLLED)), name=f"{CONTROLLED}_continued")
    return (ours, from_baseline, *longer, as_published, *controls(recipe))


def controls(recipe: Recipe) -> tuple[StageConfig, ...]:
    """What a sceptic asks for, beside a recipe's teacher, baseline and student of MonoSKD."""
    baseline, taught = recipe.stage("baseline"), recipe.stage(CONTROLLED)
    assert isinstance(taught.method, MonoSKDConfig)
    again = replace(baseline, role="control")
    twice = replace(baseline.schedule, epochs=recipe.stage("teacher").schedule.epochs + baseline.schedule.epochs)
    features = replace(taught.method, response_weight=0.0)
    response = replace(taught.method, spearman_weight=0.0, affinity_weight=0.0)
    dense = replace(again, name="dense_truth", method=DenseTruthConfig())
    as_control = replace(taught, role="control")
    return (
        monosd.equal_teacher(baseline),
        monosd.taught_by_equal(taught),
        replace(as_control, name="features_only", method=features),
        replace(as_control, name="response_only", method=response),
        dense,
        replace(twice_as_long(dense), name="dense_truth_longer"),
        replace(again, name=LONGER, schedule=twice),
    )


def _sweep(frames: int, size: Size, seed: int, out: Path) -> Recipe:
    """Teacher, baseline and MonoSKD's student on more or fewer frames, for as many steps as whole epochs allow."""
    recipe = _on_streets(get_recipe(f"tiny_{CONFIRMED_IN}"), f"{SWEEP}{frames}", size, frames, seed, out)
    stages = tuple(
        replace(_all_classes(s),
                schedule=replace(s.schedule, epochs=max(1, round(s.schedule.epochs * size.frames / frames))))
        for s in recipe.stages if s.name in ("teacher", "baseline", CONTROLLED)
    )  # fmt: skip
    return replace(recipe, stages=stages)


def _search(size: Size, seed: int, out: Path) -> Recipe:
    return with_candidates(_camera(CONFIRMED_IN, size, seed, out))


def _bev(size: Size, seed: int, out: Path) -> Recipe:
    recipe = _on_streets(get_recipe("tiny_bev"), "caddn", size, size.bev_frames, seed, out)
    return replace(recipe, stages=tuple(_all_classes(stage) for stage in recipe.stages))


def _labelled(size: Size, seed: int, out: Path) -> Recipe:
    """Labelled students, and one taught by an equal network, in the folder of the group "caddn": they share its
    teacher, baseline and assistant."""
    recipe = get_recipe("tiny_labelled")
    recipe = replace(recipe, stages=(*recipe.stages, *monosd.controls(recipe)))
    recipe = _on_streets(recipe, "caddn", size, size.bev_frames, seed, out)
    return replace(recipe, stages=tuple(_all_classes(stage) for stage in recipe.stages))


def _few_labels(name: str, preset: str, rows: Callable[[Recipe], Recipe], size: Size, seed: int, out: Path) -> Recipe:
    """A preset's rows on few labels, or their ceiling on all, with all classes; as many steps whatever the size."""
    recipe = few_labels.on_frames(rows(get_recipe(preset)), name, size, seed, out, name.startswith(ALL_LABELS))
    recipe = replace(recipe, stages=tuple(_all_classes(stage) for stage in recipe.stages))
    return _shortened(recipe, 1.0, seed)


def _all_classes(stage: StageConfig) -> StageConfig:
    """The stage with a detector for cars, pedestrians and cyclists."""
    head = getattr(stage.detector, "head", None)
    if head is None:
        return replace(stage, detector=replace(stage.detector, classes=HEAT_CLASSES))
    return replace(stage, detector=replace(stage.detector, head=replace(head, classes=KITTI_ANCHORS)))


def _surround(size: Size, seed: int, out: Path) -> Recipe:
    """LabelDistill, MonoTAKD and MonoSTL beside one baseline; LabelDistill's parts have a study of their own."""
    recipe, other = tiny_labeldistill(), tiny_surround()
    whole = tuple(stage for stage in recipe.stages if stage.name not in LABELDISTILL_PARTS)
    known = {stage.name for stage in recipe.stages}
    stages = whole + tuple(stage for stage in other.stages if stage.name not in known)
    recipe = replace(recipe, name="bevdepth", stages=stages, dataset=_drives(recipe, seed, out))
    return _shortened(recipe, size.drive_epochs, seed)


def _surround_labelled(size: Size, seed: int, out: Path) -> Recipe:
    recipe = tiny_surround_labelled()
    recipe = replace(recipe, name="bevdepth_labelled", dataset=_drives(recipe, seed, out))
    return _shortened(recipe, size.drive_epochs, seed)


def _surround_family(size: Size, seed: int, out: Path) -> Recipe:
    """In the folder of the group "bevdepth", whose teacher and baseline it shares."""
    recipe = tiny_surround_family()
    recipe = replace(recipe, name="bevdepth", dataset=_drives(recipe, seed, out))
    return _shortened(recipe, size.drive_epochs, seed)


def _labeldistill_long(size: Size, seed: int, out: Path) -> Recipe:
    """LabelDistill from the trained baseline, and from nothing with a warm-up of its terms, each beside the same
    without a teacher; in the folder of the group "bevdepth": they share its teacher, label encoder and baseline."""
    recipe = _surround(size, seed, out)
    names = ("teacher", "label_encoder", BASELINE, "labeldistill")
    teacher, encoder, baseline, taught = (recipe.stage(name) for name in names)
    steps = max(1, size.drives * size.drive_frames // baseline.schedule.batch_size)
    longer = replace(baseline.schedule, epochs=-(-LONG_STEPS // steps))
    assert isinstance(taught.method, LabelDistillConfig)
    stages = (
        teacher, encoder, baseline,
        replace(baseline, name=CONTINUED, role="control", schedule=longer, init=BASELINE),
        replace(taught, name="labeldistill_begun", schedule=longer, init=BASELINE),
        replace(baseline, name="baseline_long", role="control", schedule=longer),
        replace(taught, name="labeldistill_long", schedule=longer, method=replace(taught.method, warm_up=WARM_UP)),
    )  # fmt: skip
    return replace(recipe, stages=stages)


def _drives(recipe: Recipe, seed: int, out: Path) -> SurroundDatasetConfig:
    assert isinstance(recipe.dataset, SurroundDatasetConfig)
    return replace(
        recipe.dataset, root=worlds.drives_folder(out), identity="benchmark-drives",
        train_split=worlds.drive_split(seed), eval_split="test",
    )  # fmt: skip


def _on_streets(recipe: Recipe, name: str, size: Size, frames: int, seed: int, out: Path) -> Recipe:
    dataset = replace(
        recipe.dataset, root=worlds.streets_folder(out), identity="benchmark-streets",
        train_split=worlds.train_split(frames, seed), eval_split="test",
    )  # fmt: skip
    return _shortened(replace(recipe, name=name, dataset=dataset), size.epochs, seed)


def _shortened(recipe: Recipe, epochs: float, seed: int) -> Recipe:
    stages = tuple(
        replace(s, schedule=replace(s.schedule, epochs=max(1, round(s.schedule.epochs * epochs))))
        for s in recipe.stages
    )
    evaluation = replace(ONLY_AT_THE_END, batch_size=recipe.evaluation.batch_size)
    return replace(recipe, stages=stages, seed=seed, evaluation=evaluation)
