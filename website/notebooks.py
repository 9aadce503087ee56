"""Notebooks: run from first to last cell, and turned into pages with what they gave."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # nbformat comes with nbclient, which the library itself does without
    from nbformat import NotebookNode

#: Seconds that one cell may take, far more than any does.
CELL_TIMEOUT = 600
#: Kernels talk through files, not through ports of the machine.
TRANSPORT = "ipc"
#: Networks this small are quickest on one thread; and progress bars are not shown, so what they would need is not said.
SURROUNDINGS = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


def executed(path: Path) -> NotebookNode:
    """A notebook after a run in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        kernel = notebook.metadata.kernelspec.name
        manager = AsyncKernelManager(kernel_name=kernel, transport=TRANSPORT, ip=f"{folder}/kernel")
        client = NotebookClient(notebook, manager, timeout=CELL_TIMEOUT, resources=resources, coalesce_streams=True)
        client.execute(cleanup_kc=True, env={**os.environ, **SURROUNDINGS})
    return notebook


def page(path: Path, place: str, linked: Callable[[str], str]) -> tuple[str, dict[str, bytes]]:
    """A notebook's page, run anew, and its pictures by their places below docs/.

    Args:
        place: the page's.
        linked: gives a text of the notebook the links that it has on the site.
    """
    from nbconvert import MarkdownExporter

    notebook = executed(path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source)
    resources: dict[str, Any] = {"output_files_dir": path.stem, "unique_key": path.stem}
    text, resources = MarkdownExporter().from_notebook_node(notebook, resources)
    folder = place.rpartition("/")[0]
    shown = {name: data for name, data in resources["outputs"].items() if f"({name})" in text}  # of several formats one
    pictures = {f"{folder}/{name}": data for name, data in shown.items()}
    title, newline, rest = text.lstrip().partition("\n")
    return f"{title}{newline}\n[This page as a notebook]({path.name}), to run it.\n{rest}", pictures
