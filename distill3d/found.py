"""What a trained detector found in whatever it looked at: boxes with names, rows of numbers, a drawing in a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from distill3d.boxes import Boxes3D
from distill3d.files import refuse_foreign, write_output


@dataclass(frozen=True)
class Found:
    """Boxes, the surest first."""

    boxes: Boxes3D
    classes: tuple[str, ...]  # names of ``boxes.label``

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class of each box."""
        return [self.classes[label] for label in self.boxes.label.tolist()]

    def rows(self, fields: Iterable[str], more: Iterable[Any]) -> list[dict[str, Any]]:
        """Each object as numbers that JSON has: its name, score, centre, size, yaw and its item of ``more``, which are
        called ``fields``."""
        boxes = self.boxes
        assert boxes.score is not None
        rows = zip(self.names, boxes.score.tolist(), map(tuple, boxes.centre.tolist()),
                   map(tuple, boxes.size.tolist()), boxes.yaw.tolist(), more, strict=True)  # fmt: skip
        return [dict(zip(fields, row, strict=True)) for row in rows]


def drawing(drawn: Image.Image, path: str | Path | None) -> Image.Image:
    """The picture, written as a PNG file too where a path is given.

    Raises:
        UserError: a file that this library did not write stands there, or it cannot be written.
    """
    if path is not None:
        refuse_foreign(Path(path))
        write_output(Path(path), lambda part: drawn.save(part, "PNG"))
    return drawn
