"""Head start: this project's own recipe, no published one, found by a search (docs/benchmark.md).

A student that begins untrained has to learn to see and to read what it sees at once.  Its LiDAR teacher has learned to
read: the same neck and heads turn features into boxes.  So the student

1. begins with the teacher's neck and heads, and goes on training them;
2. learns to make the features that these read: MonoSKD's correlation and relations with the teacher's
   (arXiv:2310.11316);
3. is told the answers by the labels, painted around each object as MonoDistill paints its teacher's (arXiv:2201.10830),
   for in training the labels are at hand, and know better than any teacher.

It takes what other methods take, a trained teacher, and no step more.  That a student can read its teacher's features
with the teacher's own head, there kept as it is, was shown for classification by SimKD (Chen et al., CVPR 2022,
arXiv:2203.14001).
"""

from __future__ import annotations

from dataclasses import replace

from distill3d.distill.methods.dense_truth import DenseTruthConfig
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.recipes.kitti import BASES, METHODS, in_three_stages
from distill3d.recipes.synthetic import tiny
from distill3d.train.recipe import Recipe, StageConfig

#: The teacher's features, and the labels in place of its answers.
TERMS = MixedConfig((MonoSKDConfig(response_weight=0.0), DenseTruthConfig()))
#: MonoDLE's modules that read the trunk's features.
READERS = ("neck", "heatmap", "offset_2d", "size_2d", "depth", "offset_3d", "size_3d", "heading")
NAME = "head_start"


def head_start(student: StageConfig) -> StageConfig:
    """A taught student's stage with the same budget and this project's way to teach."""
    return replace(student, name=NAME, method=TERMS, init=None, inherit=student.teachers, inherit_parts=READERS)


def tiny_head_start() -> Recipe:
    """Head start beside MonoSKD, tiny, on synthetic streets."""
    recipe = tiny("monodle")()
    taught = recipe.stage("monoskd")
    stages = (recipe.stage("teacher"), recipe.stage("baseline"), taught, head_start(taught))
    return replace(recipe, name=f"tiny_{NAME}", stages=stages)


def head_start_monodle() -> Recipe:
    """Head start on MonoDLE, on KITTI, where nobody has trained it yet."""
    note = "this project's own, found on synthetic streets (docs/benchmark.md); no number on KITTI is known"
    recipe = in_three_stages(f"{NAME}_monodle", BASES["monodle"], METHODS["monoskd"], note, TERMS)
    return replace(recipe, stages=(recipe.stage("teacher"), head_start(recipe.stage("student"))))
