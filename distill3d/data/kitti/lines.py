"""What may be wrong with a line of KITTI's label and result files: one set of rules for every reader of them.

A reader of one file and the evaluation, which reads thousands at once, hand their numbers over as one table; the rules
look at whole columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

#: The numbers of a line after the class name; the score stands in result files only.
LABEL_FIELDS = (
    "truncated", "occluded", "alpha", "left", "top", "right", "bottom", "height", "width", "length",
    "x", "y", "z", "rotation_y", "score",
)  # fmt: skip
(
    TRUNCATED, OCCLUDED, _, LEFT, TOP, RIGHT, BOTTOM, HEIGHT, WIDTH, LENGTH, X, Y, Z, ROTATION_Y, _,
) = range(len(LABEL_FIELDS))  # fmt: skip
#: Words on a line, the class name among them.
LABEL_WORDS, RESULT_WORDS = len(LABEL_FIELDS), len(LABEL_FIELDS) + 1
DONT_CARE = "dontcare"
#: x, y and z of a detector without 3D boxes; its sizes are placeholders then, too.
NO_POSITION = -1000.0
#: A class name of more characters is none: nothing that is made for all names should be as wide as one of a million.
MOST_CHARACTERS = 64
_EXPECTED = {None: {LABEL_WORDS, RESULT_WORDS}, True: {RESULT_WORDS}, False: {LABEL_WORDS}}
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)  # positive number, as boxes are float32 in batches

Table = Float[np.ndarray, "n f"]


class _Rule(NamedTuple):
    """What must not be: told of the numbers of one line, or of the columns of a table for all of its rows at once.

    The sentence is made of a line's words."""

    broken: Callable[[Any], Any]  # f floats, or (f, n): whether it is so, or for which of n rows
    sentence: Callable[[Sequence[str]], str]


def _not_positive(size: int) -> _Rule:
    name = LABEL_FIELDS[size]
    return _Rule(lambda c: c[size] < _SMALLEST, lambda w: f"{name} is {float(w[size]):g} m, expected a positive size")


#: Of every line.
_BOX_2D = (
    _Rule(lambda c: c[RIGHT] < c[LEFT], lambda w: f"the 2D box has right {w[RIGHT]} before left {w[LEFT]}"),
    _Rule(lambda c: c[BOTTOM] < c[TOP], lambda w: f"the 2D box has bottom {w[BOTTOM]} above top {w[TOP]}"),
)
#: Of lines with a 3D box: not of DontCare regions, nor of results without a position.
_BOX_3D = (_not_positive(HEIGHT), _not_positive(WIDTH), _not_positive(LENGTH))
#: Of labels that are objects. Results hold whatever their program writes there, and nobody reads it.
_VISIBILITY = (
    _Rule(
        lambda c: ((c[TRUNCATED] < 0) & (c[TRUNCATED] != -1)) | (c[TRUNCATED] > 1),
        lambda w: f"truncated is {float(w[TRUNCATED]):g}, expected 0..1, or -1 for unknown",
    ),
    _Rule(
        lambda c: (c[OCCLUDED] < -1) | (c[OCCLUDED] > 3) | (c[OCCLUDED] % 1 > 0),
        lambda w: f"occluded is {float(w[OCCLUDED]):g}, expected 0, 1, 2 or 3, or -1 for unknown",
    ),
)


def is_dont_care(name: str) -> bool:
    """Whether a class name, in any case, stands for a region in which nothing is labelled."""
    return name.lower() == DONT_CARE


def sound_table(rows: Sequence[Sequence[str]], underscores: int, scored: bool) -> Table | None:
    """The numbers of the lines of many files, one row each; None where a line has a fault that no evaluation can
    look over, or where there is no line.

    Truncation and occlusion are not looked at, see `odd_visibility`.

    rows: words of the lines. underscores: how many their texts have. scored: as in `line_faults`.
    """
    names = [words[0] for words in rows]
    # Python reads 1_000 as a number; no other program that reads these files does.
    if not set(map(len, rows)) == words_expected(scored) or "".join(names).count("_") != underscores:
        return None
    if max(map(len, names)) > MOST_CHARACTERS:
        return None
    try:
        numbers = np.fromiter(map(float, chain.from_iterable(words[1:] for words in rows)), np.float64)
    except ValueError:
        return None
    table = numbers.reshape(len(rows), -1)
    columns = table.T
    if not (np.abs(columns) <= _LARGEST).all() or any(rule.broken(columns).any() for rule in _BOX_2D):
        return None
    if any(has_box_3d(names[row], table[row].tolist()) for row in _broken(_BOX_3D, columns)):
        return None
    return table


def odd_visibility(truncation: Float[np.ndarray, " n"], occlusion: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which labels of objects have a truncation or occlusion that KITTI does not know."""
    columns = np.stack((truncation, occlusion))
    return np.logical_or.reduce([rule.broken(columns) for rule in _VISIBILITY])


def _broken(rules: Sequence[_Rule], columns: Float[np.ndarray, "f n"]) -> list[int]:
    """The rows that break one of the rules, ascending."""
    return np.flatnonzero(np.logical_or.reduce([rule.broken(columns) for rule in rules])).tolist()


def sound_numbers(words: Sequence[str], scored: bool | None) -> list[float] | None:
    """The numbers of one line; None where `line_faults` may have something to say of it."""
    name = words[0]
    if len(words) not in words_expected(scored) or len(name) > MOST_CHARACTERS:
        return None
    try:
        numbers = list(map(float, words[1:]))
    except ValueError:
        return None
    # A sum of magnitudes is no number where one of them is none, or too large where one of them is.
    if not sum(map(abs, numbers)) <= _LARGEST or "_" in "".join(words[1:]):
        return None
    for rules in _rules_of(name, numbers):
        for rule in rules:
            if rule.broken(numbers):
                return None
    return numbers


def line_faults(words: Sequence[str], scored: bool | None = None, visibility: bool = True) -> Iterator[str]:
    """Everything that is wrong with a line but an unknown class name, one sentence each.

    words: the line's, the class name first. scored: whether the line must have a score; None where it may. visibility:
    whether truncation and occlusion of labels are looked at.
    """
    name, values = words[0], words[1:]
    if len(name) > MOST_CHARACTERS:
        yield f"the class name has {len(name)} characters"
    if len(words) not in words_expected(scored):
        fields = {None: "15 fields, or 16 with a score", True: "16 fields", False: "15 fields"}[scored]
        hint = ""
        if len(words) in words_expected(None):
            hint = " (the score is missing)" if scored else " (labels have no score)"
        yield f"expected {fields}, found {len(words)}{hint}"
        return
    numbers = [number_of(word) for word in values]
    for field, word, number in zip(LABEL_FIELDS, values, numbers, strict=False):
        if np.isnan(number):
            yield f"{field} is {word!r}, expected a finite number of at most 3.4e38"
    for rules in _rules_of(name, numbers):
        if visibility or rules is not _VISIBILITY:
            yield from (rule.sentence(values) for rule in rules if rule.broken(numbers))


def _rules_of(name: str, numbers: Sequence[float]) -> Iterator[tuple[_Rule, ...]]:
    """The rules that a line must keep, given its class name and numbers."""
    yield _BOX_2D
    if has_box_3d(name, numbers):
        yield _BOX_3D
    if len(numbers) < len(LABEL_FIELDS) and not is_dont_care(name):
        yield _VISIBILITY


def has_box_3d(name: str, numbers: Sequence[float]) -> bool:
    """Whether the line stands for a 3D box: DontCare regions and results of detectors in the image do not."""
    placeholder = len(numbers) == len(LABEL_FIELDS) and numbers[X] == numbers[Y] == numbers[Z] == NO_POSITION
    return not (placeholder or is_dont_care(name))


def words_expected(scored: bool | None) -> set[int]:
    """How many words a line may have; ``scored`` as in ``line_faults``."""
    return _EXPECTED[scored]


def number_of(word: str) -> float:
    """The number that a word stands for; NaN where it stands for none, or for one that float32 does not hold."""
    try:
        number = float(word)
    except ValueError:
        return np.nan
    return number if abs(number) <= _LARGEST and "_" not in word else np.nan
