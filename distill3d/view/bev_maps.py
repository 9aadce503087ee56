"""Maps of the ground that detectors make of a scene, as pictures in a row: who sees what, and where.

Maps and outlines are in the LiDAR's frame, of surround views in the vehicle's (x forward, y left; m).  Pictures show
forward upwards and left at the left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from distill3d.detectors.base import BevGeometry
from distill3d.view.charts import MINUS
from distill3d.view.draw import HALO, INK, PAPER, RING_STEP, SUPERSAMPLE, draw_lines
from distill3d.view.page import Photo, photo
from distill3d.view.palette import GROUND_RAMP, LOOKS, TRUE

#: Pictures are about this wide (px): cells are enlarged by a whole factor.
MAP_WIDTH = 440
#: px of the picture, which a page shows at half its size or a little more.
MAP_FONT_SIZE, TICK_LENGTH, TEXT_GAP = 24, 9, 5
OUTLINE_WIDTH, OUTLINE_HALO = 3.5, 1.0
#: A picture's colours: shades of the ramp, and what lines and letters add.
SHADES, MAP_COLOURS = 64, 128
#: Ticks to the side carry a number at every second one: there is less room than ahead.
SIDE_NUMBERS = 2
#: What is brightest: the largest value but for this share of a map's cells, for single cells outshine all others.
DAZZLING = 0.005


@dataclass(frozen=True)
class GroundMap:
    """A map of one frame, and the value from which on cells are brightest; 0 and less is darkest."""

    values: Float[np.ndarray, "y x"]
    geometry: BevGeometry
    brightest: float = 1.0

    def shades(self) -> UInt8[np.ndarray, "y x 3"]:
        """The cells' colours."""
        return ramp(self.values / self.brightest if self.brightest > 0 else np.zeros_like(self.values))


@dataclass(frozen=True)
class FrameMaps:
    """Maps of one frame, each the mean over its channels, on one grid."""

    frame: str
    reason: str  # why it is shown
    maps: dict[str, Float[np.ndarray, "y x"]]  # by the names of ``MAPS``
    outlines: Float[np.ndarray, "n 4 2"]  # of the labelled boxes: front left, rear left, rear right, front right; m
    distances: dict[tuple[str, str], float]  # |a - b| / |b| over all channels and cells, by the names of a and b


@dataclass(frozen=True)
class BevMaps:
    """The maps of some frames, as a student and those who taught it see them."""

    geometry: BevGeometry
    frames: tuple[FrameMaps, ...]
    stages: dict[str, str]  # the stage that each of teacher, assistant and student is
    inputs: dict[str, str]  # what each of them looks at, a ``Modality``
    residual: str  # how R is made of F_T and F_A


@dataclass(frozen=True)
class Kind:
    """A map in the papers' words."""

    symbol: str  # what stands behind an underscore is a subscript
    title: str
    owner: str | None = None  # whose it is, a key of ``BevMaps.stages``


#: The kinds of maps in the order of a row: those of one scale stand together.
MAPS = {
    "teacher": Kind("F_T", "teacher", "teacher"),
    "assistant": Kind("F_A", "assistant", "assistant"),
    "visual": Kind("V", "student", "student"),
    "residual": Kind("R", "residual"),
    "spatial": Kind("P", "student, second map", "student"),
}
#: What a map is made of, by the owner's input.
SOURCES = {
    "points": "the LiDAR scan", "rgb": "the picture alone", "rgb+gt_depth": "the picture and the true depth",
    "rgb+object_depth": "the picture and the labelled objects' depths",
    "rgb+points": "the picture and the LiDAR scan",
}  # fmt: skip
#: Maps that share a scale, which the first of them that is there sets.
SCALES = (("teacher", "assistant", "visual"), ("residual", "spatial"))
#: Whose distance from what is told, in order.
COMPARED = (("visual", "assistant"), ("visual", "teacher"), ("spatial", "residual"))


# --------------------------------------------------------------------------------------------------------- the pictures


def ramp(values: Float[np.ndarray, "*s"]) -> UInt8[np.ndarray, "*s 3"]:
    """Colours of values, 0 darkest and 1 brightest; values beyond are cut, those that are not finite are 0."""
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in GROUND_RAMP], dtype=np.float64)
    share = np.round(np.clip(np.nan_to_num(values), 0.0, 1.0) * (SHADES - 1)) / (SHADES - 1)
    place = share * (len(stops) - 1)
    below = np.minimum(place.astype(np.int64), len(stops) - 2)
    part = (place - below)[..., None]
    return np.round(stops[below] * (1 - part) + stops[below + 1] * part).astype(np.uint8)


def map_picture(
    values: Float[np.ndarray, "y x"], geometry: BevGeometry, outlines: Float[np.ndarray, "n 4 2"], brightest: float
) -> Image.Image:
    """A map of the ground (Y, X) on the grid ``geometry``, forward up, with outlines of boxes and an axis in metres.

    0 and less is darkest, ``brightest`` and more is brightest.  The line within an outline runs to the box's front.

    Raises:
        ValueError: the map is not of the LiDAR's or the vehicle's frame with axes (y, x), or its cells are not the
            geometry's.
    """
    x0, y0, x1, y1 = geometry.extent
    if geometry.frame not in ("lidar", "ego") or geometry.axes != ("y", "x"):
        raise ValueError(
            f"maps are drawn in the LiDAR's or the vehicle's frame with axes (y, x), this one lies on {geometry}"
        )
    cells = (round((y1 - y0) / geometry.cell), round((x1 - x0) / geometry.cell))
    if values.shape != cells:
        raise ValueError(f"a map of {values.shape} cells does not lie on a grid of {cells}")
    shades = GroundMap(values, geometry, brightest).shades()
    zoom = max(1, round(MAP_WIDTH / cells[0])) * SUPERSAMPLE
    upright = np.ascontiguousarray(shades.transpose(1, 0, 2)[::-1, ::-1])  # rows far to near, columns left to right
    picture = Image.fromarray(upright).resize((cells[0] * zoom, cells[1] * zoom), Image.Resampling.NEAREST)
    scale = zoom / geometry.cell  # px for a metre
    draw = ImageDraw.Draw(picture, "RGBA")
    for corners in outlines.tolist():
        ground = [((y1 - y) * scale, (x1 - x) * scale) for x, y in corners]
        middle = (sum(u for u, _ in ground) / 4, sum(v for _, v in ground) / 4)
        front = ((ground[0][0] + ground[3][0]) / 2, (ground[0][1] + ground[3][1]) / 2)
        sides = [*zip(ground, [*ground[1:], ground[0]], strict=True), (middle, front)]
        draw_lines(draw, sides, LOOKS[TRUE].colour, OUTLINE_WIDTH * SUPERSAMPLE, OUTLINE_HALO * SUPERSAMPLE)
    _draw_axes(draw, picture.size, geometry, scale)
    return picture.reduce(SUPERSAMPLE)


def _draw_axes(draw: ImageDraw.ImageDraw, size: tuple[int, int], geometry: BevGeometry, scale: float) -> None:
    """Ticks every 10 m: ahead along the left edge, to either side along the bottom edge."""
    x0, y0, x1, y1 = geometry.extent
    font = ImageFont.load_default(MAP_FONT_SIZE * SUPERSAMPLE)
    tick, gap, line = TICK_LENGTH * SUPERSAMPLE, TEXT_GAP * SUPERSAMPLE, 2 * SUPERSAMPLE

    def write(at: tuple[float, float], metres: float, anchor: str) -> None:
        draw.text(at, f"{metres:.0f} m", fill=PAPER, font=font, anchor=anchor, stroke_width=line,
                  stroke_fill=(*INK, HALO[3]))  # fmt: skip

    for x in np.arange(np.ceil(x0 / RING_STEP), x1 / RING_STEP) * RING_STEP:
        v = (x1 - x) * scale
        draw.line((0, v, tick, v), fill=PAPER, width=line)
        half = MAP_FONT_SIZE * SUPERSAMPLE / 2
        if half < v < size[1] - 4 * half:  # the corner is the other axis's
            write((tick + gap, v), x, "lm")
    steps = np.arange(np.ceil(y0 / RING_STEP), y1 / RING_STEP)
    for y in steps * RING_STEP:
        u = (y1 - y) * scale
        draw.line((u, size[1] - tick, u, size[1]), fill=PAPER, width=line)
        if round(y / RING_STEP) % SIDE_NUMBERS == 0:
            write((u, size[1] - tick - gap), abs(y), "mb")


# ------------------------------------------------------------------------------------------------------------- the page


@dataclass(frozen=True)
class Scale:
    """What the brightest colour means, for all frames and all kinds of maps that share it."""

    kinds: tuple[str, ...]  # those that there are; the first sets the end
    end: float
    dazzled: bool  # whether ``DAZZLING`` of the first kind's cells lie beyond the end

    @property
    def ends(self) -> str:
        """What its last colour means."""
        symbol = MAPS[self.kinds[0]].symbol
        return f"{100 * (1 - DAZZLING):g} % of {symbol} lie below" if self.dazzled else f"the largest of {symbol}"


def scales(frames: Sequence[FrameMaps]) -> list[Scale]:
    """A scale for each of ``SCALES`` that frames have maps of.

    It ends where ``DAZZLING`` of the first kind's cells lie beyond it, or at the largest where nearly all are 0.
    """
    found = []
    for kinds in SCALES:
        there = tuple(kind for kind in kinds if any(kind in one.maps for one in frames))
        if there:
            cells = np.concatenate([one.maps[there[0]].ravel() for one in frames if there[0] in one.maps])
            found.append(Scale(there, *end_of_scale(cells)))
    return found


def end_of_scale(cells: Float[np.ndarray, " n"]) -> tuple[float, bool]:
    """The value of the brightest colour, and whether ``DAZZLING`` of the cells lie beyond it: where nearly all are 0 it
    is the largest."""
    end = float(np.quantile(cells, 1 - DAZZLING))
    return (end, True) if end > 0 else (float(cells.max()), False)


@dataclass(frozen=True)
class GroundFigure:
    """A frame as a page shows it: a row of its maps, and what they are apart."""

    frame: str
    reason: str
    panels: list[tuple[str, str, Photo]]  # symbol, whose, picture
    apart: list[str]


def ground_section(maps: BevMaps, classes: str) -> dict[str, Any]:
    """What the template of maps asks for; ``classes`` is what the outlines hold."""
    shared = scales(maps.frames)
    end_of = {kind: scale.end for scale in shared for kind in scale.kinds}
    goals = {a: b for a, b in reversed(COMPARED) if {a, b} <= end_of.keys()}  # an assistant goes before the teacher
    return {
        "meanings": {MAPS[kind].symbol: _meaning(kind, maps) for kind in MAPS if kind in end_of},
        "learned": [(MAPS[a].symbol, MAPS[goals[a]].symbol) for a in MAPS if a in goals],
        "classes": classes,
        "scales": [([MAPS[kind].symbol for kind in one.kinds], f"{one.end:.2g}", one.ends) for one in shared],
        "ramp": ",".join(GROUND_RAMP),
        "outline": LOOKS[TRUE].colour,
        "figures": [_figure(one, maps, end_of) for one in maps.frames],
    }


def _meaning(kind: str, maps: BevMaps) -> str:
    """What a kind of map is."""
    if kind == "residual":
        return maps.residual
    owner = MAPS[kind].owner or ""
    if kind == "spatial":
        return f"the {owner}'s second, which is to become {MAPS['residual'].symbol}"
    return f"the {owner}'s, of {SOURCES.get(maps.inputs[owner], maps.inputs[owner])}"


def _figure(one: FrameMaps, maps: BevMaps, end_of: dict[str, float]) -> GroundFigure:
    panels = []
    for kind, about in MAPS.items():
        if kind in one.maps:
            owner = maps.stages.get(about.owner or "")
            name = about.title if owner in (None, about.title) else f"{about.title} ({owner})"
            picture = map_picture(one.maps[kind], maps.geometry, one.outlines, end_of[kind]).quantize(MAP_COLOURS)
            panels.append((about.symbol, name, photo(picture, f"Frame {one.frame} from above: map of {name}")))
    symbols = {(a, b): (MAPS[a].symbol, MAPS[b].symbol) for a, b in one.distances}
    apart = [
        f"|{a} {MINUS} {b}| / |{b}| = {one.distances[pair]:.2f}"
        for pair, (a, b) in symbols.items() if math.isfinite(one.distances[pair])
    ]  # fmt: skip
    return GroundFigure(one.frame, one.reason, panels, apart)
