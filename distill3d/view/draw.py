"""Boxes in the image and seen from above, as pictures.

All boxes are in the camera frame (x right, y down, z forward; m). Pictures are drawn at ``SUPERSAMPLE`` times their
size and reduced, which smooths every edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D
from distill3d.camera import Camera
from distill3d.data.sample import Sample
from distill3d.view.palette import TRUE, looks

#: Edges are cut here (m in front of the camera): nearer points project to infinity or wrap around.
NEAR = 0.1
#: Images narrower than this (px) are enlarged by a whole factor to about this width.
FIGURE_WIDTH = 1280
TALLEST = 2  # times that width: the height to which narrow images are enlarged at most
SUPERSAMPLE = 2
LINE_WIDTH = 2.0  # px of the finished picture
HALO_WIDTH = 1.2  # px on either side of a line, so that it shows on any background
CLIP_MARGIN = 8  # px: lines are cut this far outside the image, so that their ends do not show
HALO = (10, 14, 20, 120)
TRUE_WIDTH = 1.75  # times as wide: the truth stays visible under boxes that hit it
FRONT_ALPHA, OUTLINE_ALPHA = 42, 16  # of 255: tints in the image and seen from above
FONT_SIZE = 15  # px of the finished picture
LEGEND_FONT_SIZE, KEY_LENGTH = 18, 26  # px
PLATE_ALPHA = 210  # of 255: what lies behind letters
GAP = 10  # px between the parts of a figure

#: Corners in the order of ``Boxes3D.corners``: bottom front left, rear left, rear right, front right; then the top.
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
FRONT_FACE = (0, 3, 7, 4)

RING_STEP = 10.0  # m between distance rings
LEAST_REACH, GREATEST_REACH = 30.0, 80.0  # m that a bird's-eye view looks forward
BEHIND = 1.0  # m that it shows behind the camera
BEYOND = 3.0  # m that it shows at least beyond the centre of the farthest box: more than half a car
LOOK_AHEAD = 1.0  # s of way that a box's velocity line shows
LEAST_SPEED = 0.2  # m/s; slower boxes have none: that of attributes, evaluate/nuscenes_submission.py
CAMERA_SIZE = 7  # px, half of the sign where the camera stands
BIRD_SIZE = 760  # px, width and height
GROUND_MARGIN = 0.25  # m: LiDAR points lower than this above the road are drawn as road
CAMERA_HEIGHT = 1.65  # m above the road, KITTI's sensor set-up (Geiger et al., CVPR 2012)
TALL = 2.0  # m above the road at which LiDAR points are darkest

PAPER, INK, FAINT, GRID = (255, 255, 255), (31, 36, 44), (240, 242, 245), (205, 210, 217)
POINT_ALPHA = 0.55  # of one point
ROAD_POINT, TALL_POINT = (168, 177, 188), (70, 79, 92)


#: Where a caption stands, px: left, top, right, bottom.
Plate = tuple[float, float, float, float]


@dataclass(frozen=True)
class Extent:
    """A piece of the ground: x to the right and z forward, m."""

    left: float
    near: float
    right: float
    far: float


# ------------------------------------------------------------------------------------------------------------- geometry


def clip_near(
    segments: Float[Tensor, "*s 2 3"], near: float = NEAR
) -> tuple[Float[Tensor, "*s 2 3"], Bool[Tensor, "*s"]]:
    """The parts of line segments (..., 2, 3) that lie in front of z = ``near`` (m), and which have such a part (...).

    A segment that crosses the plane ends on it; one wholly behind is returned as it was, marked False.
    """
    start, end = segments[..., 0, :], segments[..., 1, :]
    z = segments[..., 2]
    behind = z < near
    crosses = behind[..., 0] != behind[..., 1]
    run = torch.where(crosses, z[..., 1] - z[..., 0], torch.ones_like(z[..., 0]))
    cut = start + (end - start) * ((near - z[..., 0]) / run)[..., None]
    cut = torch.cat((cut[..., :2], torch.full_like(cut[..., 2:], near)), -1)
    clipped = torch.where((behind & crosses[..., None])[..., None], cut[..., None, :], segments)
    return clipped, ~behind.all(-1)


def clip_window(
    segments: Float[Tensor, "s 2 2"], width: float, height: float, margin: float = 0.0
) -> tuple[Float[Tensor, "s 2 2"], Bool[Tensor, " s"]]:
    """The parts of segments (S, 2, 2) inside 0..width x 0..height px widened by ``margin``, and which have one (S,).

    Liang and Barsky, "A new concept and method for line clipping", ACM TOG 1984.
    """
    start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
    low = start.new_tensor((-margin, -margin))
    high = start.new_tensor((width + margin, height + margin))
    direction = torch.cat((-step, step), -1)  # (S, 4): towards left, top, right, bottom
    room = torch.cat((start - low, high - start), -1)
    still = direction == 0
    crossing = room / torch.where(still, torch.ones_like(direction), direction)
    enter = torch.where(direction < 0, crossing, torch.zeros_like(crossing)).amax(-1).clamp(min=0)
    leave = torch.where(direction > 0, crossing, torch.ones_like(crossing)).amin(-1).clamp(max=1)
    inside = (enter <= leave) & ~(still & (room < 0)).any(-1)
    ends = torch.stack((enter, leave), -1)[..., None]
    return start[:, None] + ends * step[:, None], inside


def clip_polygon(corners: Float[Tensor, "k 3"], near: float = NEAR) -> Float[Tensor, "m 3"]:
    """The part of a convex polygon (K, 3) in front of z = ``near``: (M, 3), M = 0 where nothing is."""
    sides = torch.stack((corners, corners.roll(-1, 0)), 1)
    clipped, visible = clip_near(sides, near)
    points = clipped[visible].reshape(-1, 3)
    if len(points) == 0:
        return points
    repeated = (points == points.roll(1, 0)).all(-1)  # each kept corner ends one side and begins the next
    return points[~repeated]


def _in_camera_frame(boxes: Boxes3D) -> Boxes3D:
    """The boxes that have a 3D geometry, in float64 on the CPU."""
    if boxes.frame != "camera":
        raise ValueError(f"figures take boxes in the camera frame, these are in the {boxes.frame} frame")
    return boxes[boxes.label != IGNORE].to("cpu", torch.float64)


# --------------------------------------------------------------------------------------------------------- in the image


def draw_boxes(
    image: Image.Image, camera: Camera, boxes: Boxes3D, colour: str,
    *, width: float = LINE_WIDTH, scale: float = 1.0, names: Sequence[str] = (),
) -> None:  # fmt: skip
    """``draw_corners`` of boxes; with the ``names`` of labels, the class and any score stand above each.

    Raises:
        ValueError: the boxes are not in the camera frame.
    """
    boxes = _in_camera_frame(boxes)
    captions = [_caption(boxes, index, names) for index in range(len(boxes))] if names else ()
    draw_corners(image, camera, boxes.corners(), colour, width=width, scale=scale, captions=captions)


def draw_corners(
    image: Image.Image, camera: Camera, corners: Float[Tensor, "n 8 3"], colour: str | Sequence[str],
    *, width: float = LINE_WIDTH, scale: float = 1.0, captions: Sequence[str] = (), all_captions: bool = True,
) -> None:  # fmt: skip
    """Draw 3D boxes as wire frames with a tinted front face into ``image`` (RGB), in place.

    ``corners`` are camera-frame points (m) in the order of ``Boxes3D.corners``, which ``camera`` (3, 4) projects into
    ``image``. ``colour`` is one for all, or one for each. ``width`` is that of the lines in px; ``scale`` multiplies it
    and the letters. ``captions``, one for each box, stand above them; where those of nearer boxes stand they move or,
    unless ``all_captions``, are left out. Parts nearer than ``NEAR`` are cut off.
    """
    camera = Camera(camera.projection.to("cpu", torch.float64))
    corners = corners.to("cpu", torch.float64)
    draw = ImageDraw.Draw(image, "RGBA")
    edges, visible = clip_near(corners[:, torch.tensor(EDGES)])  # (n, 12, 2, 3)
    colours = [colour] * len(corners) if isinstance(colour, str) else colour
    standing: list[tuple[Sequence[float], int]] = []
    order: list[int] = corners[..., 2].mean(1).argsort(descending=True).tolist()
    for index in order:  # the nearest on top
        front = clip_polygon(corners[index, list(FRONT_FACE)])
        if len(front) > 2:
            outline = camera.project(front)[0]
            draw.polygon([tuple(p) for p in outline.tolist()], fill=(*_rgb(colours[index]), FRONT_ALPHA))
        pixels = camera.project(edges[index][visible[index]].reshape(-1, 3))[0].reshape(-1, 2, 2)
        pixels, inside = clip_window(pixels, image.width, image.height, margin=CLIP_MARGIN * scale)
        lines = pixels[inside].tolist()
        draw_lines(draw, lines, colours[index], width * scale, HALO_WIDTH * scale)
        if captions and lines:
            top = min((point for line in lines for point in line), key=lambda point: point[1])
            standing.append((top, index))
    plates: list[Plate] = []
    for at, index in reversed(standing):  # the nearest first: others make room for it
        plate = _write(draw, at, captions[index], colours[index], scale, plates, all_captions)
        plates += [] if plate is None else [plate]


def draw_lines(draw: ImageDraw.ImageDraw, lines: Sequence, colour: str, width: float, halo: float) -> None:
    """Lines with round ends over their halos."""
    for fill, extra in ((HALO, halo), (_rgb(colour), 0.0)):
        thickness = width + 2 * extra
        for (u0, v0), (u1, v1) in lines:
            draw.line((u0, v0, u1, v1), fill=fill, width=max(1, round(thickness)))
        if extra == 0:
            r = thickness / 2
            for u, v in {tuple(point) for line in lines for point in line}:
                draw.ellipse((u - r, v - r, u + r, v + r), fill=fill)


def _caption(boxes: Boxes3D, index: int, names: Sequence[str]) -> str:
    name = names[int(boxes.label[index])]
    return name if boxes.score is None else f"{name} {float(boxes.score[index]):.2f}"


def _write(
    draw: ImageDraw.ImageDraw, at: Sequence[float], text: str, colour: str, scale: float, taken: Sequence[Plate],
    make_room: bool,
) -> Plate | None:  # fmt: skip
    """White letters on a plate of the given colour, standing on ``at``: moved in where they would leave the image, up
    where they would hide a plate that is ``taken``, or, if they are not to ``make_room``, left out there."""
    font = ImageFont.load_default(FONT_SIZE * scale)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = 3 * scale
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x, y = max(min(at[0], draw.im.size[0] - width), 0.0), max(at[1] - height, 0.0)
    for plate in sorted(taken, key=lambda plate: -plate[1]):  # from below, since plates move up
        if x < plate[2] and plate[0] < x + width and y < plate[3] and plate[1] < y + height:
            if not make_room:
                return None
            y = plate[1] - height if plate[1] >= height else y
    draw.rectangle((x, y, x + width, y + height), fill=(*_rgb(colour), PLATE_ALPHA))
    draw.text((x + pad - left, y + pad - top), text, fill=PAPER, font=font)
    return (x, y, x + width, y + height)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def as_picture(image: Float[Tensor, "3 h w"]) -> Image.Image:
    """An RGB tensor in 0..1 as a picture."""
    values = (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def line_width(name: str) -> float:
    """Of the boxes of a part (px): the truth is drawn wider."""
    return LINE_WIDTH * TRUE_WIDTH if name == TRUE else LINE_WIDTH


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """The colour of each part."""
    return {name: look.colour for name, look in zip(names, looks(list(names)), strict=True)}


def image_panel(
    image: Float[Tensor, "3 h w"], camera: Camera, sets: dict[str, Boxes3D], *, names: Sequence[str] = (),
    colours: dict[str, str] | None = None,
) -> Image.Image:  # fmt: skip
    """The image (3, H, W), enlarged by a whole factor if it is small, with every set of boxes in its own colour, by
    default that of ``colours_of``.

    Raises:
        ValueError: boxes that are not in the camera frame.
    """
    colours = colours or colours_of(list(sets))

    def draw(picture: Image.Image, enlarged: Camera) -> None:
        for part, boxes in sets.items():
            width = line_width(part)
            draw_boxes(picture, enlarged, boxes, colours[part], width=width, scale=SUPERSAMPLE, names=names)

    return drawn_panel(image, camera, draw if any(len(boxes) for boxes in sets.values()) else None)


def drawn_panel(
    image: Float[Tensor, "3 h w"], camera: Camera, draw: Callable[[Image.Image, Camera], None] | None,
    width: int = FIGURE_WIDTH,
) -> Image.Image:  # fmt: skip
    """The image (3, H, W), enlarged by a whole factor to about ``width`` px if it is smaller; tall ones by less.

    ``draw`` is given the picture at ``SUPERSAMPLE`` times that size, and the camera that projects into it.
    """
    picture = as_picture(image)
    factor = max(1, min(round(width / picture.width), TALLEST * width // picture.height))
    size = (picture.width * factor, picture.height * factor)
    if draw is None:
        return picture.resize(size, Image.Resampling.BICUBIC)
    scale = factor * SUPERSAMPLE
    picture = picture.resize((size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE), Image.Resampling.BICUBIC)
    draw(picture, camera.warped(camera.projection.new_tensor(((scale, 0, 0), (0, scale, 0)))))
    return picture.reduce(SUPERSAMPLE)


# ------------------------------------------------------------------------------------------------------ seen from above


def field_of_view(camera: Camera, width: int) -> tuple[float, float]:
    """x / z of the rays through the left and right edge of an image ``width`` px wide."""
    uv = torch.tensor(((0.0, 0.0), (float(width), 0.0)), dtype=torch.float64)
    rays = Camera(camera.projection.to("cpu", torch.float64)).back_project(uv, torch.ones(2, dtype=torch.float64))
    return float(rays[0, 0]), float(rays[1, 0])


def fitting_extent(sets: dict[str, Boxes3D]) -> Extent:
    """A square of ground in front of the camera that holds the boxes: 30 to 80 m deep, in steps of 10 m."""
    far = [_in_camera_frame(boxes).centre[:, 2] for boxes in sets.values()]
    farthest = max([float(z.max()) for z in far if len(z)], default=0.0)
    reach = min(max(math.ceil((farthest + BEYOND) / RING_STEP) * RING_STEP, LEAST_REACH), GREATEST_REACH)
    half = (reach + BEHIND) / 2
    return Extent(-half, -BEHIND, half, reach)


def bird_view(
    points: Float[Tensor, "m c"] | None, sets: dict[str, Boxes3D], extent: Extent,
    view: tuple[float, float] | None = None, size: int = BIRD_SIZE, colours: dict[str, str] | None = None,
) -> Image.Image:  # fmt: skip
    """The scene from above, forward up: LiDAR points (M, >= 3) in grey, distance rings, and outlines of all boxes.

    A line runs from the middle of each box to its front, and from that of one that moves to where it will be after
    ``LOOK_AHEAD``. ``view`` holds x / z of the image's left and right edge (``field_of_view``); what lies outside is
    shaded. The picture is ``size`` px wide. ``colours`` are those of the sets, by default ``colours_of`` their names.

    Raises:
        ValueError: boxes that are not in the camera frame.
    """
    pixels_per_metre = size * SUPERSAMPLE / (extent.right - extent.left)
    height = round((extent.far - extent.near) * pixels_per_metre / SUPERSAMPLE)

    def pixel(x: float, z: float) -> tuple[float, float]:
        return (x - extent.left) * pixels_per_metre, (extent.far - z) * pixels_per_metre

    picture = Image.new("RGB", (size * SUPERSAMPLE, height * SUPERSAMPLE), FAINT if view else PAPER)
    draw = ImageDraw.Draw(picture, "RGBA")
    if view is not None:
        beyond = 2 * extent.far
        draw.polygon([pixel(0, 0), *(pixel(slope * beyond, beyond) for slope in view)], fill=PAPER)
    origin = pixel(0, 0)
    farthest = math.hypot(max(extent.far, -extent.near), max(extent.right, -extent.left))
    for ring in np.arange(RING_STEP, farthest, RING_STEP):
        r = ring * pixels_per_metre
        draw.ellipse((origin[0] - r, origin[1] - r, origin[0] + r, origin[1] + r), outline=GRID, width=SUPERSAMPLE)
    if points is not None and len(points):
        _draw_points(picture, points, extent, pixels_per_metre)
    if view is not None:
        for slope in view:
            draw.line((*origin, *pixel(slope * 2 * extent.far, 2 * extent.far)), fill=GRID, width=SUPERSAMPLE)
    colours = colours or colours_of(list(sets))
    for name, boxes in sets.items():
        boxes, colour, width = _in_camera_frame(boxes), colours[name], line_width(name) * SUPERSAMPLE
        for corner, centre in zip(boxes.corners()[:, :4].tolist(), boxes.centre.tolist(), strict=True):
            ground = [pixel(x, z) for x, _, z in corner]  # front left, rear left, rear right, front right
            front = ((ground[0][0] + ground[3][0]) / 2, (ground[0][1] + ground[3][1]) / 2)
            sides = [*zip(ground, [*ground[1:], ground[0]], strict=True), (pixel(centre[0], centre[2]), front)]
            draw.polygon(ground, fill=(*_rgb(colour), OUTLINE_ALPHA))
            draw_lines(draw, sides, colour, width, 0.0)
        for start, end in _ways(boxes).tolist():
            draw_lines(draw, [(pixel(*start), pixel(*end))], colour, width / 2, 0.0)
            (u, v), r = pixel(*end), width
            draw.ellipse((u - r, v - r, u + r, v + r), fill=_rgb(colour))
    _draw_camera(draw, origin)
    font = ImageFont.load_default(FONT_SIZE * SUPERSAMPLE)
    for ring in np.arange(RING_STEP, extent.far, RING_STEP):
        draw.text(pixel(0, ring), f"{ring:.0f} m", fill=INK, font=font, anchor="mm",
                  stroke_width=2 * SUPERSAMPLE, stroke_fill=(*PAPER, PLATE_ALPHA))  # fmt: skip
    return picture.reduce(SUPERSAMPLE)


def _ways(boxes: Boxes3D) -> Float[Tensor, "m 2 2"]:
    """Where on the ground (x, z; m) the boxes that move are now and after ``LOOK_AHEAD``."""
    if boxes.velocity is None:
        return boxes.centre.new_zeros(0, 2, 2)
    moving = boxes.velocity.norm(dim=1) > LEAST_SPEED  # NaN, an unknown velocity, does not
    start = boxes.centre[moving][:, (0, 2)]
    return torch.stack((start, start + LOOK_AHEAD * boxes.velocity[moving]), dim=1)


def _draw_camera(draw: ImageDraw.ImageDraw, origin: tuple[float, float]) -> None:
    """A small triangle where the camera stands."""
    u, v = origin
    side = CAMERA_SIZE * SUPERSAMPLE
    draw.polygon([(u, v - side), (u - side, v + side), (u + side, v + side)], fill=INK)


def _draw_points(picture: Image.Image, points: Float[Tensor, "m c"], extent: Extent, pixels_per_metre: float) -> None:
    """Blend LiDAR points into the picture: the higher above the road, the darker; the more of them, the more solid."""
    x, y, z = points[:, :3].detach().cpu().double().numpy().T
    spot = SUPERSAMPLE  # a point covers one pixel of the finished picture
    column = np.floor((x - extent.left) * pixels_per_metre / spot).astype(np.int64)
    row = np.floor((extent.far - z) * pixels_per_metre / spot).astype(np.int64)
    columns, rows = -(-picture.width // spot), -(-picture.height // spot)
    inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    cell = row[inside] * columns + column[inside]
    above_road = CAMERA_HEIGHT - y[inside]
    tallness = np.clip((above_road - GROUND_MARGIN) / (TALL - GROUND_MARGIN), 0.0, 1.0)
    count = np.bincount(cell, minlength=rows * columns)
    tall = np.bincount(cell, weights=tallness, minlength=rows * columns) / np.maximum(count, 1)
    alpha = 1 - (1 - POINT_ALPHA) ** count
    colour = np.array(ROAD_POINT) + tall[:, None] * (np.array(TALL_POINT) - np.array(ROAD_POINT))
    layer = np.concatenate((colour, 255 * alpha[:, None]), 1).round().astype(np.uint8).reshape(rows, columns, 4)
    dots = Image.fromarray(layer).resize((columns * spot, rows * spot), Image.Resampling.NEAREST)
    picture.paste(dots.convert("RGB"), (0, 0), dots.getchannel("A"))


# -------------------------------------------------------------------------------------------------------- whole figures


def frame_panels(
    sample: Sample, sets: dict[str, Boxes3D], colours: dict[str, str] | None = None
) -> tuple[list[Image.Image], Image.Image]:
    """The image panels and the bird's-eye view of one frame.

    ``sets`` maps names (``teacher``, ``baseline``, ``student``, ...) to boxes; the frame's annotated boxes are added
    under the name ``true`` unless ``sets`` has them. The first panel shows all sets but the baseline, the second the
    true boxes and the baseline; without a baseline there is one panel. ``colours`` are by default ``colours_of`` the
    names.

    Raises:
        ValueError: boxes that are not in the camera frame.
    """
    if sample.objects is not None and TRUE not in sets:
        sets = {TRUE: sample.objects.boxes, **sets}
    groups = [{name: boxes for name, boxes in sets.items() if name != "baseline"}]
    if "baseline" in sets:
        groups.append({name: boxes for name, boxes in sets.items() if name in (TRUE, "baseline")})
    panels = [image_panel(sample.image, sample.camera, group, colours=colours) for group in groups]
    view = field_of_view(sample.camera, sample.image.shape[-1])
    return panels, bird_view(sample.points, sets, fitting_extent(sets), view, colours=colours)


def frame_figure(sample: Sample, sets: dict[str, Boxes3D]) -> Image.Image:
    """One picture of a frame: the panels of ``frame_panels``, the bird's-eye view beside them, and a legend.

    Raises:
        ValueError: boxes that are not in the camera frame.
    """
    panels, bird = frame_panels(sample, sets)
    names = list(sets) if sample.objects is None or TRUE in sets else [TRUE, *sets]
    return _compose(panels, bird, names, f"frame {sample.frame_id}")


def prediction_picture(
    image: Float[Tensor, "3 h w"], camera: Camera, boxes: Boxes3D, names: Sequence[str] = KITTI_CLASSES
) -> Image.Image:
    """A picture of one detector's boxes: in the image (3, H, W), RGB in 0..1, and seen from above.

    Raises:
        ValueError: boxes that are not in the camera frame.
    """
    sets = {"student": boxes}
    panel = image_panel(image, camera, sets, names=names)
    bird = bird_view(None, sets, fitting_extent(sets), field_of_view(camera, image.shape[-1]), panel.height)
    return _compose([panel], bird, [], "")


def _compose(panels: list[Image.Image], bird: Image.Image, names: list[str], title: str) -> Image.Image:
    """Panels stacked at the left, the bird's-eye view scaled to their height at the right, names in colour below."""
    left_width = max(panel.width for panel in panels)
    column = sum(panel.height for panel in panels) + GAP * (len(panels) - 1)
    bird = bird.resize((round(bird.width * column / bird.height), column), Image.Resampling.LANCZOS)
    legend = 2 * FONT_SIZE + GAP if names or title else 0
    figure = Image.new("RGB", (left_width + bird.width + 3 * GAP, column + 2 * GAP + legend), PAPER)
    top = GAP
    for panel in panels:
        figure.paste(panel, (GAP, top))
        top += panel.height + GAP
    figure.paste(bird, (left_width + 2 * GAP, GAP))
    if legend:
        _draw_legend(figure, column + 2 * GAP, legend, names, title)
    return figure


def _draw_legend(figure: Image.Image, top: int, height: int, names: list[str], title: str) -> None:
    strip = Image.new("RGB", (figure.width * SUPERSAMPLE, height * SUPERSAMPLE), PAPER)
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(LEGEND_FONT_SIZE * SUPERSAMPLE)
    middle, x = strip.height / 2, float(GAP * SUPERSAMPLE)
    for name, look in zip(names, looks(names), strict=True):
        key = KEY_LENGTH * SUPERSAMPLE
        draw.line((x, middle, x + key, middle), fill=look.colour, width=4 * SUPERSAMPLE)
        draw.text((x + key + GAP * SUPERSAMPLE, middle), name, fill=INK, font=font, anchor="lm")
        x += key + (GAP + KEY_LENGTH) * SUPERSAMPLE + draw.textlength(name, font=font)
    draw.text((strip.width - GAP * SUPERSAMPLE, middle), title, fill=INK, font=font, anchor="rm")
    figure.paste(strip.reduce(SUPERSAMPLE), (0, top))
