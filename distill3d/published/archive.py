"""Reading an authors' checkpoint: a pickle of 2020 to 2024, of which nothing is executed.

PyTorch's ``weights_only`` reader builds tensors and plain containers alone.  Beside them such files hold a few harmless
types, numpy's numbers and the dictionaries of argparse and Lightning; these are read as the data that they are.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from distill3d.errors import UserError
from distill3d.files import at_once, reason_of

#: How PyTorch tells an archive from its older files.
ZIP = b"PK\x03\x04"
#: What helps where a file holds more than its reader takes.
ALONE = 'save its weights alone, as torch.save({"state_dict": ...}, FILE)'
#: Where state dicts stand in a file; else the file is one.
STATES = ("model_state", "state_dict")


class Data(dict):
    """An object reduced to the values that it holds."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


#: The command lines that files hold, and dictionaries of another name.
NAMESPACE = "argparse.Namespace"
DICTIONARIES = (
    "pytorch_lightning.utilities.parsing.AttributeDict", "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)  # fmt: skip
#: Numpy's numbers, by the two names of their module, and their types.
SCALARS, DTYPE = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), "numpy.dtype"
#: The kinds of numbers that those are: letter and bytes.
NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class NumberType(Data):
    """The type of one of numpy's numbers, of which nothing but the kind is read."""

    def __init__(self, kind: str, *_: Any) -> None:
        super().__init__()
        if kind not in NUMBERS:
            raise ValueError(f"holds values of numpy's type {kind}")
        self.kind, self.order = kind, "<"

    def __setstate__(self, state: Any) -> None:
        """Of what else numpy says of the type, the order of bytes alone counts here."""
        if state[1] == ">":
            self.order = ">"


def _number(kind: NumberType, data: bytes) -> np.generic:
    return np.frombuffer(data, f"{kind.order}{kind.kind}", count=1).astype(kind.kind)[0]


def _allowed() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    allowed: list[Any] = [(Data, NAMESPACE), *((OrderedDict, name) for name in DICTIONARIES)]
    return allowed + [(_number, name) for name in SCALARS] + [(NumberType, DTYPE)]


def read_archive(path: Path) -> Any:
    """What a checkpoint file holds: tensors, plain values and containers of them.

    Raises:
        UserError: it cannot be read, is no checkpoint, is damaged, or holds a type that is not harmless; nothing in it
            was executed.
    """
    try:
        file = open(path, "rb", opener=at_once)  # noqa: SIM115 (closed below)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    with file, torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old and odd files; what matters becomes a sentence
        try:
            _test_sums(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # there is no list of what unpickling raises
            said = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", said)
    if found is None:
        raise UserError(f"{path}: is no checkpoint that PyTorch wrote, or is damaged")
    raise UserError(
        f"{path}: holds a {found[1]}, no type that is known to execute nothing, and was not loaded: where you trust "
        f"the file, {ALONE}"
    )


def _test_sums(file: IO[bytes]) -> None:
    """Tests the checksums of an archive's entries, which PyTorch writes and does not read; its older files have none.

    The entries come from PyTorch's own reader, since another takes other bytes where an archive's directory is damaged.

    Raises:
        ValueError: one differs.
    """
    if file.read(len(ZIP)) == ZIP:
        with zipfile.ZipFile(file) as archive:
            sums = {entry.filename.partition("/")[2]: entry.CRC for entry in archive.infolist()}
        file.seek(0)
        reader = torch._C.PyTorchFileReader(file)
        if sums != {name: zlib.crc32(reader.get_record(name)) for name in reader.get_all_records()}:
            raise ValueError("a checksum differs")
    file.seek(0)


def state_of(archive: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, under its names there.

    Raises:
        UserError: there is none.
    """
    for name in STATES:
        if isinstance(archive, Mapping) and isinstance(archive.get(name), Mapping):
            archive = archive[name]
            break
    if not isinstance(archive, Mapping):
        raise UserError(f"{path}: holds a {type(archive).__name__}, expected a dictionary with a network's weights")
    state = {str(name): value for name, value in archive.items() if isinstance(value, Tensor)}
    if not state:
        there = ", ".join(map(str, list(archive)[:6])) or "no entry"
        raise UserError(
            f"{path}: no weights stand where they are looked for, on the first level or below {' or '.join(STATES)}, "
            f"there are {there}: where they stand elsewhere, {ALONE}"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "a quantised" if value.is_quantized else "an empty" if value.is_meta else "a sparse"
            raise UserError(f"{path}: {name} is {kind} tensor, expected one that holds all of its numbers")
    return state
