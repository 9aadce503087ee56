"""One object, close up: what each detector made of it, in the image and from above."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.sample import Sample
from distill3d.view.draw import (
    LINE_WIDTH,
    NEAR,
    SUPERSAMPLE,
    TRUE_WIDTH,
    Extent,
    bird_view,
    draw_boxes,
    field_of_view,
)
from distill3d.view.gallery import BIRD_COLOURS
from distill3d.view.page import Photo, photo
from distill3d.view.palette import LOOKS, TRUE

PANEL_SIZE = (560, 420)  # px, (width, height)
#: The panel shows this many times what the boxes span, and at least this share of the image's width.
SURROUNDINGS, LEAST_SHARE = 1.5, 0.15
#: m of ground around the boxes, and at least from the object to the edge.
GROUND_MARGIN, LEAST_REACH = 2.0, 6.0


@dataclass(frozen=True)
class Closeup:
    """An object and the box that each part (baseline, student, teacher) has for it; without those that missed it."""

    truth: Boxes3D  # of one box, camera frame
    boxes: dict[str, Boxes3D]  # of one box each
    remarks: dict[str, str]  # a line under the panel of each part, also of those without a box
    title: str
    caption: str


@dataclass(frozen=True)
class CloseupFigure:
    """The object as a page shows it: a panel for each part, with the truth, and all of them from above."""

    panels: dict[str, Photo]
    bird: Photo
    closeup: Closeup
    columns: str  # of the style sheet's grid


def pictured_closeup(sample: Sample, closeup: Closeup) -> CloseupFigure:
    """The pictures of an object."""
    window = _window(sample, closeup)
    panels = {}
    for part, remark in closeup.remarks.items():
        sets = {TRUE: closeup.truth} | ({part: closeup.boxes[part]} if part in closeup.boxes else {})
        panels[part] = photo(_panel(sample, window, sets), f"{part}: {remark}")
    sets = {TRUE: closeup.truth, **{part: closeup.boxes[part] for part in closeup.remarks if part in closeup.boxes}}
    view = field_of_view(sample.camera, sample.image.shape[-1])
    above = bird_view(sample.points, sets, _extent(sets), view, PANEL_SIZE[1]).quantize(BIRD_COLOURS)
    columns = " ".join([f"{PANEL_SIZE[0] / PANEL_SIZE[1]:.3f}fr"] * len(panels) + ["1fr"])
    return CloseupFigure(panels, photo(above, "the object from above"), closeup, columns)


def _window(sample: Sample, closeup: Closeup) -> Float[Tensor, "4"]:
    """left, top, right, bottom (px of the sample's image) of what the panels show, inside the image."""
    camera, (height, width) = sample.camera, sample.image.shape[-2:]
    corners = torch.cat([boxes.corners().double()[0] for boxes in (closeup.truth, *closeup.boxes.values())])
    uv = camera.project(corners[corners[:, 2] > NEAR])[0] if (corners[:, 2] > NEAR).any() else corners[:, :2] * 0
    low, high = uv.amin(0).clamp(min=0), torch.minimum(uv.amax(0), uv.new_tensor((width, height)))
    span, middle = (high - low).clamp(min=0) * SURROUNDINGS, (low + high) / 2
    ratio = PANEL_SIZE[0] / PANEL_SIZE[1]
    across = max(float(span[0]), float(span[1]) * ratio, LEAST_SHARE * width)
    across = min(across, width, height * ratio)
    size = uv.new_tensor((across, across / ratio))
    corner = (middle - size / 2).clamp(min=0)
    corner = torch.minimum(corner, uv.new_tensor((width, height)) - size)
    return torch.cat((corner, corner + size))


def _panel(sample: Sample, window: Float[Tensor, "4"], sets: dict[str, Boxes3D]) -> Image.Image:
    """The window of the image, enlarged, with boxes."""
    from torchvision.transforms.functional import to_pil_image

    size = (PANEL_SIZE[0] * SUPERSAMPLE, PANEL_SIZE[1] * SUPERSAMPLE)
    picture = to_pil_image(sample.image.clamp(0, 1)).resize(size, Image.Resampling.BICUBIC, tuple(window.tolist()))
    zoom = size[0] / float(window[2] - window[0])
    left, top = (-zoom * window[:2]).tolist()
    camera = sample.camera.warped(sample.camera.projection.new_tensor(((zoom, 0, left), (0, zoom, top))))
    for name, boxes in sets.items():
        width = LINE_WIDTH * (TRUE_WIDTH if name == TRUE else 1)
        draw_boxes(picture, camera, boxes, LOOKS[name].colour, width=width, scale=SUPERSAMPLE)
    return picture.reduce(SUPERSAMPLE)


def _extent(sets: dict[str, Boxes3D]) -> Extent:
    """A square of ground that holds the boxes."""
    ground = torch.cat([boxes.corners().double()[0, :4] for boxes in sets.values()])[:, (0, 2)]
    low, high = ground.amin(0), ground.amax(0)
    x, z = ((low + high) / 2).tolist()
    half = max(math.ceil(float((high - low).max()) / 2 + GROUND_MARGIN), LEAST_REACH)
    return Extent(x - half, z - half, x + half, z + half)
