"""What is wrong with a text file: parsers collect all faults, readers stop at the first, ``check`` lists them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from distill3d.errors import UserError


class Fault(NamedTuple):
    """What is wrong with a file, and on which line (from 1) if it is one line's fault."""

    line: int | None
    sentence: str


def refuse_faults(path: Path, faults: list[Fault]) -> None:
    """Stops at the first fault of a file.

    Raises:
        UserError: there is one.
    """
    if faults:
        where = path if faults[0].line is None else f"{path}:{faults[0].line}"
        raise UserError(f"{where}: {faults[0].sentence}")


def number_or_nan(text: str) -> float:
    """The number that a text stands for; NaN where it stands for none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
