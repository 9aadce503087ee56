"""Checksums inside the files themselves, so that a file and its checksum can never disagree after a kill.

A checksum stands first as ``BLANK`` in its place and is then filled in; every byte is under it:

- weights, a safetensors file: SHA-256 of the whole file, in the header's metadata;
- states, the zip archive that ``torch.save`` writes: the entries have CRCs of their own, which are tested, and SHA-256
  of all that is not in an entry, those CRCs among it, is the archive's comment.  Nothing is read a second time when a
  state is written.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zipfile
from pathlib import Path
from typing import IO

#: The key of a safetensors file's metadata.
CHECKSUM = "sha256"
DIGITS = 64
BLANK = "0" * DIGITS
#: How the comment of a state's archive begins; the digits follow.
COMMENT = b"distill3d sha256 "
#: Of a zip archive's local headers: their size, and where the lengths of what follows them stand.
LOCAL_HEADER, LENGTHS_AT = 30, 26


class Damaged(Exception):
    """A file is not as it was written; says how that shows."""


# ------------------------------------------------------------------------------------------------------------- weights


def seal_weights(data: bytes) -> bytes:
    """A safetensors file that has metadata, with its checksum among them.

    It is put in here, as the first: safetensors itself writes several metadata in any order, so that equal weights
    would give unequal files.

    Raises:
        ValueError: it has no metadata.
    """
    text, begin = header(data), b'{"__metadata__":{'
    if not text.startswith(begin):
        raise ValueError("a safetensors file without metadata cannot hold its checksum")
    rest = data[8 + len(text) :]
    text = b'%s"%s":"%s",%s' % (begin, CHECKSUM.encode(), BLANK.encode(), text[len(begin) :].rstrip(b" "))
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8 bytes
    data = len(text).to_bytes(8, "little") + text + rest
    at = _place(data)
    return data[:at] + _digest(data, at).encode() + data[at + DIGITS :]


def test_weights(data: bytes) -> None:
    """Compares a safetensors file with its checksum.

    Raises:
        Damaged: it has none, or another.
    """
    at = _place(data)
    if data[at : at + DIGITS] != _digest(data, at).encode():
        raise Damaged("is damaged (its checksum differs)")


def header(data: bytes) -> bytes:
    """The JSON with which a safetensors file begins, after its length."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


def _place(data: bytes) -> int:
    """Where the checksum's digits begin.  Inside the card quotes are escaped, so that the pattern is there once."""
    found = list(re.finditer(rb'"%s":"[0-9a-f]{%d}"' % (CHECKSUM.encode(), DIGITS), header(data)))
    if len(found) != 1:
        raise Damaged("has no card with a checksum in its header")
    return 8 + found[0].end() - 1 - DIGITS


def _digest(data: bytes, at: int) -> str:
    view, digest = memoryview(data), hashlib.sha256()
    for part in (view[:at], BLANK.encode(), view[at + DIGITS :]):
        digest.update(part)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------------------- states


def seal_archive(path: Path) -> None:
    """Puts its checksum into an archive that ``torch.save`` wrote."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = COMMENT + BLANK.encode()
    with path.open("r+b") as file:
        digest = _frame_digest(file)
        file.seek(-DIGITS, 2)
        file.write(digest.encode())


def test_archive(file: IO[bytes]) -> None:
    """Compares an archive with its checksum and its entries with their CRCs.

    It takes an open file, not a path: while a training goes on, the next state may take that path between two openings.

    Raises:
        Damaged: it has no checksum, or something differs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            comment = archive.comment
            if not comment.startswith(COMMENT):
                raise Damaged("has no checksum of distill3d")
            intact = comment == COMMENT + _frame_digest(file).encode() and archive.testzip() is None
    except Damaged:
        raise
    except Exception:  # there is no list of what reading a damaged archive raises
        raise Damaged("is damaged, or was not written by distill3d") from None
    if not intact:
        raise Damaged("is damaged (its checksum differs)")


def _frame_digest(file: IO[bytes]) -> str:
    """SHA-256 of an archive without the contents of its entries, and without the last digits."""
    digest, at = hashlib.sha256(), 0
    with zipfile.ZipFile(file) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
            file.seek(entry.header_offset + LENGTHS_AT)
            begin = entry.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", file.read(4)))
            if begin < at or entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                raise Damaged("is damaged, or was not written by distill3d")
            file.seek(at)
            digest.update(file.read(begin - at))
            at = begin + entry.file_size
        file.seek(at)
        digest.update(file.read()[:-DIGITS])
    return digest.hexdigest()
