"""One picture of a moment of surround views: the cameras in their places, the ground from above, boxes by class.

The cameras that look ahead stand above those that look back, from the left of the vehicle to its right.  A box has its
class's colour everywhere; class and score stand above it in the cameras' pictures, save where those of a nearer one do,
and seen from above less sure boxes are paler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import Camera
from distill3d.data.augment.lidar import carry
from distill3d.data.nuscenes.dataset import EgoFrame
from distill3d.data.surround import SurroundSample
from distill3d.view.draw import GAP, INK, PAPER, PLATE_ALPHA, SUPERSAMPLE, as_picture, draw_corners
from distill3d.view.palette import CLASS_COLOURS, OTHER_COLOUR
from distill3d.view.surround_gallery import (
    AHEAD,
    camera_name,
    class_words,
    ground_view,
    key_camera,
    looking_ahead,
    points_ahead,
)

#: px that a camera's picture is wide in the drawing; a taller one than that is as high.
TILE = 640
#: px, the least height of the view from above, where there are few cameras.
LEAST_GROUND = 640
#: Of lines and letters in a camera's picture, for it is small.
PICTURE_SCALE = 0.8
#: Scores from which boxes are drawn fully, half-way and faintly from above: how much of their colour is left.
STRENGTHS = ((0.5, 1.0), (0.3, 0.65), (-math.inf, 0.35))
NAME_SIZE, LEGEND_SIZE, LEGEND_HEIGHT, KEY_SIZE = 15, 18, 36, 14  # px of the finished picture


@dataclass(frozen=True)
class View:
    """What one camera saw."""

    picture: Image.Image
    camera: Camera  # (3, 4), from its own frame to px of the picture
    to_ego: Float64[Tensor, "4 4"]
    name: str = ""


def views_of(moment: SurroundSample) -> list[View]:
    """The key frame's pictures as a detector sees them; none where it looks at none."""
    images = () if moment.images is None else moment.images[0]
    return [
        View(as_picture(image), key_camera(moment, index), moment.camera_to_ego[0, index], name)
        for index, (image, name) in enumerate(zip(images, moment.cameras or [""] * len(images), strict=True))
    ]


def whole_views(moment: SurroundSample, pictures: Sequence[Image.Image], names: Sequence[str]) -> list[View]:
    """The key frame's pictures as their files have them."""
    return [
        View(picture, Camera(moment.intrinsics[0, index, :3]), moment.camera_to_ego[0, index], name)
        for index, (picture, name) in enumerate(zip(pictures, names, strict=True))
    ]


def surround_picture(
    views: Sequence[View], points: Float[Tensor, "m c"] | None, boxes: Boxes3D, classes: Sequence[str],
    least_score: float, ego_frame: EgoFrame, title: str = "",
) -> Image.Image:  # fmt: skip
    """The drawing of one moment.

    Args:
        points: of a scan, in the key ego frame; the ground shows them in grey.
        boxes: in the key ego frame, with scores; those less sure than ``least_score`` are left out.
        classes: names of the boxes' labels.
        title: stands below.

    Raises:
        ValueError: the boxes are of another frame or without scores.
    """
    if boxes.frame != "ego" or boxes.score is None:
        raise ValueError("expected boxes of the ego frame with scores")
    boxes = boxes[boxes.score >= least_score].to("cpu", torch.float64)
    boxes, points = looking_ahead(boxes, ego_frame), points_ahead(points, ego_frame)
    if ego_frame == "lidar_sensor":
        views = [replace(view, to_ego=AHEAD @ view.to_ego.to(AHEAD)) for view in views]
    labels: list[int] = boxes.label.tolist()
    names = [classes[label] for label in labels]
    rows = [[_panel(view, boxes, names) for view in row] for row in in_places(views)]
    height = sum(max(panel.height for panel in row) + GAP for row in rows) - GAP
    ground = _ground(points, boxes, names, max(height, LEAST_GROUND))
    width = max((sum(panel.width + GAP for panel in row) for row in rows), default=0)
    legend = _legend(width + ground.width + 2 * GAP, names, least_score, title)
    body = max(height, ground.height) + 2 * GAP
    figure = Image.new("RGB", (legend.width, body + legend.height), PAPER)
    figure.paste(legend, (0, body))
    top = GAP
    for row in rows:
        left = GAP + (width - sum(panel.width + GAP for panel in row)) // 2
        for panel in row:
            figure.paste(panel, (left, top))
            left += panel.width + GAP
        top += max(panel.height for panel in row) + GAP
    figure.paste(ground, (GAP + width, GAP))
    return figure


def in_places(views: Sequence[View]) -> list[list[View]]:
    """The cameras that look ahead, then those that look back, each row from the vehicle's left to its right; a row
    without any is left out."""

    def heading(view: View) -> float:
        """deg, of the optical axis from straight ahead, to the left; -180..180."""
        x, y = view.to_ego[:2, 2].tolist()
        return math.degrees(math.atan2(y, x))

    ahead = sorted((view for view in views if abs(heading(view)) <= 90), key=heading, reverse=True)
    behind = sorted((view for view in views if abs(heading(view)) > 90), key=lambda view: heading(view) % 360)
    return [row for row in (ahead, behind) if row]


def _panel(view: View, boxes: Boxes3D, names: Sequence[str]) -> Image.Image:
    """A camera's picture in the drawing's size, with the boxes."""
    scale = TILE / max(view.picture.size)
    size = [max(1, round(side * scale)) for side in view.picture.size]
    picture = view.picture.resize((size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), Image.Resampling.BICUBIC)
    across, down = (a / b for a, b in zip(picture.size, view.picture.size, strict=True))
    projection = view.camera.projection.to(torch.float64)
    camera = Camera(projection).warped(projection.new_tensor(((across, 0, 0), (0, down, 0))))
    corners = carry(boxes.corners().reshape(-1, 3), torch.linalg.inv(view.to_ego.to(torch.float64)))
    assert boxes.score is not None
    captions = [f"{class_words(n)} {score:.2f}" for n, score in zip(names, boxes.score.tolist(), strict=True)]
    draw_corners(
        picture, camera, corners.reshape(-1, 8, 3), [colour_of(name) for name in names],
        scale=PICTURE_SCALE * SUPERSAMPLE, captions=captions, all_captions=False,
    )  # fmt: skip
    if view.name:
        draw, font = ImageDraw.Draw(picture, "RGBA"), ImageFont.load_default(NAME_SIZE * SUPERSAMPLE)
        text, pad = camera_name(view.name), 4 * SUPERSAMPLE
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        place = (0, picture.height - (bottom - top) - 2 * pad)
        draw.rectangle((*place, right - left + 2 * pad, picture.height), fill=(*INK, PLATE_ALPHA))
        draw.text((pad - left, place[1] + pad - top), text, fill=PAPER, font=font)
    return picture.reduce(SUPERSAMPLE)


def _ground(points: Float[Tensor, "m c"] | None, boxes: Boxes3D, names: Sequence[str], size: int) -> Image.Image:
    """The boxes from above, the surest on top."""
    assert boxes.score is not None
    sets: dict[str, Boxes3D] = {}
    colours: dict[str, str] = {}
    upper = math.inf
    for least, strength in STRENGTHS:
        for name in dict.fromkeys(names):
            band = (boxes.score >= least) & (boxes.score < upper)
            of_class = torch.tensor([n == name for n in names], dtype=torch.bool)
            key = f"{name} {strength}"
            sets[key], colours[key] = boxes[band & of_class], _paler(colour_of(name), strength)
        upper = least
    return ground_view(points, dict(reversed(sets.items())), colours, size)


def _legend(width: int, names: Sequence[str], least_score: float, title: str) -> Image.Image:
    """How many boxes of which class are drawn, and what the drawing is of: a strip ``width`` px wide, of as
    many lines as are needed."""
    font, gap, key = ImageFont.load_default(LEGEND_SIZE * SUPERSAMPLE), GAP * SUPERSAMPLE, KEY_SIZE * SUPERSAMPLE
    room = width * SUPERSAMPLE - 2 * gap
    known = list(CLASS_COLOURS)
    classes = sorted(set(names), key=lambda name: known.index(name) if name in known else len(known))
    what = f"boxes of score {least_score:g} and above" if names else f"no box of score {least_score:g} or above"
    entries = [(f"{class_words(name)} {names.count(name)}", colour_of(name)) for name in classes]
    entries += [(text, None) for text in (what, title) if text]
    placed: list[tuple[float, int, str, str | None]] = []  # where from the left, on which line, what
    x, line = 0.0, 0
    for text, colour in entries:
        long = font.getlength(text) + (0 if colour is None else key + gap / 2)
        if x > 0 and x + long > room:
            x, line = 0.0, line + 1
        placed.append((x, line, text, colour))
        x += long + 2 * gap
    strip = Image.new("RGB", (width * SUPERSAMPLE, (line + 1) * LEGEND_HEIGHT * SUPERSAMPLE), PAPER)
    draw = ImageDraw.Draw(strip)
    for x, line, text, colour in placed:
        left, middle = gap + x, (line + 0.5) * LEGEND_HEIGHT * SUPERSAMPLE
        if colour is not None:
            draw.rectangle((left, middle - key / 2, left + key, middle + key / 2), fill=colour)
            left += key + gap / 2
        draw.text((left, middle), text, fill=INK, font=font, anchor="lm")
    return strip.reduce(SUPERSAMPLE)


def colour_of(name: str) -> str:
    """A class's colour."""
    return CLASS_COLOURS.get(name, OTHER_COLOUR)


def _paler(colour: str, strength: float) -> str:
    """The colour mixed with that of paper."""
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(strength * c + (1 - strength) * p) for c, p in zip(channels, PAPER, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
