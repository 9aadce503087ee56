"""Differences with their intervals, row by row: the picture that opens a page of results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill3d.view.charts import BESIDE, MINUS, Chart, Mark, Plot, line_mark, loose_axis, mark, shortened, text_mark

#: User units: as wide as a source tree's readers show pictures; rows, and the room beside the marks.
WIDTH, ROW_HEIGHT, BLOCK_GAP, NAME_WIDTH, NUMBER_WIDTH, GUTTER = 900, 18, 9, 190, 44, 32
#: About as many ticks has the axis.
TICKS = 7
#: Units that a letter of the legend and of names takes, about; the height of a line of the legend.
LETTER, LEGEND_HEIGHT = 6.4, 20
#: Kinds of marks, and which of them are filled.
KINDS = {"up": True, "down": True, "noise": False, "grey": False}


@dataclass(frozen=True)
class Interval:
    """A difference with its interval; filled where that does not hold 0."""

    name: str
    mean: float
    error: float  # half the length of the interval
    control: bool = False  # its name is set in italics
    note: str = ""  # tooltip

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return "noise" if abs(self.mean) <= self.error else "up" if self.mean > 0 else "down"


@dataclass(frozen=True)
class IntervalBlock:
    """Differences with one heading."""

    title: str
    rows: Sequence[Interval]
    grey: bool = False  # they say little
    aside: str = ""  # at the heading's end


def interval_chart(
    title: str, blocks: Sequence[IntervalBlock], *, x_label: str, keys: Sequence[tuple[str, str]] = (),
    columns: int = 2,
) -> Chart:  # fmt: skip
    """A line of marks for every difference, largest first, in two columns with one axis, or in one.

    ``keys`` are words for the kinds of marks (``KINDS``) or ``control``, in the order of their legend.
    """
    ends = [end for block in blocks for row in block.rows for end in (row.mean - row.error, row.mean + row.error)]
    axis = loose_axis([0.0, *ends], TICKS)
    width = (WIDTH - GUTTER) // 2
    whole = width if columns == 1 else WIDTH
    drawn, top = _keys(keys, whole)
    parts = [part for part in (_halves(blocks) if columns == 2 else [blocks]) if part]
    bottom = top + max(map(_height, parts), default=0)
    for index, part in enumerate(parts):
        left = index * (width + GUTTER)
        plot = Plot(axis, axis, left + NAME_WIDTH, left + width - NUMBER_WIDTH, bottom)
        for value, text in axis.ticks:
            x = plot.at_x(value)
            drawn.append(line_mark("zero" if value == 0 else "grid", x, top + 4, x, bottom))
            drawn.append(text_mark("tick", x, bottom + 14, text if value <= 0 else f"+{text}"))
        drawn.append(text_mark("label", (plot.left + plot.right) / 2, bottom + 31, x_label))
        y = top
        for block in part:
            drawn.append(_block(block, left, left + width, y, plot))
            y += _height([block])
    return Chart(title, drawn, whole, bottom + 38)


def _height(blocks: Sequence[IntervalBlock]) -> int:
    return sum(ROW_HEIGHT * (1 + len(block.rows)) + BLOCK_GAP for block in blocks)


def _halves(blocks: Sequence[IntervalBlock]) -> tuple[Sequence[IntervalBlock], Sequence[IntervalBlock]]:
    """The blocks in their order, cut where both parts become least high."""
    cut = min(range(len(blocks) + 1), key=lambda n: (max(_height(blocks[:n]), _height(blocks[n:])), -n))
    return blocks[:cut], blocks[cut:]


def _block(block: IntervalBlock, left: float, right: float, top: float, plot: Plot) -> Mark:
    """A heading, over a strip of the page's colour so that no line of the grid crosses it, and the rows below."""
    free = right - left - len(block.title) * LETTER - BESIDE
    base = top + ROW_HEIGHT - 4
    drawn = [
        mark("rect", "paper", x=left, y=top + 2, width=right - left, height=ROW_HEIGHT),
        text_mark("block", left, base, block.title, "start"),
        text_mark("aside", right, base, shortened(block.aside, free, LETTER), "end"),
    ]
    for index, row in enumerate(sorted(block.rows, key=lambda row: -row.mean)):
        y = top + ROW_HEIGHT * (index + 1.5) + 2
        name = shortened(row.name, NAME_WIDTH - 10, LETTER)
        marks = [
            text_mark("row control" if row.control else "row", plot.left - 10, y + 4.5, name, "end"),
            line_mark("interval", plot.at_x(row.mean - row.error), y, plot.at_x(row.mean + row.error), y),
            _dot(plot.at_x(row.mean), y, row.kind != "noise"),
            text_mark("tick", right, y + 4.5, f"{row.mean:+.1f}".replace("-", MINUS), "end"),
        ]
        drawn.append(mark("g", "grey" if block.grey else row.kind, note=row.note, marks=marks))
    return mark("g", "grey" if block.grey else "judged", marks=drawn)


def _dot(x: float, y: float, filled: bool) -> Mark:
    return mark("circle", "" if filled else "hollow", cx=x, cy=y, r=4.2, fill="currentColor" if filled else "")


def _keys(keys: Sequence[tuple[str, str]], room: float) -> tuple[list[Mark], int]:
    """A legend of as many lines as it takes, and where it ends."""
    drawn, x, y = [], 0.0, 14
    for kind, words in keys:
        line = 28 if kind in KINDS else 0
        if x and x + line + len(words) * LETTER > room:
            x, y = 0.0, y + LEGEND_HEIGHT
        if line:
            marks = [line_mark("interval", x, y - 4, x + 22, y - 4), _dot(x + 11, y - 4, KINDS[kind])]
            drawn.append(mark("g", kind, marks=marks))
        drawn.append(text_mark(f"tick {kind}", x + line, y, words, "start"))
        x += line + len(words) * LETTER + 18
    return drawn, y + 10 if keys else 2
