"""One colour for each part that a detector plays, the same in figures, charts and tables.

The colours stay apart under the common colour-vision deficiencies (after Okabe and Ito, "Color Universal Design",
2008), are visible on white and on black, and charts repeat the distinction in the dash pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How one set of boxes or one curve is drawn."""

    colour: str  # #rrggbb
    dash: str = ""  # SVG stroke-dasharray; "" is a solid line
    word: str = ""  # the colour, where it can only be told


#: The name under which the annotated boxes are drawn.
TRUE = "true"
LOOKS = {
    TRUE: Look("#0fb46e", word="green"),
    "teacher": Look("#5a3fd6", "7 3", word="violet"),
    "baseline": Look("#3fb0f5", "3 2.5", word="light blue"),
    "student": Look("#e8770e", word="orange"),
}
#: Of nuScenes' classes; in drawings the name stands beside each.
CLASS_COLOURS = {
    "car": "#e8770e", "truck": "#c0478f", "construction_vehicle": "#9a6b2f", "bus": "#5a3fd6", "trailer": "#3f6f73",
    "barrier": "#7d8590", "motorcycle": "#c8281e", "bicycle": "#a08c00", "pedestrian": "#1673c4",
    "traffic_cone": "#0b9a5d",
}  # fmt: skip
#: Of a class that is none of them.
OTHER_COLOUR = "#1f242c"
#: For controls, further stages and parts without a look of their own.
SPARE_LOOKS = (
    Look("#c0478f", "10 3 2 3", word="pink"),
    Look("#7d8590", "4 2", word="grey"),
    Look("#9a6b2f", "10 3", word="brown"),
    Look("#b8a200", "1 2", word="yellow"),
    Look("#3f6f73", "6 2 1 2", word="dark teal"),
)
#: Shades of maps from dark to bright, equally far apart: cividis, which looks alike with and without a colour-vision
#: deficiency (Nuñez, Anderton and Renslow, PLoS ONE 2018), as matplotlib has it.
GROUND_RAMP = (
    "#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838",
)  # fmt: skip


def looks(parts: Sequence[str]) -> list[Look]:
    """A look for each part; one that comes a second time, or is not known, gets a spare one."""
    chosen: list[Look] = []
    spare = 0
    for index, part in enumerate(parts):
        if part in LOOKS and part not in parts[:index]:
            chosen.append(LOOKS[part])
        else:
            chosen.append(SPARE_LOOKS[spare % len(SPARE_LOOKS)])
            spare += 1
    return chosen
