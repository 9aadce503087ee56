"""How sound inputs become others: each mutation names its file, what is done to it and where, so that it can be told
from the outside, repeated exactly, and kept as a case.

Places are numbers that are taken modulo what is there, so a mutation fits any content, also that of a later version of
the makers.  A mutation that finds nothing to do leaves the file as it was.
"""

from __future__ import annotations

import codecs
import json
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import yaml

from . import archives, pictures
from .nodes import changed_tree, paths_of
from .values import ARGUMENTS, DEEP_LISTS, DEEP_OBJECTS, DEPTH, NUMBERS, TWICE, VALUES, WORDS

#: The "file" that holds a command's words.
COMMAND_LINE = "command line"
LARGE = 1 << 30


class Place(NamedTuple):
    """What stands where a file stood, other than bytes; ``kind`` as in ``PLACES``."""

    kind: str
    name: str = ""


@dataclass(frozen=True)
class Mutation:
    """One change of one file."""

    file: str  # below the box, or COMMAND_LINE
    how: str  # a key of ``WAYS``
    given: dict[str, Any]

    def to_plain(self) -> dict[str, Any]:
        return {"file": self.file, "how": self.how, "given": self.given}

    @property
    def neutral(self) -> bool:
        """Whether the content means the same afterwards."""
        return WAYS[self.how].neutral

    def apply(self, data: bytes) -> bytes | Place:
        try:
            return WAYS[self.how].apply(data, **self.given)
        except Exception:
            return data  # it does not fit what an earlier mutation left, or what later makers make


class Way(NamedTuple):
    """A kind of change: how its details are drawn for a content, and how it is done."""

    draw: Callable[[random.Random, bytes], dict[str, Any]]
    apply: Callable[..., bytes | Place]
    neutral: bool = False


WAYS: dict[str, Way] = {}


def way(draw: Callable[[random.Random, bytes], dict[str, Any]], neutral: bool = False):
    """Registers a change under its function's name."""

    def register(apply: Callable[..., bytes | Place]):
        WAYS[apply.__name__] = Way(draw, apply, neutral)
        return apply

    return register


def nothing(rng: random.Random, data: bytes) -> dict[str, Any]:
    return {}


def spot(rng: random.Random, data: bytes) -> dict[str, Any]:
    """A place in the file; headers, which say most, are chosen more often."""
    reach = max(len(data), 1) if rng.random() < 0.6 else min(max(len(data), 1), 256)
    return {"at": rng.randrange(reach)}


# ---------------------------------------------------------------------------------------------------------------- bytes


@way(spot)
def truncate(data: bytes, at: int) -> bytes:
    return data[: at % (len(data) + 1)]


@way(lambda rng, data: {**spot(rng, data), "bit": rng.randrange(8)})
def flip(data: bytes, at: int, bit: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def span(rng: random.Random, data: bytes) -> dict[str, Any]:
    return {**spot(rng, data), "length": rng.choice((1, 2, 4, 16, 64, 1024))}


@way(span)
def delete_bytes(data: bytes, at: int, length: int) -> bytes:
    at %= len(data)
    return data[:at] + data[at + length :]


@way(lambda rng, data: {**span(rng, data), "times": rng.choice((1, 1, 2, 100))})
def repeat_bytes(data: bytes, at: int, length: int, times: int) -> bytes:
    at %= len(data)
    return data[: at + length] + data[at : at + length] * times + data[at + length :]


@way(lambda rng, data: {**span(rng, data), "with": rng.randrange(max(len(data), 1))})
def swap_bytes(data: bytes, at: int, length: int, **other: int) -> bytes:
    a, b = sorted((at % len(data), other["with"] % len(data)))
    length = min(length, b - a)
    return data[:a] + data[b : b + length] + data[a + length : b] + data[a : a + length] + data[b + length :]


@way(lambda rng, data: {**spot(rng, data), "bytes": rng.randbytes(rng.choice((1, 4, 32))).hex()})
def overwrite(data: bytes, at: int, **given: str) -> bytes:
    new, at = bytes.fromhex(given["bytes"]), at % len(data)
    return data[:at] + new + data[at + len(new) :]


@way(lambda rng, data: {**spot(rng, data), "kind": rng.choice(("<I", ">I", "<Q", "<H")), "share": rng.random()})
def claim(data: bytes, at: int, kind: str, share: float) -> bytes:
    """An integer somewhere says that there is very much of something."""
    most = 256 ** struct.calcsize(kind) - 1
    value = struct.pack(kind, most if share < 0.5 else most >> 1 if share < 0.7 else int(most * share) >> 8)
    at %= len(data)
    return data[:at] + value + data[at + len(value) :]


@way(lambda rng, data: {"bytes": rng.randbytes(rng.choice((1, 3, 1000))).hex()})
def append_bytes(data: bytes, **given: str) -> bytes:
    return data + bytes.fromhex(given["bytes"])


# ---------------------------------------------------------------------------------------------------- what stands there

PLACES = ("absent", "empty", "folder", "loop", "dangling", "fifo", "renamed", "stray")
NAMES = (
    "._{}", "{}~", "{} ", " {}", "x{}", "{}.txt", "é{}", "\u65e5{}", "\u202e{}", "\x1b[31m{}", "{}\n", "{}" + "x" * 200,
    "-{}", "%s{}", "[/]{}", "{}.bak", ".DS_Store", "Thumbs.db", "000000.txt", "999999.txt", "1.txt", "000000.png",
)  # fmt: skip


@way(lambda rng, data: {"kind": rng.choice(PLACES), "name": rng.choice(NAMES)})
def place(data: bytes, kind: str, name: str = "") -> Place:
    return Place(kind, name)


@way(nothing, neutral=True)
def touch(data: bytes) -> bytes:
    return data


@way(nothing, neutral=True)
def link(data: bytes) -> Place:
    return Place("link")


# ----------------------------------------------------------------------------------------------------------------- text


def lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def line(rng: random.Random, data: bytes) -> dict[str, Any]:
    return {"line": rng.randrange(max(data.count(b"\n"), 1))}


@way(line)
def delete_line(data: bytes, line: int) -> bytes:
    lines = lines_of(data)
    del lines[line % len(lines)]
    return b"".join(lines)


@way(lambda rng, data: {**line(rng, data), "times": rng.choice((1, 1, 1, 3, 100, 20_000))})
def repeat_line(data: bytes, line: int, times: int) -> bytes:
    lines = lines_of(data)
    line %= len(lines)
    times = min(times, 4_000_000 // len(lines[line]))
    return b"".join([*lines[:line], *lines[line : line + 1] * (times + 1), *lines[line + 1 :]])


@way(lambda rng, data: {**line(rng, data), "with": rng.randrange(LARGE)})
def swap_lines(data: bytes, line: int, **other: int) -> bytes:
    lines = lines_of(data)
    a, b = line % len(lines), other["with"] % len(lines)
    lines[a], lines[b] = lines[b], lines[a]
    return b"".join(lines)


@way(line)
def join_lines(data: bytes, line: int) -> bytes:
    lines = lines_of(data)
    line %= len(lines)
    lines[line] = lines[line].rstrip(b"\r\n") + b" "
    return b"".join(lines)


@way(lambda rng, data: {**line(rng, data), "text": rng.choice(("# x", "//", "", "   ", "x: 1", *WORDS))})
def insert_line(data: bytes, line: int, text: str) -> bytes:
    lines = lines_of(data)
    lines.insert(line % (len(lines) + 1), _encoded(text) + b"\n")
    return b"".join(lines)


def word(rng: random.Random, data: bytes) -> dict[str, Any]:
    return {**line(rng, data), "word": rng.randrange(32)}


def spelling(rng: random.Random) -> str:
    return rng.choice(NUMBERS if rng.random() < 0.6 else WORDS)


@way(lambda rng, data: {**word(rng, data), "text": spelling(rng)})
def set_word(data: bytes, line: int, word: int, text: str) -> bytes:
    return _with_words(data, line, word, lambda words, i: [*words[:i], _encoded(text), *words[i + 1 :]])


@way(word)
def delete_word(data: bytes, line: int, word: int) -> bytes:
    return _with_words(data, line, word, lambda words, i: [*words[:i], *words[i + 1 :]])


@way(lambda rng, data: {**word(rng, data), "text": spelling(rng)})
def insert_word(data: bytes, line: int, word: int, text: str) -> bytes:
    return _with_words(data, line, word, lambda words, i: [*words[:i], _encoded(text), *words[i:]])


@way(word)
def swap_words(data: bytes, line: int, word: int) -> bytes:
    return _with_words(data, line, word, lambda words, i: [*words[:i], *words[i : i + 2][::-1], *words[i + 2 :]])


def _with_words(data: bytes, line: int, word: int, change: Callable[[list[bytes], int], list[bytes]]) -> bytes:
    lines = lines_of(data)
    line %= len(lines)
    words = lines[line].split()
    lines[line] = b" ".join(change(words, word % max(len(words), 1))) + b"\n"
    return b"".join(lines)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@way(
    lambda rng, data: {**spot(rng, data), "bytes": rng.choice(("00", "e9", "ff", "c3", "eda080", "efbfbe", "1a", "0c"))}
)
def insert_bytes(data: bytes, at: int, **given: str) -> bytes:
    at %= len(data) + 1
    return data[:at] + bytes.fromhex(given["bytes"]) + data[at:]


@way(lambda rng, data: {"as": rng.choice(("utf-16", "utf-16-be", "utf-32", "utf-7", "cp500"))})
def encode(data: bytes, **given: str) -> bytes:
    return data.decode().encode(given["as"])


@way(lambda rng, data: {"count": rng.choice((2, 3))})
def marks(data: bytes, count: int) -> bytes:
    return codecs.BOM_UTF8 * count + data


@way(nothing, neutral=True)
def mark(data: bytes) -> bytes:
    return codecs.BOM_UTF8 + data


@way(nothing, neutral=True)
def windows_line_ends(data: bytes) -> bytes:
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


@way(lambda rng, data: {"text": rng.choice((" ", "\t", "    "))}, neutral=True)
def trailing_spaces(data: bytes, text: str) -> bytes:
    return data.replace(b"\n", text.encode() + b"\n")


@way(lambda rng, data: {"count": rng.choice((1, 3))}, neutral=True)
def trailing_lines(data: bytes, count: int) -> bytes:
    return data + b"\n" * count


@way(nothing, neutral=True)
def no_last_line_end(data: bytes) -> bytes:
    return data.removesuffix(b"\n")


# -------------------------------------------------------------------------------------------- JSON, YAML, lines of JSON


@lru_cache(64)
def _paths(data: bytes, kind: str) -> list[list[str | int]]:
    return paths_of(_parsed(data, kind))


def _parsed(data: bytes, kind: str) -> Any:
    if b"[" * 64 in data or b'{"a":' * 64 in data:  # of an earlier mutation: libyaml would run out of stack
        raise ValueError
    if kind == "json":
        return json.loads(data)
    if kind == "jsonl":
        return [json.loads(line) for line in data.splitlines()]
    return yaml.load(data, yaml.CSafeLoader)


def _written(tree: Any, kind: str, like: bytes) -> bytes:
    if kind == "json":
        text = json.dumps(tree, indent=0 if like.count(b"\n") > 3 else None)
    elif kind == "jsonl":
        text = "".join(f"{json.dumps(line)}\n" for line in tree) if isinstance(tree, list) else json.dumps(tree)
    else:
        text = yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False)
    for stand_in, begin, end in ((DEEP_LISTS, "[", "]"), (DEEP_OBJECTS, '{"a":', "}")):
        if stand_in in text:
            text = re.sub(
                f"[\"']?{stand_in}[\"']?", lambda _, b=begin, e=end: b * DEPTH + "1" + e * DEPTH, text, count=1
            )
    return text.replace(TWICE, "").encode()


def node(rng: random.Random, data: bytes, kind: str) -> dict[str, Any]:
    """Somewhere in the tree; of long lists of like records, mostly the first ones."""
    try:
        paths = _paths(data, kind)
    except (ValueError, yaml.YAMLError, RecursionError):
        return {"kind": kind, "path": []}
    return {"kind": kind, "path": rng.choice(paths)}


def tree_change(rng: random.Random, data: bytes, kind: str) -> dict[str, Any]:
    how = rng.choices(
        ("set", "delete", "repeat", "wrap", "rename", "twice", "text", "swap"), (10, 3, 2, 1, 1, 1, 1, 2)
    )[0]
    given = {**node(rng, data, kind), "change": how}
    if how == "set":
        given["value"] = rng.choice(list(VALUES))
    if how == "rename":
        given["value"] = rng.choice(("empty", "x", "override", "lone surrogate", "control", "climbing", "5000 letters"))
    if how == "swap":
        given["value"] = node(rng, data, kind)["path"]
    return given


def _change_tree(data: bytes, kind: str, path: list[str | int], change: str, value: Any = None) -> bytes:
    found = value if change == "swap" else VALUES[value] if value is not None else None
    return _written(changed_tree(_parsed(data, kind), path, change, found), kind, data)


for _kind in ("json", "jsonl", "yaml"):
    WAYS[f"change_{_kind}"] = Way(lambda rng, data, k=_kind: tree_change(rng, data, k), _change_tree)


@way(lambda rng, data: {"depth": rng.choice((1000, DEPTH)), "text": rng.choice(("[", '{"a":', "- ", "{", "? "))})
def nest(data: bytes, depth: int, text: str) -> bytes:
    """Nothing but the beginnings of things in things."""
    return text.encode() * depth


@way(nothing, neutral=True)
def reorder_keys(data: bytes) -> bytes:
    def turned(tree: Any) -> Any:
        if isinstance(tree, dict):
            # The order of lists by name, such as a submission's samples, decides between equal scores.
            lists = all(isinstance(value, list) for value in tree.values())
            return {key: turned(tree[key]) for key in (tree if lists else reversed(tree))}
        return [turned(item) for item in tree] if isinstance(tree, list) else tree

    return _written(turned(json.loads(data)), "json", data)


@way(lambda rng, data: {"indent": rng.choice((None, 0, 4))}, neutral=True)
def reformat(data: bytes, indent: int | None) -> bytes:
    return json.dumps(json.loads(data), indent=indent).encode()


# -------------------------------------------------------------------------------------------- scans, pictures, archives


@way(lambda rng, data: {"at": rng.randrange(LARGE), "value": rng.choice(NUMBERS[:14])})
def set_float(data: bytes, at: int, value: str) -> bytes:
    at = at % (len(data) // 4) * 4
    try:
        number = struct.pack("<f", float(value))
    except OverflowError:
        number = struct.pack("<f", float("inf"))
    return data[:at] + number + data[at + 4 :]


@way(lambda rng, data: {"as": rng.choice(("<f8", ">f4", "<f2", "<i4")), "columns": rng.choice((4, 5))})
def retype_floats(data: bytes, columns: int, **given: str) -> bytes:
    import numpy as np

    with np.errstate(all="ignore"):
        return np.frombuffer(data[: len(data) // 4 * 4], "<f4").astype(given["as"]).tobytes()


@way(lambda rng, data: {"before": rng.choice((4, 5)), "after": rng.choice((3, 4, 5, 6))})
def recolumn(data: bytes, before: int, after: int) -> bytes:
    import numpy as np

    rows = np.frombuffer(data[: len(data) // (4 * before) * 4 * before], "<f4").reshape(-1, before)
    wide = np.concatenate((rows, np.zeros((len(rows), 6), "<f4")), 1)
    return np.ascontiguousarray(wide[:, :after]).tobytes()


@way(lambda rng, data: {"name": rng.choice(list(pictures.MADE))})
def other_picture(data: bytes, name: str) -> bytes:
    return pictures.made(name, data)


@way(lambda rng, data: {"field": rng.choice(list(pictures.HEADER)), "value": rng.choice(pictures.CLAIMS)})
def claim_picture(data: bytes, field: str, value: int) -> bytes:
    return pictures.with_claim(data, field, value)


@way(lambda rng, data: {"name": rng.choice(list(pictures.CHUNKS))})
def picture_chunk(data: bytes, name: str) -> bytes:
    return pictures.with_chunk(data, name)


@way(lambda rng, data: {"level": rng.choice((0, 9))}, neutral=True)
def recompress(data: bytes, level: int) -> bytes:
    return pictures.recompressed(data, level)


WAYS["change_state"] = Way(archives.draw_state_change, archives.change_state)
WAYS["change_weights"] = Way(archives.draw_header_change, archives.change_header)


@way(lambda rng, data: {"at": rng.randrange(LARGE), "bit": rng.randrange(8)})
def flip_anywhere(data: bytes, at: int, bit: int) -> bytes:
    return flip(data, at, bit)


# ------------------------------------------------------------------------------------------------------------ the words


def _argument(rng: random.Random) -> str:
    return rng.choice(rng.choice((NUMBERS, WORDS, ARGUMENTS)))


def argument_change(rng: random.Random, data: bytes) -> dict[str, Any]:
    change = rng.choices(("set", "delete", "insert", "repeat", "swap", "glue", "cut"), (10, 2, 3, 1, 1, 1, 1))[0]
    count = max(len(json.loads(data)), 1)
    first = max(count - 3, 0) if rng.random() < 0.6 else 0  # what tells command lines apart stands last
    return {"change": change, "at": rng.randrange(first, count), "text": _argument(rng)}


@way(argument_change)
def change_arguments(data: bytes, change: str, at: int, text: str) -> bytes:
    words: list[str] = json.loads(data)
    if not words:
        change = "insert"
    at %= len(words) + (change == "insert")
    if change == "set":
        words[at] = text
    elif change == "insert":
        words.insert(at, text)
    elif change == "delete":
        del words[at]
    elif change == "repeat":
        words[at:at] = words[at : at + 2]
    elif change == "swap":
        words[at : at + 2] = words[at : at + 2][::-1]
    elif change == "glue":
        words[at : at + 2] = ["=".join(words[at : at + 2])]
    elif change == "cut":
        words[at] = words[at][: len(words[at]) // 2]
    return json.dumps(words).encode()


# ------------------------------------------------------------------------------------------------------------- choosing

BYTES = ("truncate", "flip", "delete_bytes", "repeat_bytes", "swap_bytes", "overwrite", "claim", "append_bytes")
TEXT = (
    "delete_line", "repeat_line", "swap_lines", "join_lines", "insert_line", "set_word", "set_word", "set_word",
    "set_word", "delete_word", "insert_word", "swap_words",
)  # fmt: skip
ENCODINGS = ("insert_bytes", "insert_bytes", "encode", "marks")
OWN: dict[str, tuple[str, ...]] = {
    "txt": TEXT, "json": ("change_json",), "jsonl": ("change_jsonl",), "yaml": ("change_yaml",),
    "bin": ("set_float", "set_float", "retype_floats", "recolumn"),
    "png": ("other_picture", "other_picture", "claim_picture", "picture_chunk"), "jpg": ("other_picture",),
    "ckpt": ("change_state", "change_state", "flip_anywhere"), "safetensors": ("change_weights", "flip_anywhere"),
}  # fmt: skip
NEUTRAL: dict[str, tuple[str, ...]] = {
    "txt": ("mark", "windows_line_ends", "trailing_spaces", "trailing_lines", "no_last_line_end"),
    "json": ("mark", "windows_line_ends", "trailing_lines", "reorder_keys", "reformat"),
    "jsonl": ("mark", "windows_line_ends", "trailing_lines"), "yaml": ("mark", "windows_line_ends", "trailing_lines"),
    "png": ("recompress",),
}  # fmt: skip
TEXTUAL = ("txt", "json", "jsonl", "yaml")


def draw(rng: random.Random, file: str, data: bytes, neutral: bool = False) -> Mutation:
    """A mutation of a file with this content; with ``neutral`` one after which it means the same."""
    if file == COMMAND_LINE:
        return Mutation(file, "change_arguments", argument_change(rng, data))
    ending = file.rpartition(".")[2]
    if neutral:
        how = rng.choice((*NEUTRAL.get(ending, ()), *NEUTRAL.get(ending, ()), "touch", "link"))
    else:
        groups: list[tuple[tuple[str, ...], float]] = [(BYTES, 2), (("place",), 1)]
        if ending in OWN:
            groups.append((OWN[ending], 6))
        if ending in TEXTUAL:
            groups += [(ENCODINGS, 1)]
        if ending in ("json", "yaml", "jsonl"):
            groups += [(("nest",), 0.2), (TEXT, 0.5)]
        how = rng.choice(rng.choices([g for g, _ in groups], [w for _, w in groups])[0])
    return Mutation(file, how, WAYS[how].draw(rng, data))
