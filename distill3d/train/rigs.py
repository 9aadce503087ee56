"""Which rigs of cameras a detector can look at, beside the one that it was trained on.

BEVDepth, BEVDet and BEVFusion bring each picture to the ground by its calibration and add up what comes there: any
cameras will do, in any number and order.  So they will for a BEVFormer without codes (``cameras=0``); others have a
code for each place in the list, which means the camera that stood there in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill3d.data.nuscenes.dataset import CAMERAS
from distill3d.detectors import DetectorConfig, detector_name
from distill3d.errors import UserError


def cameras_of(card: dict[str, Any]) -> tuple[str, ...]:
    """The cameras that the weights of a card were trained on, in order; nuScenes' where it says none."""
    return tuple(card.get("cameras") or CAMERAS)


def codes_of(config: DetectorConfig) -> int:
    """The cameras for which a detector has a code each; 0 where it tells them apart by calibration alone."""
    return getattr(config, "cameras", 0)


def refuse_other_number(stage: str, config: DetectorConfig, cameras: Sequence[str]) -> None:
    """Before training: a detector with codes needs one for each camera of the data set.

    Raises:
        UserError: it has more or fewer.
    """
    codes = codes_of(config)
    if codes and codes != len(cameras):
        option = f"--stages.{stage.replace('_', '-')}.detector.cameras"
        raise UserError(
            f"stage {stage!r}: its detector has codes for {codes} cameras, the data set has {len(cameras)} "
            f"({', '.join(cameras)}): give {option} {len(cameras)}, or 0 for none"
        )


def other_rig(source: object, card: dict[str, Any], cameras: Sequence[str], now: str) -> str:
    """What is to be known where weights look at other cameras than in training, which they may; "" where they do not.
    ``now`` says what is done with them, as "is evaluated on"."""
    trained = cameras_of(card)
    return (
        ""
        if tuple(cameras) == trained
        else f"{source} was trained on {', '.join(trained)} and {now} {', '.join(cameras)}"
    )


def refuse_other_rig(source: object, config: DetectorConfig, card: dict[str, Any], cameras: Sequence[str]) -> None:
    """Before a finished detector looks at the cameras ``cameras``; ``source`` is where it was found.

    Raises:
        UserError: it has a code for each camera of training, and these are other ones or in another order.
    """
    trained = cameras_of(card)
    if codes_of(config) and tuple(cameras) != trained:
        raise UserError(
            f"{source}: its {detector_name(config)} has a code for each of the cameras {', '.join(trained)} in this "
            f"order, and cannot be shown {', '.join(cameras)}"
        )
