"""What a trained detector finds around a vehicle: the boxes of a moment, their names, a drawing of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from PIL import Image

from distill3d.data.nuscenes.dataset import EgoFrame
from distill3d.data.surround import SurroundSample
from distill3d.evaluate.nuscenes_submission import sample_records
from distill3d.found import Found, drawing
from distill3d.view.distance import LEAST_SCORE


class SurroundDetection(NamedTuple):
    """One object: where it is around the vehicle (x ahead, y to the left, z up, m; of detectors that look from the
    LiDAR itself, ``ego_frame: lidar_sensor``, x to the right and y ahead)."""

    name: str  # of its class
    score: float  # 0..1, larger is surer
    centre: tuple[float, float, float]  # m, of the box
    size: tuple[float, float, float]  # m, (length, width, height)
    yaw: float  # rad, counter-clockwise from above; 0: its length points along x
    velocity: tuple[float, float] | None  # m/s, along x and y


@dataclass(frozen=True)
class SurroundPrediction(Found):
    """What a detector found in one moment, the surest first; its boxes lie in the key ego frame."""

    moment: SurroundSample  # what it looked at
    ego_frame: EgoFrame

    def __iter__(self) -> Iterator[SurroundDetection]:
        return (SurroundDetection(**row) for row in self.to_dict())

    def to_dict(self) -> list[dict[str, Any]]:
        """Each object with the fields of ``SurroundDetection``, as numbers that JSON has."""
        velocity = self.boxes.velocity
        more = [None] * len(self) if velocity is None else map(tuple, velocity.tolist())
        return self.rows(SurroundDetection._fields, more)

    def to_nuscenes(self) -> list[dict[str, Any]]:
        """The moment's entries in a submission file, in the global frame, with attributes.

        Raises:
            ValueError: a score lies outside 0..1.
        """
        moment = self.moment
        records = sample_records(moment.frame_id, self.boxes, moment.ego_to_global, self.classes)
        return msgspec.to_builtins(records)

    def draw(self, path: str | Path | None = None, least_score: float = LEAST_SCORE) -> Image.Image:
        """The cameras in their places with the boxes that are at least so sure (where any query gives a box, there are
        hundreds of others), beside the ground from above; written as a PNG file too where a path is given.

        Raises:
            UserError: a file that this library did not write stands there, or it cannot be written.
        """
        from distill3d.view.surround_picture import surround_picture, views_of

        views = views_of(self.moment)
        drawn = surround_picture(
            views, self.moment.points, self.boxes, self.classes, least_score, self.ego_frame, self.moment.frame_id
        )
        return drawing(drawn, path)
