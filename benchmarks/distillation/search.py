"""The search for a recipe that beats every single method: candidates on frames and a split of their own.

Candidates learn from training frames that no seed of the table's rows of that size sees, and are judged on the
validation split; the chosen one then stands in the table, trained on its frames and judged on its test frames, where
nothing was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.methods.trusted import TrustedConfig
from distill3d.recipes.synthetic import FUSION_CHANNELS
from distill3d.train.recipe import Recipe, StageConfig

Change = Callable[[StageConfig], StageConfig]

#: MonoSKD's relations and correlation without its response, and ours in its place.
FEATURES = MonoSKDConfig(response_weight=0.0)
HEADS = ("neck", "heatmap", "offset_2d", "size_2d", "depth", "offset_3d", "size_3d", "heading")
#: Decay of the averaged weights, and the steps over which it rises.
AVERAGE = {"ema": 0.995, "ema_warmup": 100.0}


def _with(*parts: MonoSKDConfig | MonoDistillConfig | MonoSTLConfig | TrustedConfig) -> Change:
    method = parts[0] if len(parts) == 1 else MixedConfig(parts)
    return lambda stage: replace(stage, method=method)


def _begun(parts: tuple[str, ...]) -> Change:
    return lambda stage: replace(stage, inherit=("teacher",), inherit_parts=parts)


def _averaged(stage: StageConfig) -> StageConfig:
    return replace(stage, schedule=replace(stage.schedule, **AVERAGE))


#: What changes MonoSKD's student, step by step.
CANDIDATES: dict[str, tuple[Change, ...]] = {
    "monodistill": (_with(MonoDistillConfig(fusion_channels=FUSION_CHANNELS)),),
    "monostl": (_with(MonoSTLConfig(fusion_channels=FUSION_CHANNELS)),),
    "monoskd": (),
    "heat": (_with(MonoSKDConfig(), TrustedConfig(response_weight=0.0)),),
    "trusted": (_with(FEATURES, TrustedConfig(heat_weight=0.0)),),
    "trusted_heat": (_with(FEATURES, TrustedConfig()),),
    "begun_heads": (_begun(HEADS),),
    "begun_whole": (_begun(()),),
    "averaged": (_averaged,),
    "strong_response": (_with(MonoSKDConfig(response_weight=3.0)),),
    "all_but_average": (_with(FEATURES, TrustedConfig()), _begun(HEADS)),
    "all": (_with(FEATURES, TrustedConfig()), _begun(HEADS), _averaged),
}


def with_candidates(recipe: Recipe) -> Recipe:
    """The recipe's teacher and baseline with a student of every candidate, judged on the validation split; and the
    baseline with averaged weights, for that part asks for no teacher."""
    baseline, student = recipe.stage("baseline"), recipe.stage("monoskd")
    stages = [recipe.stage("teacher"), baseline, replace(_averaged(baseline), name="baseline_averaged", role="control")]
    for name, changes in CANDIDATES.items():
        stage = replace(student, name=name)
        for change in changes:
            stage = change(stage)
        stages.append(stage)
    dataset = replace(recipe.dataset, eval_split="val")
    return replace(recipe, name="search", stages=tuple(stages), dataset=dataset)
