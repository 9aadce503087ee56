"""Large JSON files that hold one list of flat records, read piece by piece into numpy columns.

A record type is a ``msgspec.Struct`` whose fields name the keys wanted; other keys are skipped by the parser and never
become objects.  Only one piece of the file is held as text and as Python objects at a time.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import numpy as np

from distill3d.files import at_once

#: Text parsed at a time.  The objects of a larger piece live long enough for the garbage collector to go through all
#: objects of the process again and again, which takes as long as the parsing.
CHUNK_BYTES = 1 << 18
#: A column is made so much longer than the share of the file read so far suggests, and at least so much longer than
#: what it holds, when it is made anew.
_SLACK, _GROWTH = 1.02, 1.25
#: Longest run of blanks looked at before a record; with a longer one the file is not cut there.
_MOST_BLANKS = 64
_BEFORE_RECORD = re.compile(rb"\}(\s*,\s*)\Z")
_NUL = b"\\u0000"
_BYTE = re.compile(r" ?\(byte (\d+)\)")
_MISSING_KEY = re.compile(r"Object missing required field `(.+?)`")


@dataclass(frozen=True)
class RecordFault:
    """One thing that is wrong with a file of records."""

    file: Path
    record: str | None  # as "token 3e8750f3" or "record 17"; None where the file as a whole is meant
    sentence: str

    def __str__(self) -> str:
        return ": ".join(str(part) for part in (self.file, self.record, self.sentence) if part is not None)


def read_columns(
    path: Path, record: type[msgspec.Struct], chunk_bytes: int = CHUNK_BYTES
) -> tuple[dict[str, np.ndarray] | None, list[RecordFault]]:
    """The records of a .json or .json.gz file as one array per field of ``record``.

    Fields become: ``str`` bytes (n,), UTF-8; ``int`` int64 (n,); ``bool`` bool (n,); a tuple of k floats
    float64 (n, k); ``list[str]`` bytes (n, k), padded with empty ones to the longest; anything else objects (n,).

    Returns:
        The columns, without the records that are faulty, and what is wrong; no columns where the file cannot be read or
        is not a list of records.
    """
    reader = _Reader(path, record)
    columns = {name: _Column(_converter(kind)) for name, kind in get_type_hints(record).items()}
    try:
        with open(path, "rb", opener=at_once) as file:
            size = max(os.fstat(file.fileno()).st_size, 1)
            stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            for records in reader.pieces(stream, chunk_bytes):
                for name, column in columns.items():
                    column.add(list(map(attrgetter(name), records)), file.tell() / size)
    except msgspec.DecodeError as error:
        return None, [RecordFault(path, None, reader.malformed(error))]
    except UnicodeDecodeError:
        return None, [RecordFault(path, None, f"is not UTF-8 text after record {reader.records}")]
    except RecursionError:
        return None, [RecordFault(path, None, f"is nested too deeply after record {reader.records}")]
    except OverflowError:
        return None, [RecordFault(path, None, "holds a whole number of more than 64 bits")]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return None, [RecordFault(path, None, f"cannot be unpacked: {error}")]
    except OSError as error:
        return None, [RecordFault(path, None, (error.strerror or str(error)).lower())]
    return {name: column.array() for name, column in columns.items()}, reader.faults


def empty_columns(record: type[msgspec.Struct]) -> dict[str, np.ndarray]:
    """The columns of a file without records."""
    return {name: _converter(kind)([]) for name, kind in get_type_hints(record).items()}


class _Reader:
    """Cuts a file between records and decodes the pieces; remembers how far it came and what was wrong."""

    def __init__(self, path: Path, record: type[msgspec.Struct]) -> None:
        self.path = path
        self.faults: list[RecordFault] = []
        self._all = msgspec.json.Decoder(list[record])
        self._one = msgspec.json.Decoder(record)
        self._apart = msgspec.json.Decoder(list[msgspec.Raw])
        self.records = 0  # decoded so far
        self._bytes = 0  # of the file, before the text in hand

    def pieces(self, stream: BufferedIOBase, chunk_bytes: int) -> Iterator[list[msgspec.Struct]]:
        """The records, a piece of about ``chunk_bytes`` at a time.

        A cut inside a string or inside a record leaves a text that is no JSON list; then the rest of the file is
        decoded at once.
        """
        text = b""
        while block := stream.read(max(chunk_bytes, len(text))):
            text += block if text or self.records else block.removeprefix(codecs.BOM_UTF8)
            cut = _last_cut(text)
            if cut is None:
                continue
            end, following = cut
            try:
                records = self._decode(text[:end] + b"]")
            except msgspec.DecodeError:
                text += stream.read()
                break
            yield records
            text = b"[" + text[following:]
            self._bytes += following - 1
        yield self._decode(text)

    def _decode(self, text: bytes) -> list[msgspec.Struct]:
        """The sound records of a JSON list; the others go to ``faults``."""
        # Arrays of bytes cannot tell a NUL at the end of a text from none.
        if b"\\" not in text or _NUL not in text:
            try:
                records = self._all.decode(text)
                self.records += len(records)
                return records
            except msgspec.ValidationError:
                pass
        records = []
        for raw in self._apart.decode(text):
            self.records += 1
            try:
                record = self._one.decode(raw)
            except msgspec.ValidationError as error:
                self.faults.append(RecordFault(self.path, _name(raw, self.records), _sentence(str(error))))
                continue
            if _holds_nul(record):
                sentence = "holds a NUL character, expected text"
                self.faults.append(RecordFault(self.path, f"record {self.records}", sentence))
                continue
            records.append(record)
        return records

    def malformed(self, error: msgspec.DecodeError) -> str:
        """The sentence for a text that is no JSON list."""
        text = str(error)
        found = _BYTE.search(text)
        if found is None:
            return f"is not a JSON list of records: {_lower(text)} after record {self.records}"
        return f"is not a JSON list of records: {_lower(_BYTE.sub('', text))} at byte {self._bytes + int(found[1])}"


def _holds_nul(record: msgspec.Struct) -> bool:
    values = chain.from_iterable(v if isinstance(v, list) else [v] for v in msgspec.structs.astuple(record))
    return any(isinstance(value, str) and "\0" in value for value in values)


def _last_cut(text: bytes) -> tuple[int, int] | None:
    """Where the last record that begins inside ``text`` is cut off: end of the one before it, and its own begin."""
    begin = len(text)
    while (begin := text.rfind(b"{", 0, begin)) > 0:
        before = max(0, begin - _MOST_BLANKS)
        found = _BEFORE_RECORD.search(text[before:begin])
        if found is not None:
            return before + found.start(1), begin
    return None


def _name(raw: msgspec.Raw, number: int) -> str:
    record = msgspec.json.decode(raw)
    token = record.get("token") if isinstance(record, dict) else None
    return f"token {token}" if isinstance(token, str) and token else f"record {number}"


def _sentence(message: str) -> str:
    """What a record lacks, from the parser's message."""
    missing = _MISSING_KEY.match(message)
    if missing is not None:
        return f"lacks the key {missing[1]}"
    what, _, where = message.partition(" - at ")
    key = where.strip("`").removeprefix("$").lstrip(".")
    return f"{key}: {_lower(what)}" if key else _lower(what)


def _lower(sentence: str) -> str:
    sentence = sentence.replace("`", "")
    return sentence if sentence.startswith("JSON") else sentence[:1].lower() + sentence[1:]


# -------------------------------------------------------------------------------------------------------------- columns


class _Column:
    """The values of one field, written piece by piece into an array about as long as the whole will be.

    Memory is touched once: to keep the pieces and join them takes as long as to parse them.
    """

    def __init__(self, to_array: Callable[[Sequence], np.ndarray]) -> None:
        self._to_array = to_array
        self._held, self._rows = to_array([]), 0

    def add(self, values: Sequence, share: float) -> None:
        """Appends values; ``share`` (0..1) of the file has been read with them."""
        part = self._to_array(values)
        begin, end = self._rows, self._rows + len(part)
        held = self._held
        if end > len(held) or part.itemsize > held.itemsize or part.shape[1:] > held.shape[1:]:
            rows = len(held) if end <= len(held) else int(end * max(_SLACK / share, _GROWTH))
            inner = tuple(map(max, held.shape[1:], part.shape[1:]))
            wider = np.zeros((rows, *inner), np.promote_types(held.dtype, part.dtype))
            wider[(slice(begin), *map(slice, held.shape[1:]))] = held[:begin]
            held = self._held = wider
        held[(slice(begin, end), *map(slice, part.shape[1:]))] = part
        self._rows = end

    def array(self) -> np.ndarray:
        return self._held[: self._rows]


def _converter(kind: Any) -> Callable[[Sequence], np.ndarray]:
    """How the values of a field of this type become an array."""
    if kind is str:
        return _texts
    if kind is int:
        return lambda values: np.array(values, np.int64)
    if kind is bool:
        return lambda values: np.array(values, np.bool_)
    if kind == list[str]:
        return _text_lists
    if get_origin(kind) is tuple and set(get_args(kind)) == {float}:
        count = len(get_args(kind))
        return lambda values: np.fromiter(chain.from_iterable(values), np.float64, count * len(values)).reshape(
            -1, count
        )
    return _objects


def _texts(values: Sequence[str]) -> np.ndarray:
    """Bytes (n,) as wide as the longest."""
    widths = set(map(len, values))
    width = max(widths, default=0) or 1
    try:
        if widths == {width}:  # tokens: twice as fast as by numpy
            return np.frombuffer("".join(values).encode("ascii"), f"S{width}")
        return np.array(values, f"S{width}")
    except UnicodeEncodeError:
        return np.array([value.encode() for value in values], "S")


def _text_lists(values: Sequence[list[str]]) -> np.ndarray:
    """Bytes (n, k), k the longest list's length."""
    count = max(map(len, values), default=0) or 1
    padded = [value if len(value) == count else value + [""] * (count - len(value)) for value in values]
    return _texts(list(chain.from_iterable(padded))).reshape(-1, count)


def _objects(values: Sequence) -> np.ndarray:
    return np.fromiter(values, object, len(values))
