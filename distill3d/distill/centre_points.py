"""Where detectors see objects around the vehicle, and where these places lie on maps of the ground.

Detections are as many in every sample: the queries of each decoder layer of a DETR-like detector, or the best peaks of
a centre head, which has one layer.  A peak is a cell whose best class is at least as probable as those of the eight
cells around it (``find_peaks``); its box is that of the task of its best class, and its soft scores are the
probabilities of all classes in that cell, whatever their task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry, Detector, Outputs
from distill3d.errors import UserError
from distill3d.layers.heads.centre_head import BOX_BRANCHES, CentreHeadConfig
from distill3d.layers.image.heatmap import find_peaks, gather_cells
from distill3d.transfers import constant

#: What a DETR-like detector of surround views predicts: class logits and box codes of every decoder layer.
QUERY_LOGITS, QUERY_CODES = "logits", "codes"
#: Where the numbers of ``Detections.code`` stand in such a box code (BEVFormer's): x, y, log width, log length, z, log
#: height, sine and cosine of the yaw, velocity.
IN_QUERY_CODE = (0, 1, 4, 3, 2, 5, 6, 7, 8, 9)


@dataclass(frozen=True)
class Detections:
    """What a detector says of L layers of Q boxes, in the (augmented) key ego frame."""

    logits: Float[Tensor, "b l q k"]  # of its ``classes``
    #: x, y, z of the centre (m), the logarithms of length, width and height (m), sine and cosine of the yaw, not
    #: necessarily of length 1, and the velocity (m/s).
    code: Float[Tensor, "b l q 10"]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Places:
    """Points about which something is asked, those of L decoder layers one after the other; no gradient."""

    centre: Float[Tensor, "b l n 3"]  # m, (augmented) key ego frame
    counted: Bool[Tensor, "b n"] | None = None  # in every layer; None: all


# -------------------------------------------------------------------------------------------------------- who sees what


def of_queries(outputs: Outputs, detector: Detector | None) -> Detections | None:
    """The sets of a DETR-like detector's decoder layers, or None where it is none.

    It predicts ``QUERY_LOGITS`` (B, L, Q, K), of ``config.classes``, and ``QUERY_CODES`` (B, L, Q, 10) in the order of
    ``IN_QUERY_CODE``.
    """
    said = outputs.predictions
    if QUERY_LOGITS not in said or QUERY_CODES not in said:
        return None
    assert detector is not None
    order = constant(IN_QUERY_CODE, said[QUERY_CODES], torch.int64)
    return Detections(said[QUERY_LOGITS], said[QUERY_CODES].index_select(-1, order), detector.config.classes)


def of_peaks(predictions: dict[str, Tensor], head: CentreHeadConfig, count: int) -> Detections:
    """The ``count`` best peaks of a centre head's ``heatmap`` (B, K, Y, X) and ``box`` (B, T, 10, Y, X), best first; as
    many as cells where these are fewer.  Cells that are no peak fill up where there are too few."""
    best = predictions["heatmap"].detach().amax(1, keepdim=True)
    _, _, cell = find_peaks(best.sigmoid(), count)
    logits = gather_cells(predictions["heatmap"], cell)
    task = constant(head.task_of_class, cell)[logits.argmax(-1)]
    codes = gather_cells(predictions["box"].flatten(1, 2), cell).unflatten(-1, (len(head.tasks), -1))
    code = codes.gather(2, task[..., None, None].expand(-1, -1, 1, codes.shape[-1]))[:, :, 0]
    offset, rest = code.split((BOX_BRANCHES["reg"], code.shape[-1] - BOX_BRANCHES["reg"]), dim=-1)
    width = best.shape[-1]
    corner = torch.stack((cell % width, cell // width), dim=-1)
    place = (corner + offset) * head.cell + constant(head.extent[:2], offset)
    return Detections(logits[:, None], torch.cat((place, rest), dim=-1)[:, None], head.classes)


def detections(outputs: Outputs, detector: Detector | None, peaks: int, who: str) -> Detections:
    """The sets of a DETR-like detector or the ``peaks`` best peaks of one with a centre head.

    Raises:
        UserError: it is neither.
    """
    found = of_queries(outputs, detector)
    if found is not None:
        return found
    head = getattr(getattr(detector, "config", None), "head", None)
    if not isinstance(head, CentreHeadConfig):
        raise UserError(
            f"the {who} must predict boxes around the vehicle, by queries ({QUERY_LOGITS!r} and {QUERY_CODES!r}) or "
            f"with a centre head; it predicts {', '.join(outputs.predictions) or 'nothing'}"
        )
    return of_peaks(outputs.predictions, head, peaks)


def object_places(batch: SurroundBatch) -> Places:
    """The centres of the annotated objects, as one layer.

    Raises:
        UserError: the batch has no annotations.
    """
    if batch.objects is None:
        raise UserError("to look at the objects' centres needs annotations; this split of the data set has none")
    return Places(batch.objects.centre[:, None], batch.objects.present)


# ------------------------------------------------------------------------------------------------------ places on maps


def places_on(centre: Float[Tensor, "*s d"], geometry: BevGeometry) -> Float[Tensor, "*s 2"]:
    """Where points (m) lie on a map whose rows run along y: (x, y), each from 0 to 1 over the map."""
    low, high = constant(geometry.extent, centre).view(2, 2)
    return (centre[..., :2] - low) / (high - low)


def class_order(classes: tuple[str, ...], given: tuple[str, ...], who: str) -> list[int]:
    """Where each of ``classes`` stands among those that ``who`` knows.

    Raises:
        UserError: one is missing.
    """
    if missing := [name for name in classes if name not in given]:
        raise UserError(f"the student knows the class {missing[0]!r}, the {who} only {', '.join(given)}")
    return [given.index(name) for name in classes]
