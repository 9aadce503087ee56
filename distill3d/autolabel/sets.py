"""What the layouts of labelled sets have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from distill3d.boxes import Boxes3D
from distill3d.errors import UserError


class Found(NamedTuple):
    """One box that became a label."""

    label: str  # its class
    distance: float  # m, on the ground
    score: float


class LabelledSet(ABC):
    """Frames to be labelled, and a folder of their layout that holds them and their labels."""

    dataset: Any  # in the form in which the detector looks at its frames
    identity: str  # of the data that the detector was trained on
    frames: list[str]  # the first ones of ``dataset``, which are labelled

    @abstractmethod
    def link(self, out: Path) -> None:
        """Links what the new folder has in common with the data.

        Raises:
            UserError: that is not there, or cannot be linked.
        """

    @abstractmethod
    def is_done(self, out: Path, frame: str) -> bool:
        """Whether a frame is labelled."""

    @abstractmethod
    def write(self, out: Path, batch: Any, boxes: Boxes3D) -> None:
        """The labels of a batch of one frame, as ``Detector.decode`` gave them."""

    @abstractmethod
    def finish(self, out: Path) -> None:
        """What can be written once all frames are labelled: with it the set can be trained on."""

    @abstractmethod
    def found(self, out: Path) -> Iterator[Found]:
        """The boxes of all frames, as they were written."""


def link(path: Path, target: Path) -> None:
    """A symbolic link, unless it is there already.

    Raises:
        UserError: something else is there, or it cannot be made.
    """
    target = Path(os.path.abspath(target))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_symlink() or Path(os.readlink(path)) != target:
            path.symlink_to(target, target_is_directory=target.is_dir())
    except FileExistsError:
        raise UserError(f"{path}: is there already, and no link to {target}: give another --out") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be linked to {target} ({error.strerror})") from None
