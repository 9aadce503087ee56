"""Methods, detectors and recipes from outside of this package.

A plugin is a module that calls ``register_method``, ``register_detector`` or ``register_recipe`` as it is imported.
It is found where an installed package names it as an entry point of the group ``distill3d.plugins``, or is named on
the command line: ``distill3d train mine --plugin my_method.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path

from distill3d.errors import UserError

#: The group of entry points under which installed packages name their modules.
GROUP = "distill3d.plugins"

_loaded: set[str] = set()


def load_installed() -> None:
    """Imports the modules that installed packages name, each once.

    Raises:
        UserError: one of them cannot be imported.
    """
    for point in entry_points(group=GROUP):
        if point.value not in _loaded:
            _loaded.add(point.value)
            try:
                point.load()
            except Exception as error:
                of = f" of {point.dist.name}" if point.dist is not None else ""
                raise UserError(f"the plugin {point.name!r}{of} cannot be imported: {_told(error)}") from error


def any_known() -> bool:
    """Whether a plugin was imported, or an installed package names one."""
    return bool(_loaded) or bool(entry_points(group=GROUP))


def load_plugin(name: str) -> None:
    """Imports a module by its name, also from the folder in which the command was called, or by its file's path.

    Raises:
        UserError: there is none, or it cannot be imported.
    """
    path = Path(name)
    key = str(path.resolve()) if path.suffix == ".py" else name
    if key in _loaded:
        return
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"--plugin {name}: no such file")
    try:
        if path.suffix == ".py":
            _import_file(path.resolve())
        else:
            _look_in(Path.cwd())
            importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--plugin {name}: cannot be imported: {_told(error)}") from error
    _loaded.add(key)


def _import_file(path: Path) -> None:
    """Imports a file as a module of its name, which modules beside it may be part of.

    Raises:
        UserError: there is another module of that name.
    """
    _look_in(path.parent)
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).resolve() != path:
        raise UserError(f"--plugin {path}: there is another module {path.stem!r}, rename the file")
    importlib.import_module(path.stem)


def _look_in(folder: Path) -> None:
    """Last of all, so that no file there stands in for what this package imports."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    importlib.invalidate_caches()


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
