"""A page for every recipe, method and detector that is registered, from its docstring and its settings."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import yaml

from distill3d.detectors import DETECTORS, detector_name
from distill3d.distill.methods import METHODS, method_name, parts_of
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.term import Term
from distill3d.recipes import RECIPES
from distill3d.recipes.overview import RECIPE, RUN, STAGE, option_rows, stage_row
from distill3d.settings import to_plain
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe, StageConfig
from website.settings_table import settings_table

#: The data that recipes ask for, by the identity of their data set, and where it comes from.
DATA = {
    "synthetic-streets": ("Synthetic streets", "`distill3d synth streets` makes them; `make demo` leaves some."),
    "kitti": ("KITTI", "KITTI's official folders, or data in their layout."),
    "synthetic-drives": ("Synthetic drives", "`distill3d synth drives --layout nuscenes` makes them."),
    "nuscenes": ("nuScenes", "nuScenes' official folders."),
}
#: Of what mkdocstrings shows of a term: what it says of itself.
OPTIONS = ("    options:", "      heading_level: 3", "      members: false")
#: Where a docstring stops to be prose.
FORMAL = re.compile(r"^(Args|Returns|Raises|Yields):$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """Pages by their path below docs/, and their places in the navigation."""

    pages: dict[str, str]
    nav: list[Any]


def recipes() -> Section:
    """The recipes, by the data that they ask for."""
    built = {name: build() for name, build in RECIPES.items()}
    pages, nav, listed = {}, [], ["# Recipes", "", "`distill3d train NAME --data-root DIR` runs one."]
    identities = [recipe.dataset.identity for recipe in built.values()]
    for identity in sorted(set(identities), key=lambda i: (list(DATA).index(i) if i in DATA else len(DATA), i)):
        title, origin = DATA.get(identity, (identity, ""))
        listed += ["", f"## {title}", "", origin, "", *_table(("recipe", "what it is"))]
        names = [name for name, recipe in built.items() if recipe.dataset.identity == identity]
        for name in names:
            pages[f"recipes/{name}.md"] = recipe_page(name, built[name], RECIPES[name])
            listed.append(_row((f"[`{name}`]({name}.md)", _first_paragraph(inspect.getdoc(RECIPES[name])))))
        nav.append({title: [{name: f"recipes/{name}.md"} for name in names]})
    pages["recipes/index.md"] = "\n".join(listed) + "\n"
    return Section(pages, ["recipes/index.md", *nav])


def recipe_page(name: str, recipe: Recipe, build: Callable[[], Recipe]) -> str:
    """What a recipe is, its stages, what is changed most, and all of its settings."""
    shown = next((s for s in reversed(recipe.stages) if s.role == "student"), recipe.stages[-1])
    methods = {m: None for s in recipe.stages if s.method is not None for m in map(method_name, parts_of(s.method))}
    detectors = {detector_name(stage.detector): None for stage in recipe.stages}
    lines = [f"# {name}", "", _prose(build)]
    if recipe.note:
        lines += ["", f"**Note.** {_first_upper(recipe.note)}."]
    lines += ["", "```sh", f"distill3d train {name} --data-root DIR", "```", "", "## Stages, in their order", ""]
    lines += [*_table(("stage", "role", "detector and its input", "learns from")), *map(_row, _stages(recipe.stages))]
    lines += ["", f"Detectors: {_links('detectors', detectors)}.", ""]
    lines += [f"Methods: {_links('methods', methods)}."] if methods else []
    options = [*option_rows(RUN, RunOptions(), "--"), *option_rows(RECIPE, recipe, "--"),
               *option_rows(STAGE, shown, f"--stages.{shown.name.replace('_', '-')}.")]  # fmt: skip
    lines += ["", "## What is changed most", "", f"Of the stages, those of `{shown.name}` stand for all.", ""]
    lines += _table(("option and its value", "what it is"))
    lines += [_row((f"`{option}`", what)) for option, what in options]
    lines += ["", "## All settings {data-search-exclude}", "", '??? note "recipe.yaml"', "", "    ```yaml"]
    lines += [f"    {line}" for line in yaml.safe_dump(to_plain(recipe), sort_keys=False).splitlines()]
    return "\n".join([*lines, "    ```", ""])


def _links(folder: str, names: Iterable[str]) -> str:
    return ", ".join(f"[{_title(name)}](../{folder}/{name}.md)" for name in names)


def _stages(stages: Iterable[StageConfig]) -> Iterable[tuple[str, ...]]:
    for stage in stages:
        name, *rest = stage_row(stage)
        yield f"`{name}`", *rest


def methods() -> Section:
    """The methods, and the mixture of them."""
    modules = {name: sys.modules[method.config_type.__module__] for name, method in METHODS.items()}
    kinds = {name: method.config_type for name, method in METHODS.items()}
    modules["mixed"], kinds["mixed"] = sys.modules[MixedConfig.__module__], MixedConfig
    users = _users(_methods_of)
    pages = {f"methods/{name}.md": method_page(name, modules[name], kinds[name], users.get(name, [])) for name in kinds}
    return _with_index("methods", "Methods", "What a student is taught by.", modules, pages)


def _methods_of(stage: StageConfig) -> Iterable[str]:
    if stage.method is None:
        return ()
    return *map(method_name, parts_of(stage.method)), *(("mixed",) if isinstance(stage.method, MixedConfig) else ())


def method_page(name: str, module: ModuleType, kind: type, recipes: list[str]) -> str:
    """A method's header, its settings, the recipes that use it, its terms and its functions."""
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    classes = [value for value in own if inspect.isclass(value) and issubclass(value, Term)]
    functions = [value for value in own if inspect.isfunction(value) and not value.__name__.startswith("_")]
    lines = [*_header(name, module), *_settings(kind), *_used(recipes)]
    if classes or functions:
        lines += ["", "## Terms and functions"]
    for value in (*classes, *functions):
        lines += ["", f"::: {module.__name__}.{value.__qualname__}", *OPTIONS]
    return "\n".join(lines) + "\n"


def detectors() -> Section:
    """The detectors."""
    modules = {name: sys.modules[entry.config_type.__module__] for name, entry in DETECTORS.items()}
    users = _users(lambda stage: (detector_name(stage.detector),))
    pages = {}
    for name, entry in DETECTORS.items():
        network = ["", "## Network", "", _prose(entry.build)]
        lines = [*_header(name, modules[name]), *network, *_settings(entry.config_type), *_used(users.get(name, []))]
        pages[f"detectors/{name}.md"] = "\n".join(lines) + "\n"
    return _with_index("detectors", "Detectors", "What is trained, taught and asked.", modules, pages)


def pages_of_modules() -> dict[str, str]:
    """The page of each file of the repository that has one of its own."""
    found = {METHODS[name].config_type.__module__: f"methods/{name}.md" for name in METHODS}
    found |= {MixedConfig.__module__: "methods/mixed.md"}
    found |= {entry.config_type.__module__: f"detectors/{name}.md" for name, entry in DETECTORS.items()}
    return {f"{module.replace('.', '/')}.py": page for module, page in found.items()}


# --------------------------------------------------------------------------------------------------------------- pieces


def _header(name: str, module: ModuleType) -> list[str]:
    title, text = _title(name), _prose(module)
    text = _first_upper(text.removeprefix(f"{title}: "))
    return [f"# {title}", "", f"`{name}`, [source](../source/{module.__name__.replace('.', '/')}.py.md)", "", text]


def _title(name: str) -> str:
    """The name as its authors write it, where its file begins with it."""
    kind = METHODS[name].config_type if name in METHODS else DETECTORS[name].config_type if name in DETECTORS else None
    begin = (inspect.getdoc(sys.modules[kind.__module__]) or "").partition(":")[0] if kind is not None else ""
    plain = "".join(c for c in begin.lower() if c.isalnum())
    return begin if plain == name.replace("_", "") else name


def _settings(kind: type) -> list[str]:
    text = _prose(kind)
    return ["", f"## Settings: {kind.__name__}", "", text, "", settings_table(kind)]


def _used(recipes: list[str]) -> list[str]:
    if not recipes:
        return []
    return ["", "## Recipes with it", "", ", ".join(f"[`{name}`](../recipes/{name}.md)" for name in recipes)]


def _users(named: Callable[[StageConfig], Iterable[str]]) -> dict[str, list[str]]:
    """The recipes in which each name stands."""
    found: dict[str, list[str]] = {}
    for recipe, build in RECIPES.items():
        for name in dict.fromkeys(n for stage in build().stages for n in named(stage)):
            found.setdefault(name, []).append(recipe)
    return found


def _with_index(folder: str, title: str, text: str, modules: dict[str, ModuleType], pages: dict[str, str]) -> Section:
    lines = [f"# {title}", "", text, "", *_table(("name", "what it is"))]
    for name, module in modules.items():
        what = _first_upper(_first_paragraph(inspect.getdoc(module)).removeprefix(f"{_title(name)}: "))
        lines.append(_row((f"[{_title(name)}]({name}.md)", what)))
    nav = [f"{folder}/index.md", *({_title(name): f"{folder}/{name}.md"} for name in modules)]
    return Section({f"{folder}/index.md": "\n".join(lines) + "\n", **pages}, nav)


def _prose(of: Any) -> str:
    """A docstring up to what it says of arguments and errors."""
    return FORMAL.split(inspect.getdoc(of) or "")[0].strip()


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(heads: tuple[str, ...]) -> list[str]:
    return [_row(heads), _row(("---",) * len(heads))]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
