"""The reference: what ``import distill3d`` gives, and the modules that the pages tell users to call."""

from __future__ import annotations

import importlib.util
from typing import Any

import distill3d
from website.registered import Section

#: Modules by what they are for.
MODULES = {
    "Boxes, cameras, data": (
        "distill3d.boxes", "distill3d.camera", "distill3d.data.sample", "distill3d.data.surround",
        "distill3d.data.collate", "distill3d.synth.writer", "distill3d.errors",
    ),
    "Detectors": ("distill3d.detectors", "distill3d.detectors.base", "distill3d.layers.distributed"),
    "Distillation": (
        "distill3d.distill.methods", "distill3d.distill.term", "distill3d.distill.context",
        "distill3d.distill.adapters", "distill3d.distill.masks", "distill3d.distill.responses",
        "distill3d.distill.relations", "distill3d.distill.distances", "distill3d.distill.softrank",
        "distill3d.distill.map_terms", "distill3d.distill.precision", "distill3d.distill.style",
    ),
    "Training": (
        "distill3d.train.recipe", "distill3d.train.schedules", "distill3d.train.htl", "distill3d.train.loop",
        "distill3d.settings", "distill3d.recipes", "distill3d.recipes.demo", "distill3d.train.sources",
    ),
    "Deployment": ("distill3d.export",),
}  # fmt: skip
BEGIN = """# Reference

`import distill3d` gives all of this; each part is imported when it is first asked for. Modules that users call besides
have pages of their own, beside this one in the navigation.
"""
#: Of these modules, what is told of a whole module is not what users call.
ONLY = {"distill3d.train.loop": ("RunOptions",)}


def api() -> Section:
    """One page for ``distill3d`` itself and one for each module."""
    names = "\n\n".join(f"::: distill3d.{name}" for name in distill3d.__all__)
    pages = {"api/index.md": f"{BEGIN}\n{names}\n"}
    nav: list[Any] = ["api/index.md"]
    for title, modules in MODULES.items():
        nav.append({title: [{module: f"api/{module}.md"} for module in modules]})
        pages |= {f"api/{module}.md": _page(module) for module in modules}
    return Section(pages, nav)


def _page(module: str) -> str:
    lines = [f"# {module}", "", f"[source](../source/{module.replace('.', '/')}{_ending(module)}.md)", ""]
    if module in ONLY:
        return "\n".join([*lines, *(f"::: {module}.{name}" for name in ONLY[module])]) + "\n"
    options = ("    options:", "      show_root_heading: false", "      show_root_toc_entry: false")
    return "\n".join([*lines, f"::: {module}", *options]) + "\n"


def _ending(module: str) -> str:
    spec = importlib.util.find_spec(module)
    return "/__init__.py" if spec is not None and spec.submodule_search_locations else ".py"
