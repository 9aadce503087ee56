"""What the commands say of the recipes, written down beside them: whoever asks the recipes themselves waits for PyTorch
to be imported, too long for a list or a help text.

``make index`` (``python -m distill3d.recipe_index``) writes it; a test holds it against the recipes.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill3d import plugins
from distill3d.errors import UserError

#: The package of the recipes, and where the index lies in it: JSON, compressed, for recipes say much the same.
PACKAGE = "distill3d.recipes"
FOLDER = Path(__file__).parent / "recipes"
FILE = FOLDER / "index.json.gz"


@dataclass(frozen=True)
class RecipeEntry:
    """What is told of a recipe."""

    summary: str  # a line
    overview: str  # what ``distill3d train NAME --help`` prints
    settings: dict[str, Any]  # all of them, as plain data


def recipe_summaries() -> dict[str, str]:
    """A line on each recipe, by name, those of plugins included.

    Raises:
        UserError: an installed plugin cannot be imported.
    """
    written = written_index()
    if written is not None:
        return {name: entry.summary for name, entry in written.items()}
    from distill3d.recipes import RECIPES

    plugins.load_installed()
    return {name: _about(name).partition("\n")[0] for name in RECIPES}


def recipe_entry(name: str) -> RecipeEntry:
    """What is told of one recipe.

    Raises:
        UserError: there is none of this name, the nearest one is offered; or a plugin cannot be imported.
    """
    written = written_index()
    if written is None:
        plugins.load_installed()
        return _asked(name)
    if name not in written:
        raise no_recipe(name, written)
    return written[name]


def refuse_unknown(name: str) -> None:
    """Says at once, where that can be known without importing the recipes, that there is none of this name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    written = written_index()
    if written is not None and name not in written:
        raise no_recipe(name, written)


def no_recipe(name: str, known: Iterable[str]) -> UserError:
    """What is said where no recipe has this name."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return UserError(f"there is no recipe {name!r}: {hint}")


# ------------------------------------------------------------------------------------------------------------ the file


def written_index() -> dict[str, RecipeEntry] | None:
    """The recipes by name as the file has them; None where the recipes themselves have to be asked.

    That is where there may be others than this package's, or files of recipes were edited since the index was written.
    """
    # Only what is imported can hold recipes from outside; and then nothing is gained.
    return None if PACKAGE in sys.modules or plugins.any_known() else _read()


@functools.cache
def _read() -> dict[str, RecipeEntry] | None:
    """The recipes by name; None where the file is absent, damaged or older than the recipes' own files."""
    try:
        written, sources = json.loads(gzip.decompress(FILE.read_bytes())), _sources()
    except (OSError, EOFError, ValueError):
        return None
    if written["sources"] != sources:
        return None
    return {name: RecipeEntry(**entry) for name, entry in written["recipes"].items()}


def write_index() -> None:
    """Writes the file anew."""
    index = {"sources": _sources(), "recipes": {name: asdict(entry) for name, entry in current_index().items()}}
    FILE.write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))  # the same bytes at any time


def current_index() -> dict[str, RecipeEntry]:
    """This package's recipes by name, asked themselves, without those of plugins."""
    from distill3d.recipes import RECIPES

    return {name: _asked(name) for name, build in RECIPES.items() if build.__module__.startswith(f"{PACKAGE}.")}


def _asked(name: str) -> RecipeEntry:
    from distill3d.recipes import get_recipe
    from distill3d.recipes.overview import overview
    from distill3d.settings import to_plain

    recipe, about = get_recipe(name), _about(name)
    return RecipeEntry(about.partition("\n")[0], overview(recipe, about), to_plain(recipe))


def _about(name: str) -> str:
    """What the recipe's function says of it."""
    from distill3d.recipes import RECIPES

    return (RECIPES[name].__doc__ or "").strip()


def _sources() -> str:
    """A hash of the recipes' own files, whatever their line ends.

    Defaults stand in other files too, which change more often than what is told of recipes: these are left to the test.
    """
    total = hashlib.sha256()
    for path in sorted(FOLDER.glob("*.py")):
        total.update(f"{path.name}\n{path.read_text(encoding='utf-8')}\n".encode())
    return total.hexdigest()


if __name__ == "__main__":
    write_index()
    print(FILE)
