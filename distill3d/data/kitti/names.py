"""What the names in label files mean: the classes of a data set, and other names for them.

A data set in KITTI's layout has KITTI's classes, unless a file ``classes.txt`` in its folder says otherwise, a class a
line and after a colon the other names that label files have for it:

    Car: Van, pickup
    Bus
    Truck: Lkw
    DontCare: Misc

Objects named in the last line are neither learnt nor counted.  Labels number the classes in this order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distill3d.boxes import KITTI_CLASSES, label_names
from distill3d.data.faults import Fault, refuse_faults
from distill3d.errors import UserError
from distill3d.files import read_text

#: The class of what is neither learnt nor counted.
DONT_CARE = "DontCare"
#: Where a data set's folder says what its classes are.
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class LabelNames:
    """The classes of a data set, and other names for them in label files, as pairs (name, class).

    Raises:
        UserError: a name is empty or of several words, stands twice, or is another one's for a class that is not there.
    """

    classes: tuple[str, ...] = KITTI_CLASSES[:3]  # that detectors may find
    others: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        every = [*self.classes, *(name for name, _ in self.others)]
        odd = [name for name in every if len(name.split()) != 1 or ":" in name or "=" in name or "," in name]
        if odd or not self.classes:
            which = f", not {odd[0]!r}" if odd else ""
            raise UserError(f"classes are {self.classes}, expected names of one word{which}")
        lower = [name.lower() for name in every]
        twice = [name for name, one in zip(every, lower, strict=True) if lower.count(one) > 1]
        if twice or DONT_CARE.lower() in lower:
            raise UserError(f"the class name {(twice or [DONT_CARE])[0]!r} stands twice")
        strange = [name for _, name in self.others if name not in (*self.names, DONT_CARE)]
        if strange:
            raise UserError(f"{strange[0]!r} is no class, expected one of {', '.join(self.classes)} or {DONT_CARE}")

    @property
    def names(self) -> tuple[str, ...]:
        """What labels index."""
        return label_names(self.classes)

    @cached_property
    def _spelling(self) -> dict[str, str]:
        others = {name.lower(): kind for name, kind in self.others}
        return {name.lower(): name for name in (*self.names, DONT_CARE)} | others

    def of(self, word: str) -> str | None:
        """The class that a label file's word stands for, in any case; None for an unknown word."""
        return self._spelling.get(word.lower())

    @property
    def text(self) -> str:
        """As ``classes.txt``."""
        other = {kind: [name for name, of in self.others if of == kind] for kind in (*self.classes, DONT_CARE)}
        rows = [(kind, names) for kind, names in other.items() if names or kind != DONT_CARE]
        return "".join(f"{kind}: {', '.join(names)}\n" if names else f"{kind}\n" for kind, names in rows)


KITTI_NAMES = LabelNames()


def names_of(root: Path, classes: tuple[str, ...] = (), others: Iterable[str] = ()) -> LabelNames:
    """The names of a data set: those given, each of ``others`` as ``name=class``; else those of its ``classes.txt``,
    else KITTI's.

    Raises:
        UserError: the file cannot be read, or they do not fit together.
    """
    path = root / CLASSES_FILE
    found = KITTI_NAMES if classes or not path.is_file() else _from_text(read_text(path), path)
    pairs = []
    for pair in others:
        name, equals, kind = pair.partition("=")
        if not equals:
            raise UserError(f"label name {pair!r}, expected name=class, such as Lkw=Truck")
        pairs.append((name, kind))
    given = [name.lower() for name, _ in pairs]
    kept = tuple(pair for pair in found.others if pair[0].lower() not in given)
    return LabelNames(classes or found.classes, (*kept, *pairs)) if classes or pairs else found


def _from_text(text: str, path: Path) -> LabelNames:
    names, faults = parse_classes(text)
    refuse_faults(path, faults)
    assert names is not None
    return names


def parse_classes(text: str) -> tuple[LabelNames | None, list[Fault]]:
    """What ``classes.txt`` says, or None and all that is wrong with its lines or, where each is sound, between them."""
    classes: list[str] = []
    others: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), 1):
        kind, _, names = (part.strip() for part in line.partition("#")[0].partition(":"))
        if not kind and not names:
            continue
        if not kind or len(kind.split()) != 1:
            faults.append(Fault(number, "expected a class and, after a colon, other names of it"))
            continue
        if kind != DONT_CARE:
            classes.append(kind)
        others += [(name, kind) for name in names.replace(",", " ").split()]
    if faults:
        return None, faults
    try:
        return LabelNames(tuple(classes), tuple(others)), []
    except UserError as error:
        return None, [Fault(None, str(error))]
