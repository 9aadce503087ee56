"""Settings: the range of each number, typed beside its field and checked in one place; settings as plain data and back
(what stands in config.yaml, card.json and checkpoints)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import reprlib
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from distill3d.errors import UserError

T = TypeVar("T")

# ------------------------------------------------------------------------------------------------------------- ranges


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends included unless said otherwise: ``Annotated[int, Between(1, 100)]``.

    Of a tuple it is the range of each number: ``Annotated[tuple[float, float], Between(0, 1)]``.  NaN lies in no
    range, infinity only in one that ends there.
    """

    least: float
    most: float
    above: bool = False  # the least itself lies outside
    below: bool = False  # the most itself lies outside
    multiple_of: int = 1  # of integers

    def holds(self, value: float) -> bool:
        """Whether a number lies in the range."""
        if not self.least <= value <= self.most:
            return False
        if (self.above and value == self.least) or (self.below and value == self.most):
            return False
        return self.multiple_of == 1 or value % self.multiple_of == 0

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'from'} {_number(self.least)}"
        high = f"{'below' if self.below else 'at most'} {_number(self.most)}" if self.above or self.below else ""
        high = f" and {high}" if high else f" to {_number(self.most)}"
        multiple = f", a multiple of {self.multiple_of}" if self.multiple_of > 1 else ""
        return low + ("" if self.most == math.inf else high) + multiple


@dataclass(frozen=True)
class Ascending:
    """Of a tuple of two numbers: the first is at most the second."""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


#: Ranges that many fields share. Their upper ends are far beyond what anybody trains, and below what hurts a machine.
Number = Annotated[int, Between(1, 1_000_000)]
Count = Annotated[int, Between(0, 1_000_000)]
Channels = Annotated[int, Between(1, 16_384)]
Layers = Annotated[int, Between(1, 256)]
Stride = Annotated[int, Between(1, 64)]
Pixels = Annotated[int, Between(1, 16_384)]
Share = Annotated[float, Between(0, 1)]  # probabilities too
Decay = Annotated[float, Between(0, 1, below=True)]  # of a running average
Weight = Annotated[float, Between(0, 1e6)]  # of a loss term
Divisor = Annotated[float, Between(0, 1e9, above=True)]
Coordinate = Annotated[float, Between(-1e4, 1e4)]  # m
Length = Annotated[float, Between(0, 1e5)]  # m
Side = Annotated[float, Between(0, 1e4, above=True)]  # m; of what has an extent
Deviation = Annotated[float, Between(0, 100)]  # standard deviation
Angle = Annotated[float, Between(0, math.tau)]  # rad
#: Seeds are added to and packed as signed 64-bit integers.
Seed = Annotated[int, Between(-(2**62), 2**62)]
Workers = Annotated[int, Between(0, 256)]  # processes
HeightScale = Annotated[float, Between(0, 100, above=True)]  # of KITTI's least box heights, for reduced images
FramesBack = Annotated[int, Between(1, 100)]  # key frames, counted back

# -------------------------------------------------------------------------------------------------------------- checks


@dataclass(frozen=True)
class SettingFault:
    """A setting that lies outside its type or range."""

    name: str  # as on the command line: schedule.epochs
    value: Any
    expected: str

    def __str__(self) -> str:
        return f"{self.name or 'it'} is {reprlib.repr(self.value)}, expected {self.expected}"


def check_settings(value: Any, where: str = "") -> None:
    """Holds every field of a dataclass, those of nested ones included, against its annotation: type, literal, range.

    An integer does for a float, a bool does not for either.  The sentence names the first fault by its spelling on the
    command line, after ``where`` it was read.

    Raises:
        UserError: a field does not fit.
    """
    for fault in setting_faults(value):
        raise UserError(f"{where}: {fault}" if where else str(fault))


def is_in_range(value: Any) -> bool:
    """Whether every field fits its annotation.

    For ``__post_init__``, before it looks at relations between fields: of fields outside their ranges relations mean
    nothing, and ``check_settings`` tells of them by their full names.
    """
    return next(setting_faults(value), None) is None


def setting_faults(value: Any, name: str = "") -> Iterator[SettingFault]:
    """All fields of a dataclass that do not fit their annotations."""
    for field, hint in hints_of(type(value)).items():
        yield from _faults(getattr(value, field), hint, _inside(name, field, hint))


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields with their ranges, without class variables."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def widen(module: str, union: str, kind: type) -> None:
    """Adds a type to a union that a module names, for settings from outside: fields that are annotated by
    ``module.union`` may hold it from then on."""
    names = vars(sys.modules[module])
    names[union] = names[union] | kind
    hints_of.cache_clear()


def refuse_odd_settings(kind: type) -> None:
    """Keeps settings to frozen dataclasses, which fingerprints and command lines ask for.

    Raises:
        TypeError: the type is none.
    """
    if not (dataclasses.is_dataclass(kind) and vars(kind)["__dataclass_params__"].frozen):
        raise TypeError(f"{kind.__name__} holds settings, so it must be decorated with @dataclass(frozen=True)")


def _inside(name: str, field: str, hint: Any) -> str:
    """The name of a field; the command line's own settings leave some out (tyro's ``arg(name="")``)."""
    if is_part_of_whole(hint):
        return name
    return f"{name}.{field}" if name else field


def is_part_of_whole(hint: Any) -> bool:
    """Whether a field's own name is left out where its fields are named."""
    return any(getattr(extra, "name", None) == "" for extra in getattr(hint, "__metadata__", ()))


def _faults(value: Any, hint: Any, name: str) -> Iterator[SettingFault]:
    kind, extras = _parts(hint)
    members = members_of(kind)
    if len(members) > 1:
        yield from _union_faults(value, members, name)
    elif typing.get_origin(kind) is Literal:
        if not any(value == v and type(value) is type(v) for v in typing.get_args(kind)):
            yield SettingFault(name, value, expected_words(hint))
    elif typing.get_origin(kind) is tuple:
        yield from _tuple_faults(value, kind, extras, name)
    elif typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            yield SettingFault(name, value, expected_words(hint))
            return
        of_key, of_value = typing.get_args(kind)
        for key, item in value.items():
            yield from _faults(key, of_key, name)
            yield from _faults(item, of_value, f"{name}.{key}")
    elif kind in (int, float):
        integral = isinstance(value, int) and not isinstance(value, bool)
        fits = integral or (kind is float and isinstance(value, float))
        ranges = [extra for extra in extras if isinstance(extra, Between)] or [Between(-math.inf, math.inf)]
        if not fits or math.isnan(value) or not all(r.holds(value) for r in ranges):
            yield SettingFault(name, value, expected_words(hint))
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):
            yield from setting_faults(value, name)
        else:
            yield SettingFault(name, value, expected_words(hint))
    elif isinstance(kind, type) and not isinstance(value, kind):
        yield SettingFault(name, value, expected_words(hint))


def _union_faults(value: Any, members: tuple[Any, ...], name: str) -> Iterator[SettingFault]:
    kinds = {member: _parts(member)[0] for member in members}
    if value is None and type(None) in members:
        return
    same = [m for m, kind in kinds.items() if dataclasses.is_dataclass(kind) and type(value) is kind]
    others = same or [m for m in members if m is not type(None)]
    tried = [list(_faults(value, member, name)) for member in others]
    if all(tried):
        # Of a dataclass, or of a number that may be absent, the fault within; else all that would do.
        alone = len(others) == 1 and (same or not dataclasses.is_dataclass(kinds[others[0]]))
        optional = " or none" if type(None) in members and not same else ""
        if alone:
            yield from (dataclasses.replace(f, expected=f.expected + optional * (f.name == name)) for f in tried[0])
        else:
            yield SettingFault(name, value, " or ".join(expected_words(m) for m in others) + optional)


def _tuple_faults(value: Any, kind: Any, extras: tuple[Any, ...], name: str) -> Iterator[SettingFault]:
    items = typing.get_args(kind)
    wanted = len(value) if isinstance(value, tuple) and items[-1:] == (Ellipsis,) else len(items)
    if not isinstance(value, tuple) or len(value) != wanted:
        yield SettingFault(name, value, expected_words(kind))
        return
    ranges = [extra for extra in extras if isinstance(extra, Between)]
    faults: list[SettingFault] = []
    for number, item in enumerate(value):
        own = item.name if getattr(item, "known_by_name", False) else number
        hint = items[0] if items[-1] is Ellipsis else items[number]
        faults += _faults(item, Annotated[hint, *ranges] if ranges else hint, f"{name}.{own}")
    yield from faults
    if not faults and any(isinstance(extra, Ascending) for extra in extras) and value[0] > value[1]:
        yield SettingFault(name, value, "two numbers in ascending order")


def expected_words(hint: Any) -> str:
    """What a hint asks for, in words."""
    kind, extras = _parts(hint)
    ranges = "".join(f" {extra}" for extra in extras if isinstance(extra, Between))
    if len(members_of(kind)) > 1:
        return " or ".join(expected_words(m) for m in members_of(kind))
    if kind in (int, float):
        return ("an integer" if kind is int else "a number") + ranges
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(v) for v in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        return "a list" if items[-1:] == (Ellipsis,) else f"a list of {len(items)}"
    words = {str: "text", bool: "true or false", Path: "a path (pathlib.Path)", type(None): "none"}
    if kind in words:
        return words[kind]
    name = str(getattr(typing.get_origin(kind) or kind, "__name__", kind))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint without what is annotated, and that."""
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def members_of(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


# --------------------------------------------------------------------------------------------------------- plain data


def added(default: T) -> T:
    """A dataclass field that fingerprints leave out at its default: for settings that came later, so that runs from
    before them are still known."""
    return dataclasses.field(default=default, metadata={"added": True})


def to_plain(value: Any, *, without_added: bool = False) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and strings, ready for JSON and YAML.

    ``without_added``: no fields made by ``added`` that are at their defaults.
    """
    plain = functools.partial(to_plain, without_added=without_added)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {
            f.name: plain(v) for f, v in fields if not (without_added and f.metadata.get("added") and v == f.default)
        }
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: type[T], data: Any, where: str) -> T:
    """The dataclass ``kind`` from what ``to_plain`` made of it; nested dataclasses and tuples are restored.

    Raises:
        UserError: ``data`` has a key that ``kind`` does not know, lacks one or has a value that does not fit, naming
            ``where`` it was read.
    """
    value = _restored(kind, data, where)
    check_settings(value, where)
    return value


def _restored(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise UserError(f"{where}: is {reprlib.repr(data)}, expected the settings of a {kind.__name__}")
    hints = hints_of(kind)
    unknown = [key for key in data if key not in hints]
    if unknown:
        raise UserError(f"{where}: unknown setting {reprlib.repr(unknown[0])}, {kind.__name__} has {', '.join(hints)}")
    for field in dataclasses.fields(typing.cast(Any, kind)):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in data:
            raise UserError(f"{where}: {kind.__name__} lacks its setting {field.name!r}")
    return kind(**{name: _restore(hints[name], value, f"{where}: {name}") for name, value in data.items()})


def _restore(hint: Any, value: Any, where: str) -> Any:
    members = [_parts(member)[0] for member in members_of(_parts(hint)[0])]
    if isinstance(value, dict):
        candidates = [t for t in members if dataclasses.is_dataclass(t)]
        if len(candidates) == 1:
            return _restored(typing.cast(type, candidates[0]), value, where)
    if isinstance(value, list):
        items = next((typing.get_args(t) for t in members if typing.get_origin(t) is tuple), None)
        if items:
            each = [items[0] if items[-1] is Ellipsis else items[min(i, len(items) - 1)] for i in range(len(value))]
            return tuple(_restore(hint, v, where) for hint, v in zip(each, value, strict=True))
    if isinstance(value, dict) and any(typing.get_origin(t) is dict for t in members):
        of_value = next(typing.get_args(t)[1] for t in members if typing.get_origin(t) is dict)
        return {k: _restore(of_value, v, where) for k, v in value.items()}
    if isinstance(value, str) and Path in members:
        return Path(value)
    return value


def fingerprint(value: Any) -> str:
    """A hash of settings (16 hex digits) that is equal exactly if they are."""
    return hashlib.sha256(json.dumps(to_plain(value, without_added=True), sort_keys=True).encode()).hexdigest()[:16]
