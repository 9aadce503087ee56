"""Charts as SVG: axes, curves, bars and intervals as marks, which the templates write into a page or a file of its own.

A chart's title stands beside the drawing, so that it wraps on a narrow screen; text takes the page's font, axes and
grid take the style sheet's classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from distill3d.view.page import render
from distill3d.view.palette import Look

WIDTH, HEIGHT = 420, 228  # user units of the view box; the page scales it to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 40  # margins around the plot; the left one grows with the numbers there
NAMES = 130  # the right one where curves have their names beside them
TICKS, COUNT_TICKS = 5, 7  # about as many per axis, and per axis of what is counted
#: Steps between ticks are these, times powers of ten.
ROUND = (1, 2, 5, 10)
#: Numbers from here on are told in units with a letter; those that take more than FEW decimals as powers.
UNITS, FEW = ((1e7, 1e6, "M"), (1e4, 1e3, "k")), 5
#: Where all values are positive and spread over more than this factor, a logarithmic axis shows more.
LOG_SPREAD = 30.0
#: Points beyond which a curve gets averaged: more do not show at the size of a chart.
MOST_POINTS = 120
LINE_HEIGHT = 14
#: Labels below an axis have at most so many lines.
MOST_LINES = 3
#: Curves whose points have intervals stand so far beside each other that those do not cover each other.
ASIDE = 4.0
#: Bars take this share of their slot, and no more units than WIDEST_BAR.
BAR_SHARE, WIDEST_BAR = 0.5, 44.0
#: Units that a digit and a letter take in a wide font such as Verdana, and what is free beside a label at the left, and
#: between labels below.
DIGIT, LETTER, BESIDE, BETWEEN = 8.3, 7.0, 6.0, 2.0
#: Decimals that a tick may need: a double has no more than about 300.
MOST_DIGITS = 320
#: Values that spread less than this, of themselves or absolutely, are one value to an axis.
LEAST_SPREAD, LEAST_VALUE = 1e-9, 1e-30
#: An axis that ends where its values do leaves such a share free beyond them.
FREE = 0.03
#: Paper around a chart that is a file, and the height of its title.
EDGE, TITLE_HEIGHT = 12, 24
MINUS, ELLIPSIS = "\u2212", "\u2026"


@dataclass(frozen=True)
class Mark:
    """An SVG element with a tooltip, text and elements inside; attributes without a value are left out."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    text: str = ""
    note: str = ""
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing in user units, and what stands above it."""

    title: str
    marks: Sequence[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    aside: str = ""  # at the title's end


@dataclass(frozen=True)
class Series:
    """One curve. Points whose y is not finite interrupt it."""

    name: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str] = ()  # a tooltip for each point; where given, points are marked
    errors: Sequence[float] = ()  # half the length of each point's interval


# ----------------------------------------------------------------------------------------------------------------- axes


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

    def cut(self, low: float, high: float) -> Axis:
        """The same ticks, as far as they lie between other ends."""
        return Axis(low, high, [tick for tick in self.ticks if low <= tick[0] <= high], self.log)


def averaged(x: Sequence[float], y: Sequence[float], points: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most ``points`` points, each the mean of a run of neighbours; values that are not finite are left out."""
    finite = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    run = max(1, -(-len(finite) // points))
    groups = [finite[i : i + run] for i in range(0, len(finite), run)]
    return [sum(a for a, _ in g) / len(g) for g in groups], [sum(b for _, b in g) / len(g) for g in groups]


def linear_axis(low: float, high: float, ticks: int = TICKS, *, whole: bool = False) -> Axis:
    """An axis that holds low..high and has about so many ticks at ``ROUND`` numbers; of what is counted ``whole``
    numbers alone."""
    if whole:
        high = max(high, low + 1)
    if not high - low > max(LEAST_SPREAD * max(abs(low), abs(high)), LEAST_VALUE):
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    rough = max((high - low) / ticks, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in ROUND if power * m >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    tell = _telling(step, max(abs(first), abs(last)) * step)
    return Axis(first * step, last * step, [(n * step, tell(n * step)) for n in range(first, last + 1)])


def _telling(step: float, largest: float) -> Callable[[float], str]:
    """How an axis's numbers are written: all alike, and as short as their step allows."""
    unit, letter = next(((u, letter) for least, u, letter in UNITS if largest >= least and step >= u / 10), (1.0, ""))
    digits = next(n for n in range(MOST_DIGITS) if math.isclose(round(step / unit, n), step / unit, rel_tol=1e-6))
    if digits > FEW or largest / unit >= 10 ** (2 * FEW):
        return lambda value: f"{value:g}".replace("-", MINUS)
    return lambda value: f"{value / unit:.{digits}f}{letter if value else ''}".replace("-", MINUS)


def loose_axis(values: Sequence[float], ticks: int = TICKS, free: float = FREE) -> Axis:
    """An axis that ends a share ``free`` of its length beyond the outermost values, whether there is a tick or not."""
    low, high = min(values), max(values)
    room = free * (high - low or 1.0)
    return linear_axis(low - room, high + room, ticks).cut(low - room, high + room)


def count_axis(values: Sequence[float]) -> Axis:
    """Of what is counted from 0 on, such as epochs and steps: whole numbers, to the last of the values."""
    last = max([1.0, *values])
    return linear_axis(0, last, COUNT_TICKS, whole=True).cut(0, last)


def log_axis(low: float, high: float) -> Axis:
    """A logarithmic axis that holds low..high (both positive), with ticks at 1, 2 and 5 times powers of ten, at these
    powers, or at each so many of them, as there is room."""
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    steps = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
    low = max(s for s in steps if s <= low * (1 + 1e-9))
    high = min(s for s in [*steps, 10 * steps[-1]] if s >= high * (1 - 1e-9) and s > low)
    inside = [s for s in steps if low <= s <= high]
    if len(inside) > TICKS + 2:
        inside = [s for s in inside if math.isclose(math.log10(s), round(math.log10(s)), abs_tol=1e-9)]
    inside = inside[:: math.ceil(len(inside) / (TICKS + 2))]
    return Axis(low, high, [(s, f"{s:g}") for s in inside], log=True)


def fitting_axis(values: Sequence[float], *, from_zero: bool = False, may_log: bool = False) -> Axis:
    """An axis for finite values: from zero, logarithmic where they spread widely, or just around them."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if may_log and low > LEAST_VALUE and high / low > LOG_SPREAD:
        return log_axis(low, high)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
        high = high if high - low > LEAST_VALUE else 1.0  # nothing but zeros: nothing lies below them
    return linear_axis(low, high)


# ---------------------------------------------------------------------------------------------------------------- marks


def mark(
    tag: str, style: str = "", text: str = "", note: str = "", marks: Sequence[Mark] = (), **where: float | str
) -> Mark:
    """``where`` are attributes with underscores for hyphens; numbers are written to a tenth."""
    told = {
        key.replace("_", "-"): value if isinstance(value, str) else f"{round(value, 1):g}"
        for key, value in where.items()
    }
    return Mark(tag, {"class": style or None, **{key: value or None for key, value in told.items()}}, text, note, marks)


def text_mark(style: str, x: float, y: float, text: str, anchor: str = "middle", note: str = "") -> Mark:
    return mark("text", style, text, note, x=x, y=y, text_anchor=anchor)


def line_mark(
    style: str, x1: float, y1: float, x2: float, y2: float, stroke: str = "", width: float | str = "", dash: str = ""
) -> Mark:
    return mark("line", style, x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, stroke_dasharray=dash)


def shortened(text: str, room: float, letter: float = LETTER) -> str:
    """A text that takes no more than about ``room`` units: its end gives way."""
    most = max(int(room / letter), 1)
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}{ELLIPSIS}"


def wrapped(text: str, room: float) -> list[str]:
    """The lines of a label that is ``room`` units wide: broken between words, and within longer ones."""
    lines: list[str] = []
    for word in text.replace("_", "_ ").split(" "):
        joined = f"{lines[-1]}{'' if lines[-1].endswith('_') else ' '}{word}" if lines else word
        if lines and len(joined) * LETTER <= room:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], " ".join(lines[MOST_LINES - 1 :])]
    return [shortened(line, room) for line in lines]


@dataclass(frozen=True)
class Plot:
    """Where a chart's axes lie."""

    x: Axis
    y: Axis
    left: float
    right: float
    bottom: float

    def at_x(self, value: float) -> float:
        return self.left + self.x.share(value) * (self.right - self.left)

    def at_y(self, value: float) -> float:
        return self.bottom - min(max(self.y.share(value), 0.0), 1.0) * (self.bottom - TOP)


def _plot(x: Axis, y: Axis, x_label: str, under: Sequence[tuple[float, str]], right: float) -> tuple[Plot, list[Mark]]:
    """The plot of two axes, and their lines and labels; ``under`` is a second row below the x axis, of ``n``."""
    left = max(LEFT, max((len(text) for _, text in y.ticks), default=0) * DIGIT + 2 * BESIDE)
    shares = [x.share(value) for value, _ in x.ticks]
    apart = min((b - a for a, b in zip(shares, shares[1:], strict=False)), default=1.0)
    if shares and shares[-1] > 0:  # half of the last number stands beyond its tick
        half = min(len(x.ticks[-1][1]) * DIGIT, apart * (right - left)) / 2
        right = min(right, left + (WIDTH - half - left) / shares[-1])
    places = [left + share * (right - left) for share in shares]
    room = apart * (right - left) - BETWEEN
    labels = [wrapped(text, room) for _, text in x.ticks]
    rows = max(map(len, labels), default=1)
    plot = Plot(x, y, left, right, HEIGHT - BOTTOM - LINE_HEIGHT * (rows - 1 + bool(under)))
    drawn = [line_mark("axis", left, plot.bottom, right, plot.bottom)]
    for value, text in y.ticks:
        height = plot.at_y(value)
        drawn.append(line_mark("axis" if value == 0 else "grid", left, height, right, height))
        drawn.append(text_mark("tick", left - BESIDE, height + 4, text, "end"))
    for place, lines, (_, text) in zip(places, labels, x.ticks, strict=True):
        note = text if any(line.endswith(ELLIPSIS) for line in lines) else ""
        for n, one in enumerate(lines):
            drawn.append(text_mark("tick", place, plot.bottom + LINE_HEIGHT * (n + 1), one, note=note))
    if under:
        height = plot.bottom + LINE_HEIGHT * (rows + 1)
        drawn.append(text_mark("tick faint", left - BESIDE, height, "n =", "end"))
        drawn += [text_mark("tick faint", plot.at_x(value), height, text) for value, text in under]
    drawn.append(text_mark("label", (left + right) / 2, HEIGHT - 6, x_label))
    return plot, drawn


# --------------------------------------------------------------------------------------------------------------- curves


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str, y_axis: Axis | None = None, x_axis: Axis | None = None,
    aside: str = "", under: Sequence[tuple[float, str]] = (), named: bool = False,
) -> Chart:  # fmt: skip
    """One curve per series.

    Axes are fitted to the data where none is given. ``under`` holds a number for each place of the x axis; ``named``
    curves have their names at their right ends, and need no legend.
    """
    points = [(x, y) for s in series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    x_axis = x_axis or fitting_axis([x for x, _ in points])
    y_axis = y_axis or fitting_axis([y for _, y in points], may_log=True)
    label = x_label + (" (log scale up)" if y_axis.log else "")
    plot, drawn = _plot(x_axis, y_axis, label, under, WIDTH - (NAMES if named else RIGHT))
    for index, one in enumerate(series):
        drawn += _curve(one, plot, (index - (len(series) - 1) / 2) * ASIDE if one.errors else 0.0)
    if named:
        drawn += _names([one for one in series if len(one.y) and math.isfinite(one.y[-1])], plot)
    if not points:
        drawn.append(text_mark("label", (plot.left + plot.right) / 2, (TOP + plot.bottom) / 2, "no values"))
    return Chart(title, drawn, aside=aside)


def _curve(series: Series, plot: Plot, aside: float) -> list[Mark]:
    """The path of one series, its intervals and, where it has notes, its marked points, else those that stand alone."""
    path, pen_down, look = [], False, series.look
    points = [(plot.at_x(x) + aside, y) for x, y in zip(series.x, series.y, strict=True)]
    for x, y in points:
        if math.isfinite(y):
            path.append(f"{'L' if pen_down else 'M'}{x:.1f} {plot.at_y(y):.1f}")
        pen_down = math.isfinite(y)
    drawn = [mark("path", "curve", note=series.name, d="".join(path), stroke=look.colour, stroke_dasharray=look.dash)]
    for (x, y), error in zip(points, series.errors, strict=False):
        if math.isfinite(y) and math.isfinite(error):
            drawn.append(line_mark("", x, plot.at_y(y - error), x, plot.at_y(y + error), stroke=look.colour,
                               width=1.2))  # fmt: skip
    there = [False, *(math.isfinite(y) for _, y in points), False]
    alone = [here and not (before or after) for before, here, after in zip(there, there[1:], there[2:], strict=False)]
    notes = series.notes or [series.name if lone else None for lone in alone]
    for (x, y), note in zip(points, notes, strict=False):
        if math.isfinite(y) and note is not None:
            drawn.append(mark("circle", note=note, cx=x, cy=plot.at_y(y), r=3.2, fill=look.colour))
    return drawn


def _names(series: Sequence[Series], plot: Plot) -> list[Mark]:
    """The curves' names at the height of their ends, pushed down where they would touch, with a piece of their line."""
    drawn, y, x = [], -math.inf, plot.right + 8
    for one in sorted(series, key=lambda one: plot.at_y(one.y[-1])):
        y = max(plot.at_y(one.y[-1]), y + LINE_HEIGHT)
        drawn.append(line_mark("", x, y, x + 18, y, stroke=one.look.colour, width=2.2,
                           dash=one.look.dash))  # fmt: skip
        drawn.append(text_mark("row", x + 23, y + 4, shortened(one.name, NAMES - 31), "start"))
    return drawn


# ------------------------------------------------------------------------------------------------------------- balances


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


def bin_axis(labels: Sequence[str]) -> Axis:
    """A slot of equal width for each label."""
    return Axis(-0.5, max(len(labels), 1) - 0.5, [(float(n), label) for n, label in enumerate(labels)])


def counted(counts: Iterable[int], places: Iterable[float] | None = None) -> list[tuple[float, str]]:
    """A number for each place, by default each slot of ``bin_axis``; large ones are rounded."""
    told = []
    for count in counts:
        unit, letter = next(((unit, letter) for least, unit, letter in UNITS if count >= least), (1, ""))
        told.append(f"{count / unit:.0f}{letter}")
    return list(zip(map(float, range(len(told)) if places is None else places), told, strict=True))


def balance_chart(title: str, bars: Sequence[Balance], *, x_label: str, y_axis: Axis) -> Chart:
    """A bar up and a bar down for each bin, and a mark with its interval for what is left."""
    x_axis = bin_axis([bar.label for bar in bars])
    plot, drawn = _plot(x_axis, y_axis, x_label, counted(bar.count for bar in bars), WIDTH - RIGHT)
    width = min(BAR_SHARE * (plot.right - plot.left) / max(len(bars), 1), WIDEST_BAR)
    for index, bar in enumerate(bars):
        if math.isfinite(bar.up + bar.down):
            drawn.append(_balance(bar, plot.at_x(index), width, plot))
        else:
            drawn.append(text_mark("tick faint", plot.at_x(index), plot.at_y(0) - LINE_HEIGHT - 4, "too"))
            drawn.append(text_mark("tick faint", plot.at_x(index), plot.at_y(0) - 4, "few"))
    return Chart(title, drawn)


def _balance(bar: Balance, middle: float, width: float, plot: Plot) -> Mark:
    zero, drawn = plot.at_y(0), []
    for style, value in (("up", bar.up), ("down", -bar.down)):
        end = plot.at_y(value)
        drawn.append(mark("rect", style, x=middle - width / 2, y=min(end, zero), width=width, height=abs(end - zero),
                           fill="currentColor", fill_opacity="0.55"))  # fmt: skip
    if math.isfinite(bar.net):
        drawn.append(line_mark("", middle, plot.at_y(bar.low), middle, plot.at_y(bar.high), stroke="currentColor",
                           width=2))  # fmt: skip
        drawn.append(mark("circle", cx=middle, cy=plot.at_y(bar.net), r=4, fill="currentColor"))
    if math.isfinite(bar.other):
        x, y, r = middle + width / 2 + 5, plot.at_y(bar.other), 4
        diamond = f"M{x:.1f} {y - r:.1f}l{r} {r}l-{r} {r}l-{r} -{r}z"
        drawn.append(mark("path", d=diamond, fill="none", stroke="currentColor", stroke_width=1.5))
    return mark("g", note=bar.note, marks=drawn)


# ---------------------------------------------------------------------------------------------------------------- files


def svg_file(chart: Chart) -> str:
    """A chart as the text of a file of its own, with its title, the pages' colours and their paper below it."""
    width, height = chart.width + 2 * EDGE, chart.height + 2 * EDGE + TITLE_HEIGHT
    return render("chart.svg", chart=chart, left=-EDGE, top=-EDGE - TITLE_HEIGHT, width=width, height=height)
