"""Notebooks: run from first to last cell, and turned into pages with what they gave."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # nbformat comes with nbclient, which the library itself does without
    from nbformat import NotebookNode

#: Seconds that one cell may take, far more than any does.
CELL_TIMEOUT = 600


def executed(path: Path) -> NotebookNode:
    """A notebook after a run in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": folder}}).execute()
    return notebook


def page(path: Path, place: str) -> tuple[str, dict[str, bytes]]:
    """A notebook's page, run anew, and its pictures by their places below docs/; ``place`` is the page's."""
    from nbconvert import MarkdownExporter

    stem = path.stem
    resources: dict[str, Any] = {"output_files_dir": stem, "unique_key": stem}
    text, resources = MarkdownExporter().from_notebook_node(executed(path), resources)
    folder = place.rpartition("/")[0]
    pictures = {f"{folder}/{name}": data for name, data in resources["outputs"].items()}
    title, newline, rest = text.partition("\n")
    return f"{title}{newline}\n[This page as a notebook]({path.name}), to run it.\n{rest}", pictures
