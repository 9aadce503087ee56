"""Dataclasses from the command line: every field is an option, ``--part.field``, and a misspelt one gets its name."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from distill3d.errors import UserError
from distill3d.settings import check_settings, hints_of, is_part_of_whole

T = TypeVar("T")
#: ``--stages.<name or number>`` and what follows.
STAGE = re.compile(r"--stages\.([^.=]+)(.*)", re.DOTALL)
#: What stands between the paragraphs of tyro's messages.
RULE = re.compile(r"^[-─]+$")
#: What tyro says of a value that it cannot read, of one that is of none of several types, and Python of numbers.
UNREAD = re.compile(r"Error parsing (--[^\s:]+): (.*)", re.DOTALL)
ONE_OF = re.compile(r"no type matching (\S+) could be instantiated from \[(.*?)\]", re.DOTALL)
SPOKEN = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path"}
NO_NUMBER = re.compile(r"(?:invalid literal for (int)\(\) with base 10|could not convert string to float): ('.*?')")


def parse(
    kind: Callable[..., T], command: str, arguments: list[str], default: Any = None, stages: Sequence[str] = ()
) -> T:
    """A dataclass from the command line, where ``--stages.<name>.x`` may stand for the stage's number.

    Raises:
        UserError: an option is unknown, missing, of the wrong type or outside its range, or a path that no file has.
    """
    import tyro

    # Nothing that is looked for has such names; the option parser and the system would stumble over them.
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"{command}: {argument!r} holds a NUL character")

    given = {} if default is None else {"default": default}
    errors = io.StringIO()
    parsed = functools.partial(
        tyro.cli, kind, prog=f"distill3d {command}", args=[_numbered(a, stages) for a in arguments],
        return_unknown_args=True, config=(tyro.conf.AvoidSubcommands,), **given,
    )  # fmt: skip
    try:
        with contextlib.redirect_stderr(errors):
            try:
                value, unknown = parsed()
            except SystemError:  # CPython 3.11 at times miscounts as it reads the fields' comments (its issue 106905)
                value, unknown = parsed()
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{command}: {_named(_sentence(errors.getvalue()), stages)}") from None
    if unknown:
        raise UserError(f"{command}: {_unknown(_named(unknown[0], stages), kind, value, command)}")
    check_settings(value)
    for path in _paths(value):
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UserError(f"{command}: {str(path)!r} is too long for a path") from None
    return value


def _numbered(argument: str, stages: Sequence[str]) -> str:
    """``--stages.<name>.x`` as ``--stages.<number>.x``, which the option parser knows.

    Raises:
        UserError: there is no such stage.
    """
    match = STAGE.match(argument)
    if not match or match[1].isdigit() or not stages:
        return argument
    name = match[1].replace("-", "_")
    if name not in stages:
        near = difflib.get_close_matches(name, stages, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"this recipe has {', '.join(stages)}"
        raise UserError(f"train: there is no stage {match[1]!r}: {hint}")
    return f"--stages.{stages.index(name)}{match[2]}"


def _named(text: str, stages: Sequence[str]) -> str:
    """A text in which stages are called by their names again."""
    return re.sub(r"(--stages\.)(\d+)", lambda m: m[1] + _name_of(int(m[2]), stages), text)


def _name_of(number: int, stages: Sequence[str]) -> str:
    return stages[number].replace("_", "-") if number < len(stages) else str(number)


def _unknown(argument: str, kind: Any, value: Any, command: str) -> str:
    """What is said of an argument that no field has."""
    option, equals, _ = argument.partition("=")
    if not option.startswith("-"):
        return f"unknown argument {argument!r}, see distill3d {command} --help"
    known = {name.replace("_", "-"): name for name in option_names(kind, value)}
    near = difflib.get_close_matches(option.replace("_", "-"), known, n=1)
    if not near:  # where the parts before it are right, or left out
        last = option.rsplit(".", 1)[-1].strip("-").replace("_", "-")
        ends = [name for name in known if re.split(r"[.]|^--", name)[-1] == last]
        near = ends if len(ends) == 1 else []
    if not near:
        return f"unknown option {option!r}, see distill3d {command} --help"
    spelt = near[0].replace("-", "_").replace("__", "--", 1) if "_" in option else near[0]
    return f"unknown option {option!r}, did you mean {spelt}{equals}?"


def option_names(kind: Any, value: Any, prefix: str = "--") -> Iterator[str]:
    """The options of a dataclass as it stands: those of the parts that it holds, by the stages' names."""
    for field in fields(kind):
        part, hint = getattr(value, field.name), hints_of(kind)[field.name]
        inner = prefix if is_part_of_whole(hint) else f"{prefix}{field.name.replace('_', '-')}."
        if is_dataclass(part):
            yield from option_names(type(part), part, inner)
        elif isinstance(part, tuple) and part and all(map(is_dataclass, part)):
            for number, item in enumerate(part):
                own = item.name.replace("_", "-") if getattr(item, "known_by_name", False) else number
                yield from option_names(type(item), item, f"{inner}{own}.")
        else:
            yield inner.removesuffix(".")


def _paths(options: Any) -> Iterator[Path]:
    """All paths among the fields of a dataclass, those of dataclasses and tuples within it included."""
    if isinstance(options, Path):
        yield options
    elif isinstance(options, tuple | list):
        for one in options:
            yield from _paths(one)
    elif is_dataclass(options):
        for one in fields(options):
            yield from _paths(getattr(options, one.name))


def _sentence(panel: str) -> str:
    """The first paragraph of the option parser's boxed message, on one line; where a terminal has no lines to draw, the
    box is a title, and paragraphs between rows of hyphens."""
    lines = [re.sub(r"^[│\s]+|[│\s]+$", "", line) for line in panel.splitlines()]
    lines = [line for line in lines if line and not re.match(r"^[╭╰]", line)]
    lines = lines if panel.lstrip().startswith("╭") else lines[2:]
    paragraph = takewhile(lambda line: not RULE.match(line), lines)
    text = " ".join(paragraph).split(" For full helptext")[0]
    return _unread(text) or text or "the options could not be read"


def _unread(text: str) -> str | None:
    """What is said of an option whose value is not of its type, without the option parser's own insides."""
    match = UNREAD.match(text)
    if match is None:
        return None
    option, reason = match.groups()
    several = ONE_OF.match(reason)
    if several is not None:
        kinds = [SPOKEN.get(kind, kind) for kind in several[1].split("|") if kind != "{None}"]
        return f"{option} is {several[2]}, expected {' or '.join(kinds)}"
    number = NO_NUMBER.search(reason)
    if number is not None:
        return f"{option} is {number[2]}, expected {SPOKEN['INT' if number[1] else 'FLOAT']}"
    return f"{option}: {reason}"
