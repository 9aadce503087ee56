"""Charts as SVG, inline or as files: no script, no font and no style from elsewhere.

Text takes the page's font; axes and grid take the style sheet's classes, so that a chart follows the page's colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from distill3d.view.palette import Look
from distill3d.view.stylesheet import BASICS, CHARTS

WIDTH, HEIGHT = 420, 250  # user units of the view box; the page scales it to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 30, 40  # margins around the plot
NAMES = 130  # the right one where curves have their names beside them
TICKS = 5  # about as many per axis
#: Where all values are positive and spread over more than this factor, a logarithmic axis shows more.
LOG_SPREAD = 30.0
#: Points beyond which a curve gets averaged: more do not show at the size of a chart.
MOST_POINTS = 120
LINE_HEIGHT = 14
#: Curves whose points have intervals stand so far beside each other that those do not cover each other.
ASIDE = 4.0
#: Bars take this share of their slot, and no more units than WIDEST_BAR.
BAR_SHARE, WIDEST_BAR = 0.5, 44.0
#: Units that a letter of a tick takes, about.
LETTER_WIDTH = 7.0
#: Decimals that a tick may need: a double has no more than about 300.
MOST_DIGITS = 320
#: Values that spread less than this, of themselves or absolutely, are one value to an axis.
LEAST_SPREAD, LEAST_VALUE = 1e-9, 1e-30
#: Of charts of intervals, as wide as a source tree's readers show pictures: their rows, and the room beside the marks.
BROAD, ROW_HEIGHT, BLOCK_GAP, NAME_WIDTH, NUMBER_WIDTH, GUTTER = 900, 18, 9, 190, 44, 32
#: About as many ticks have they, and an axis that ends where its values do leaves so much free beyond them.
INTERVAL_TICKS, FREE = 7, 0.03
#: Units that a letter of their legend takes, about; paper around a chart that is a file.
LEGEND_LETTER, EDGE = 6.1, 12
#: Their kinds of marks, and which of them are filled.
KINDS = {"up": True, "down": True, "noise": False, "grey": False}


@dataclass(frozen=True)
class Series:
    """One curve. Points whose y is not finite interrupt it."""

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str] = ()  # a tooltip for each point; where given, points are marked
    errors: Sequence[float] = ()  # half the length of each point's interval


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis from ``low`` to ``high`` with labelled ticks."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def share(self, value: float) -> float:
        """Where ``value`` lies between the ends, 0..1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def averaged(x: Sequence[float], y: Sequence[float], points: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most ``points`` points, each the mean of a run of neighbours; values that are not finite are left out."""
    finite = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    run = max(1, -(-len(finite) // points))
    groups = [finite[i : i + run] for i in range(0, len(finite), run)]
    return [sum(a for a, _ in g) / len(g) for g in groups], [sum(b for _, b in g) / len(g) for g in groups]


def linear_axis(low: float, high: float, ticks: int = TICKS, *, whole: bool = False) -> Axis:
    """An axis that holds low..high and has about so many round ticks: 1, 2, 2.5 or 5 times a power of ten; of what is
    counted ``whole`` numbers alone."""
    if whole:
        high = max(high, low + 1)
    if not high - low > max(LEAST_SPREAD * max(abs(low), abs(high)), LEAST_VALUE):
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    rough = max((high - low) / ticks, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    step = next(step for step in steps if not whole or step == round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = next(n for n in range(MOST_DIGITS) if math.isclose(round(step, n), step, rel_tol=1e-6))
    return Axis(first * step, last * step, [(n * step, _number(n * step, digits)) for n in range(first, last + 1)])


def _number(value: float, digits: int) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.{digits}f}".replace("-", "\u2212")


def loose_axis(values: Sequence[float], ticks: int = TICKS, free: float = FREE) -> Axis:
    """An axis that ends a share ``free`` of its length beyond the outermost values, whether there is a tick or not."""
    low, high = min(values), max(values)
    room = free * (high - low or 1.0)
    low, high = low - room, high + room
    return Axis(low, high, [tick for tick in linear_axis(low, high, ticks).ticks if low <= tick[0] <= high])


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis that holds low..high (both positive), with ticks at 1, 2 and 5 times powers of ten."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    low = max(s for s in steps if s <= low * (1 + 1e-9))
    high = min(s for s in [*steps, 10 * steps[-1]] if s >= high * (1 - 1e-9) and s > low)
    inside = [s for s in steps if low <= s <= high]
    if len(inside) > TICKS + 2:
        inside = [s for s in inside if math.isclose(math.log10(s), round(math.log10(s)), abs_tol=1e-9)]
    return Axis(low, high, [(s, f"{s:g}") for s in inside], log=True)


def fitting_axis(
    values: Sequence[float], *, from_zero: bool = False, may_log: bool = False, whole: bool = False
) -> Axis:
    """An axis for finite values: from zero, logarithmic where they spread widely, or just around them; ``whole`` as in
    ``linear_axis``."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if may_log and low > LEAST_VALUE and high / low > LOG_SPREAD:
        return log_axis(low, high)
    return linear_axis(min(low, 0.0) if from_zero else low, high, whole=whole)


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_axis: Axis | None = None, x_axis: Axis | None = None,
    y_label: str = "", under: Sequence[tuple[float, str]] = (), named: bool = False,
) -> str:  # fmt: skip
    """An SVG element with one curve per series.

    Axes are fitted to the data where none is given. ``under`` holds a second line of labels below the x axis; ``named``
    curves have their names at their right ends, and need no legend.
    """
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    x_axis = x_axis or fitting_axis([x for x, _ in points])
    y_axis = y_axis or fitting_axis([y for _, y in points], may_log=True)
    bottom = HEIGHT - BOTTOM - (14 if under else 0)
    right = WIDTH - (NAMES if named else RIGHT)

    def at_x(x: float) -> float:
        return LEFT + x_axis.share(x) * (right - LEFT)

    def at_y(y: float) -> float:
        return bottom - y_axis.share(y) * (bottom - TOP)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        _text("chart-title", LEFT, 15, title, "start"),
    ]
    for value, text in y_axis.ticks:
        y = at_y(value)
        style = "axis" if value == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", LEFT - 6, y + 3.5, text, "end"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for value, text in x_axis.ticks:
        parts.append(_text("tick", at_x(value), bottom + 15, text))
    for value, text in under:
        parts.append(_text("tick faint", at_x(value), bottom + 28, text))
    middle = (LEFT + right) / 2
    label = x_label + (" (log scale up)" if y_axis.log else "")
    parts.append(_text("label", middle, HEIGHT - 6, label))
    if y_label:
        parts.append(_text("label", WIDTH - RIGHT, 15, y_label, "end"))
    for index, one in enumerate(series):
        aside = (index - (len(series) - 1) / 2) * ASIDE if one.errors else 0.0
        parts.append(_curve(one, lambda x, aside=aside: at_x(x) + aside, at_y))
    if named:
        parts += _names([one for one in series if len(one.y) and math.isfinite(one.y[-1])], right, at_y)
    if not points:
        parts.append(_text("label", middle, (TOP + bottom) / 2, "no values"))
    return "".join([*parts, "</svg>"])


def _text(style: str, x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _curve(series: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    """The path of one series and, where it has notes, its marked points."""
    path, pen_down = [], False
    for x, y in zip(series.x, series.y, strict=True):
        if math.isfinite(y):
            path.append(f"{'L' if pen_down else 'M'}{at_x(x):.1f} {at_y(y):.1f}")
        pen_down = math.isfinite(y)
    stroke = f'stroke="{series.look.colour}"' + (f' stroke-dasharray="{series.look.dash}"' if series.look.dash else "")
    spread = [
        f'<line stroke="{series.look.colour}" stroke-width="1.2" x1="{at_x(x):.1f}" x2="{at_x(x):.1f}"'
        f' y1="{at_y(y - error):.1f}" y2="{at_y(y + error):.1f}"/>'
        for x, y, error in zip(series.x, series.y, series.errors, strict=False)
        if math.isfinite(y) and math.isfinite(error)
    ]
    drawn = f'<path class="curve" d="{"".join(path)}" {stroke}><title>{escape(series.name)}</title></path>'
    marks = [
        f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3.2" fill="{series.look.colour}">'
        f"<title>{escape(note)}</title></circle>"
        for x, y, note in zip(series.x, series.y, series.notes, strict=False)
        if math.isfinite(y)
    ]
    return drawn + "".join([*spread, *marks])


def _names(series: Sequence[Series], right: float, at_y: Callable[[float], float]) -> list[str]:
    """The curves' names at the height of their ends, pushed down where they would touch, with a piece of their line."""
    drawn, y = [], -math.inf
    for one in sorted(series, key=lambda one: at_y(one.y[-1])):
        y = max(at_y(one.y[-1]), y + LINE_HEIGHT)
        dash = f' stroke-dasharray="{one.look.dash}"' if one.look.dash else ""
        place = f'x1="{right + 8:.1f}" x2="{right + 26:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        drawn.append(f'<line stroke="{one.look.colour}" stroke-width="2.2"{dash} {place}/>')
        drawn.append(_text("row", right + 31, y + 4, one.name, "start"))
    return drawn


@dataclass(frozen=True)
class Balance:
    """What went up and what went down in one bin, and what is left of it; percent."""

    label: str
    count: int  # written below the label
    up: float = math.nan  # NaN: nothing is drawn
    down: float = math.nan
    net: float = math.nan
    low: float = math.nan  # ends of the interval of ``net``
    high: float = math.nan
    other: float = math.nan  # net of something to compare with, a hollow mark
    note: str = ""  # tooltip


def balance_chart(title: str, bars: Sequence[Balance], *, x_label: str, y_axis: Axis) -> str:
    """An SVG element with a bar up and a bar down for each bin, and a mark with its interval for what is left."""
    slot = (WIDTH - LEFT - RIGHT) / max(len(bars), 1)
    labels = [_lines(bar.label, slot) for bar in bars]
    rows = max(map(len, labels), default=1)
    bottom = HEIGHT - BOTTOM - rows * LINE_HEIGHT

    def at_y(y: float) -> float:
        return bottom - min(max(y_axis.share(y), 0.0), 1.0) * (bottom - TOP)

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        _text("chart-title", LEFT, 15, title, "start"),
    ]
    for value, text in y_axis.ticks:
        y = at_y(value)
        style = "axis" if value == 0 else "grid"
        parts.append(f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text("tick", LEFT - 6, y + 3.5, text, "end"))
    for index, bar in enumerate(bars):
        middle = LEFT + (index + 0.5) * slot
        for n, text in enumerate(labels[index]):
            parts.append(_text("tick", middle, bottom + (n + 1) * LINE_HEIGHT, text))
        parts.append(_text("tick faint", middle, bottom + (rows + 1) * LINE_HEIGHT, f"n={bar.count}"))
        parts.append(_balance(bar, middle, slot, at_y))
    parts.append(_text("label", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label))
    return "".join([*parts, "</svg>"])


def _lines(label: str, room: float) -> list[str]:
    """A label of several words on two lines where it would be wider than ``room``."""
    return label.split(" ", 1) if len(label) * LETTER_WIDTH > room else [label]


def _balance(bar: Balance, middle: float, slot: float, at_y: Callable[[float], float]) -> str:
    if not math.isfinite(bar.up + bar.down):
        return _text("tick faint", middle, at_y(0) - 5, "too few")
    width = min(BAR_SHARE * slot, WIDEST_BAR)
    zero, drawn = at_y(0), []
    for style, value in (("up", bar.up), ("down", -bar.down)):
        top, height = min(at_y(value), zero), abs(at_y(value) - zero)
        drawn.append(
            f'<rect class="{style}" fill="currentColor" fill-opacity="0.55" x="{middle - width / 2:.1f}" y="{top:.1f}"'
            f' width="{width:.1f}" height="{height:.1f}"/>'
        )
    if math.isfinite(bar.net):
        x, low, high = f"{middle:.1f}", f"{at_y(bar.low):.1f}", f"{at_y(bar.high):.1f}"
        drawn.append(f'<line stroke="currentColor" stroke-width="2" x1="{x}" x2="{x}" y1="{low}" y2="{high}"/>')
        drawn.append(f'<circle fill="currentColor" cx="{x}" cy="{at_y(bar.net):.1f}" r="4"/>')
    if math.isfinite(bar.other):
        x, y, r = middle + width / 2 + 5, at_y(bar.other), 4
        drawn.append(
            f'<path fill="none" stroke="currentColor" stroke-width="1.5" d="M{x:.1f} {y - r:.1f}l{r} {r}l-{r} {r}l-{r}'
            f' -{r}z"/>'
        )
    return f"<g><title>{escape(bar.note)}</title>{''.join(drawn)}</g>"


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
    title: str, blocks: Sequence[IntervalBlock], *, x_label: str, keys: Sequence[tuple[str, str]] = ()
) -> str:
    """An SVG element with a line of marks for every difference, largest first, in two columns with one axis.

    ``keys`` are words for the kinds of marks (``KINDS``) or ``control``, in the order of their legend.
    """
    ends = [end for block in blocks for row in block.rows for end in (row.mean - row.error, row.mean + row.error)]
    axis = loose_axis([0.0, *ends], INTERVAL_TICKS)
    columns = _columns(blocks)
    width = (BROAD - GUTTER) / 2
    top = 48 if keys else 26
    bottom = top + max(map(_height, columns))
    height = bottom + 38
    parts = [
        f'<svg class="chart broad" viewBox="0 0 {BROAD} {height}" role="img" aria-label="{escape(title)}">',
        _text("chart-title", 0, 15, title, "start"),
        _keys(keys, 38),
    ]
    for index, column in enumerate(columns):
        if not column:
            continue
        left = index * (width + GUTTER)
        start, end = left + NAME_WIDTH, left + width - NUMBER_WIDTH

        def at_x(value: float, start: float = start, end: float = end) -> float:
            return start + axis.share(value) * (end - start)

        for value, text in axis.ticks:
            x, style = at_x(value), "zero" if value == 0 else "grid"
            parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{top + 4}" y2="{bottom}"/>')
            parts.append(_text("tick", x, bottom + 14, text if value <= 0 else f"+{text}"))
        parts.append(_text("label", (start + end) / 2, bottom + 31, x_label))
        y = float(top)
        for block in column:
            parts.append(_block(block, left, left + width, y, at_x))
            y += _height([block])
    return "".join([*parts, "</svg>"])


def _height(blocks: Sequence[IntervalBlock]) -> int:
    return sum(ROW_HEIGHT * (1 + len(block.rows)) + BLOCK_GAP for block in blocks)


def _columns(blocks: Sequence[IntervalBlock]) -> tuple[Sequence[IntervalBlock], Sequence[IntervalBlock]]:
    """The blocks in their order, cut where both parts become least high."""
    cut = min(range(len(blocks) + 1), key=lambda n: (max(_height(blocks[:n]), _height(blocks[n:])), -n))
    return blocks[:cut], blocks[cut:]


def _block(block: IntervalBlock, left: float, right: float, top: float, at_x: Callable[[float], float]) -> str:
    """A heading, over a strip of the page's colour so that no line of the grid crosses it, and the rows below."""
    drawn = [f'<rect class="paper" x="{left:.1f}" y="{top + 2:.1f}" width="{right - left:.1f}" height="{ROW_HEIGHT}"/>',
             _text("block", left, top + ROW_HEIGHT - 4, block.title, "start"),
             _text("aside", right, top + ROW_HEIGHT - 4, block.aside, "end") if block.aside else ""]  # fmt: skip
    for index, row in enumerate(sorted(block.rows, key=lambda row: -row.mean)):
        y = top + ROW_HEIGHT * (index + 1.5) + 2
        kind = "grey" if block.grey else row.kind
        name = _text("row control" if row.control else "row", left + NAME_WIDTH - 10, y + 4.5, row.name, "end")
        number = _text("tick", right, y + 4.5, f"{row.mean:+.1f}".replace("-", "\u2212"), "end")
        ends = f'x1="{at_x(row.mean - row.error):.1f}" x2="{at_x(row.mean + row.error):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        mark = f'<line class="interval" {ends}/>{_mark(at_x(row.mean), y, row.kind != "noise")}'
        drawn.append(f'<g class="{kind}"><title>{escape(row.note)}</title>{name}{mark}{number}</g>')
    return f'<g class="{"grey" if block.grey else "judged"}">{"".join(drawn)}</g>'


def _mark(x: float, y: float, filled: bool) -> str:
    style = 'fill="currentColor"' if filled else 'class="hollow"'
    return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="4.2"/>'


def _keys(keys: Sequence[tuple[str, str]], y: float) -> str:
    """A legend in one line."""
    drawn, x = [], 0.0
    for kind, words in keys:
        if kind in KINDS:
            line = f'<line class="interval" x1="{x:.1f}" x2="{x + 22:.1f}" y1="{y - 4:.1f}" y2="{y - 4:.1f}"/>'
            drawn.append(f'<g class="{kind}">{line}{_mark(x + 11, y - 4, KINDS[kind])}</g>')
            x += 28
        drawn.append(_text(f"tick {kind}", x, y, words, "start"))
        x += len(words) * LEGEND_LETTER + 18
    return "".join(drawn)


def svg_file(chart: str) -> str:
    """A chart as the text of a file of its own, with the pages' colours and their paper below it."""
    head, rest = chart.split(">", 1)
    box = head.split('viewBox="')[1].split('"')[0]
    _, _, width, height = map(int, box.split())
    width, height = width + 2 * EDGE, height + 2 * EDGE
    size = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
    head = head.replace(f'viewBox="{box}"', f'{size} viewBox="{-EDGE} {-EDGE} {width} {height}"')
    frame = f'<rect class="paper" x="{-EDGE}" y="{-EDGE}" width="{width}" height="{height}"/>'
    return f"{head}><style>{BASICS}{CHARTS}svg {{ font-family: var(--font); }}</style>{frame}{rest}\n"


def legend(entries: Sequence[tuple[str, Look]]) -> str:
    """Names with a piece of their line, as an HTML list."""
    items = []
    for name, look in entries:
        dash = f' stroke-dasharray="{look.dash}"' if look.dash else ""
        line = f'<line x1="1" x2="29" y1="6" y2="6" stroke="{look.colour}" stroke-width="2.6"{dash}/>'
        items.append(f'<li><svg class="key" viewBox="0 0 30 12" aria-hidden="true">{line}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'
