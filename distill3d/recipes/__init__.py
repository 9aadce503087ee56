"""The recipes by name: what the papers did, and small presets."""

from __future__ import annotations

from collections.abc import Callable

from distill3d.plugins import load_installed
from distill3d.recipe_index import no_recipe
from distill3d.recipes import bev, monosd, surround, surround_family
from distill3d.recipes.demo import demo
from distill3d.recipes.head_start import head_start_monodle, tiny_head_start
from distill3d.recipes.kitti import BASES, METHODS, add_style_monodle, alone, monodle_overfit, selective_monoskd, taught
from distill3d.recipes.pseudo_labels import pseudo_labels_monodle, tiny_pseudo_labels
from distill3d.recipes.streets import streets, tiny_streets, tuned_streets
from distill3d.recipes.synthetic import (
    tiny,
    tiny_add_style,
    tiny_bev,
    tiny_labelled,
    tiny_lidar,
    tiny_odm3d,
    tiny_sgm3d,
)
from distill3d.train.recipe import Recipe

RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    **{f"tiny_{base}": tiny(base) for base in BASES},
    **{base: alone(base) for base in BASES},
    **{f"{method}_{base}": taught(method, base) for method in METHODS for base in BASES},
    "selective_monoskd": selective_monoskd,
    "add_style_monodle": add_style_monodle,
    "head_start_monodle": head_start_monodle,
    "tiny_head_start": tiny_head_start,
    "pseudo_labels_monodle": pseudo_labels_monodle,
    "tiny_pseudo_labels": tiny_pseudo_labels,
    "streets": streets,
    "tiny_streets": tiny_streets,
    "tuned_streets": tuned_streets,
    "tiny_lidar": tiny_lidar,
    "tiny_bev": tiny_bev,
    "tiny_labelled": tiny_labelled,
    "tiny_add_style": tiny_add_style,
    "tiny_odm3d": tiny_odm3d,
    "tiny_sgm3d": tiny_sgm3d,
    **{recipe.__name__: recipe for recipe in bev.RECIPES},
    **monosd.RECIPES,
    **{recipe().name: recipe for recipe in surround.RECIPES},
    **{recipe().name: recipe for recipe in surround_family.RECIPES},
    "monodle_overfit": monodle_overfit,
}


def register_recipe(build: Callable[[], Recipe], name: str | None = None) -> Callable[[], Recipe]:
    """Makes a recipe from outside known by its function's name, or by ``name``; may decorate the function.

    Raises:
        ValueError: another recipe has the name.
    """
    name = build.__name__ if name is None else name
    if name in RECIPES:
        raise ValueError(f"there is a recipe {name!r} already")
    RECIPES[name] = build
    return build


def get_recipe(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    if name not in RECIPES:
        load_installed()
    if name not in RECIPES:
        raise no_recipe(name, RECIPES)
    return RECIPES[name]()
