"""What a teacher's other modality is worth: students taught by a second network of their own kind, which sees no more.

A control for every other recipe, and no method: a method of its own would differ from those that it is to judge in more
than the teacher.  Student, terms, schedule and start are those of an existing recipe, and the teacher alone is another:
the student's own network on the same images, trained as the baseline is, from another seed.  What a recipe gains beyond
its control is what LiDAR or depth bring; the rest comes of having a teacher at all, as Furlanello et al. found for
classification ("Born-Again Neural Networks", ICML 2018, arXiv:1805.04770).

    monosd_<base>   MonoSKD's features, relations and responses: its teacher is the student's network anyway
    monosd_caddn    CMKD's map and responses beside labels; the map through an adapter, for channels of two networks
                    that began apart mean different things
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distill3d.recipes.bev import cmkd_labelled
from distill3d.recipes.demo import demo
from distill3d.recipes.kitti import BASES, taught
from distill3d.recipes.synthetic import CHOSEN, tiny_labelled
from distill3d.train.recipe import Recipe, StageConfig

NAME = "monosd"
#: The teacher's stage, and how far its seed lies from the recipe's.
RGB_TEACHER, OTHER_SEED = "rgb_teacher", 1000
#: The method whose terms the bases on the image are taught by.
TERMS_OF = "monoskd"
UNPUBLISHED = "a control of this project's own; no number for it is known"


def equal_teacher(baseline: StageConfig) -> StageConfig:
    """A teacher that sees what the student sees: the baseline's stage from another seed."""
    return replace(baseline, name=RGB_TEACHER, role="control", seed_offset=OTHER_SEED)


def taught_by_equal(student: StageConfig) -> StageConfig:
    """A student's stage with the equal teacher in place of its own."""
    return replace(student, name=f"{student.name}_from_{RGB_TEACHER}", role="control", teachers=(RGB_TEACHER,))


def on_image(base: str) -> Callable[[], Recipe]:
    """The control of MonoSKD on a base detector, on KITTI."""

    def build() -> Recipe:
        recipe = taught(TERMS_OF, base)()
        baseline, student = recipe.stage("baseline"), recipe.stage("student")
        stages = (equal_teacher(baseline), baseline, taught_by_equal(student))
        return replace(recipe, name=f"{NAME}_{base}", stages=stages, note=UNPUBLISHED)

    build.__doc__ = (
        f"MonoSKD's control on {BASES[base].title}, on KITTI: taught by an equal network, which sees images."
    )
    return build


def monosd_caddn() -> Recipe:
    """The control of CMKD beside labels, on KITTI: CaDDN taught by an equal network, which sees images."""
    recipe = cmkd_labelled()
    baseline, continued, student = (recipe.stage(name) for name in ("baseline", "continued", "student"))
    stages = (equal_teacher(baseline), baseline, continued, taught_by_equal(student))
    return replace(recipe, name=f"{NAME}_caddn", stages=stages, note=UNPUBLISHED)


def demo_control() -> Recipe:
    """The demo with a sceptic's control: a student taught by a second RGB network, with MonoSKD's terms.

    If it gained as much as LiDAR's student, the gain would be a second network's and not LiDAR's.
    """
    recipe = demo()
    control = replace(taught_by_equal(recipe.stage(TERMS_OF)), name="control")
    stages = (*recipe.stages, equal_teacher(recipe.stage("baseline")), control)
    return replace(recipe, name="demo_control", stages=stages)


def tiny_monosd_caddn() -> Recipe:
    """CMKD with labels beside its control, CaDDN, tiny, on synthetic streets."""
    recipe = tiny_labelled()
    kept = tuple(recipe.stage(name) for name in ("teacher", "baseline", "continued", f"cmkd_{CHOSEN}"))
    return replace(recipe, name=f"tiny_{NAME}_caddn", stages=(*kept, *controls(recipe)))


def controls(labelled: Recipe) -> tuple[StageConfig, StageConfig]:
    """The equal teacher and its student beside those of a recipe that has ``tiny_labelled``'s stages."""
    return equal_teacher(labelled.stage("baseline")), taught_by_equal(labelled.stage(f"cmkd_{CHOSEN}"))


RECIPES = {
    **{f"{NAME}_{base}": on_image(base) for base in BASES},
    **{build.__name__: build for build in (monosd_caddn, demo_control, tiny_monosd_caddn)},
}  # fmt: skip
