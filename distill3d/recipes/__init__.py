"""The recipes by name: what the papers did, and small presets. One recipe is one function."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from distill3d.errors import UserError
from distill3d.recipes.demo import demo, demo_control
from distill3d.recipes.kitti import monodistill_monodle, monodle, monodle_overfit, monoskd_monodle
from distill3d.train.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "demo_control": demo_control,
    "monodle": monodle,
    "monodle_overfit": monodle_overfit,
    "monodistill_monodle": monodistill_monodle,
    "monoskd_monodle": monoskd_monodle,
}


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(RECIPES)}"
        raise UserError(f"there is no recipe {name!r}: {hint}")
    return RECIPES[name]()
