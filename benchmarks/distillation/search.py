"""The search for a recipe that beats every single method: candidates on frames and a split of their own.

Candidates learn from training frames that no seed of the table's rows of that size sees, and are judged on the
validation split; the chosen one then stands in the table, trained on its frames and judged on its test frames, where
nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from distill3d.distill.methods import MethodConfig
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.methods.trusted import TrustedConfig
from distill3d.recipes.head_start import NAME, READERS, TERMS, head_start
from distill3d.recipes.synthetic import FUSION_CHANNELS
from distill3d.train.recipe import Recipe, StageConfig

Change = Callable[[StageConfig], StageConfig]


@dataclass(frozen=True)
class Candidate:
    """What changes MonoSKD's student, step by step, and that in words."""

    about: str
    changes: tuple[Change, ...] = ()


#: Names of the published methods among the candidates.
PUBLISHED = ("monodistill", "monostl", "monoskd")
SINGLE = (*PUBLISHED, *(f"{name}_{how}" for name in PUBLISHED for how in ("continued", "longer")))
#: Our own recipe's rows, by their steps.
OURS = (NAME, f"{NAME}_longer")
#: Decay of the averaged weights, and the steps over which it rises.
AVERAGE = {"ema": 0.995, "ema_warmup": 100.0}


def _with(method: MethodConfig) -> Change:
    return lambda stage: replace(stage, method=method)


def _begun(parts: tuple[str, ...]) -> Change:
    return lambda stage: replace(stage, inherit=("teacher",), inherit_parts=parts)


def _going_on_from(name: str) -> Change:
    return lambda stage: replace(stage, init=name, inherit=(), inherit_parts=())


#: The stage beginning with the trained baseline's weights.
continued = _going_on_from("baseline")


def twice_as_long(stage: StageConfig) -> StageConfig:
    """The stage with twice its epochs."""
    return replace(stage, schedule=replace(stage.schedule, epochs=2 * stage.schedule.epochs))


def _alone(stage: StageConfig) -> StageConfig:
    return replace(stage, method=None, teachers=())


def _averaged(stage: StageConfig) -> StageConfig:
    return replace(stage, schedule=replace(stage.schedule, **AVERAGE))


#: What several candidates have in common.
MONODISTILL = _with(MonoDistillConfig(fusion_channels=FUSION_CHANNELS))
MONOSTL = _with(MonoSTLConfig(fusion_channels=FUSION_CHANNELS))
PAINTED = _with(TERMS)

#: The single methods, and what this project tries beside them.  "Continued" is as the papers train MonoDLE's students,
#: which go on from the trained baseline; all others begin untrained unless their words say otherwise.
CANDIDATES = {
    "monodistill": Candidate("MonoDistill", (MONODISTILL,)),
    "monostl": Candidate("MonoSTL", (MONOSTL,)),
    "monoskd": Candidate("MonoSKD"),
    "trusted": Candidate(
        "MonoSKD's feature terms; a response only where the teacher's depth is better than the student's; the "
        "teacher's heat map",
        (_with(MixedConfig((MonoSKDConfig(response_weight=0.0), TrustedConfig()))),),
    ),
    "painted": Candidate(
        "MonoSKD's feature terms; the labels themselves painted around objects as response",
        (PAINTED,),
    ),
    "monodistill_continued": Candidate("MonoDistill; begins as the baseline", (MONODISTILL, continued)),
    "monostl_continued": Candidate("MonoSTL; begins as the baseline", (MONOSTL, continued)),
    "monoskd_continued": Candidate("MonoSKD; begins as the baseline", (continued,)),
    "painted_continued": Candidate("painted; begins as the baseline", (PAINTED, continued)),
    "begun_heads": Candidate("MonoSKD; neck and heads begin as the teacher's", (_begun(READERS),)),
    "begun_whole": Candidate("MonoSKD; all that fits begins as the teacher's", (_begun(()),)),
    "averaged": Candidate("MonoSKD; weights averaged over training", (_averaged,)),
    "begun_alone": Candidate("no teacher's answers; all that fits begins as the teacher's", (_alone, _begun(()))),
    NAME: Candidate("painted; neck and heads begin as the teacher's", (head_start,)),
    f"{NAME}_continued": Candidate("painted; begins as head_start ended", (head_start, _going_on_from(NAME))),
    "monoskd_longer": Candidate("MonoSKD, twice as long", (twice_as_long,)),
    OURS[1]: Candidate("head_start, twice as long", (head_start, twice_as_long)),
    "begun_whole_painted": Candidate("painted; all that fits begins as the teacher's", (PAINTED, _begun(()))),
}


def with_candidates(recipe: Recipe) -> Recipe:
    """The recipe's teacher and baseline with a student of every candidate, judged on the validation split; and the
    baseline with averaged weights, for that part asks for no teacher."""
    baseline, student = recipe.stage("baseline"), recipe.stage("monoskd")
    stages = [recipe.stage("teacher"), baseline, replace(_averaged(baseline), name="baseline_averaged", role="control")]
    for name, candidate in CANDIDATES.items():
        stage = replace(student, name=name)
        for change in candidate.changes:
            stage = change(stage)
        stages.append(replace(stage, name=name))
    dataset = replace(recipe.dataset, eval_split="val")
    return replace(recipe, name="search", stages=tuple(stages), dataset=dataset)
