"""What is computed from a data set's files: where it is kept, under which name, and arrays as files of their own."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from distill3d.errors import UserError
from distill3d.files import write_folder

#: Part of every cache key: raise it when ``complete_depth`` or ``project_depth`` (data/depth.py) give other numbers.
CACHE_VERSION = 1


def cache_key(*inputs: object) -> str:
    """A name for what ``inputs`` (file contents, tensors, settings) lead to."""
    digest = hashlib.blake2b(str(CACHE_VERSION).encode(), digest_size=16)
    for value in inputs:
        if hasattr(value, "numpy"):  # a tensor; importing torch would cost those who have none half a gigabyte
            value = value.numpy().tobytes()  # pyright: ignore[reportAttributeAccessIssue]
        data = value if isinstance(value, bytes) else repr(value).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def cache_folder(root: Path, wanted: Path | None = None) -> Path:
    """Where completed depth, databases of objects and tables of the data set at ``root`` are kept.

    ``wanted`` where given; else ``<root>/.distill3d_cache``; else, with a warning, where the root cannot be written,
    the user's cache folder (``$XDG_CACHE_HOME/distill3d`` or ``~/.cache/distill3d``).

    Raises:
        UserError: none of them can be written.
    """
    beside = root / ".distill3d_cache"
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill3d"
    candidates = (beside, user) if wanted is None else (wanted,)
    for folder in candidates:
        if _writable(folder):
            if folder is user:
                warnings.warn(f"{beside} cannot be written; what is computed is kept in {user} instead", stacklevel=2)
            return folder
    tried = " or ".join(str(c) for c in candidates)
    raise UserError(f"cannot write what is computed to {tried}; set `cache` to a folder that can be written")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def stored_arrays(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays that ``store_arrays`` put into ``folder``, read-only views of its files; None without sound ones."""
    try:
        # Without the view, every row taken would be wrapped as a memmap again.
        return {path.stem: np.asarray(np.load(path, mmap_mode="r")) for path in sorted(folder.glob("*.npy"))} or None
    except (OSError, ValueError, EOFError):
        return None


def store_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes each array as an uncompressed .npy file; ``folder`` appears complete or not at all.

    Raises:
        OSError: the disk is full or the folder above cannot be written.
    """

    def write(part: Path) -> None:
        for name, array in arrays.items():
            np.save(part / f"{name}.npy", array)

    try:
        write_folder(folder, write)
    except OSError:
        # Another process may have stored the same arrays in the meantime: then there is nothing left to do.
        if stored_arrays(folder) is None:
            raise
