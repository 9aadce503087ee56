"""Files: how text is read, and how anything is written.

Every file is written beside its place and renamed, with the mode that the umask gives: a reader, or a run killed at any
moment, sees the old file or the new one, never a part.  Files that go where a user said (``write_output``) never
replace one that this library did not write: each folder keeps a record of what was written there.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from distill3d.errors import UserError

#: Hidden file in a folder of outputs: a line of JSON for each file that was written there, the later one counts.
RECORD = ".distill3d-written.jsonl"
#: Files that are being written are called .distill3d-<host>-<process>-<random>.part
PART_BEGIN, PART_END = ".distill3d-", ".part"
#: Leftovers of processes on other machines, which cannot be asked for, are removed when they are this old, s.
ABANDONED_AFTER = 24 * 3600

_swept: set[Path] = set()


# ------------------------------------------------------------------------------------------------------------- reading


def read_bytes(path: Path) -> bytes:
    """A file as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise UserError(f"{path}: {reason_of(error)}") from None


def read_text(path: Path) -> str:
    """A text file in UTF-8, without the byte order mark that some editors put first.

    Raises:
        UserError: it is absent or not UTF-8; the sentence names the line.
    """
    return decoded(read_bytes(path), path)


def decoded(data: bytes, path: Path) -> str:
    """The text that a file's bytes stand for, without a byte order mark; line ends are ``\\n``.

    Raises:
        UserError: they are not UTF-8; the sentence names the line.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16, expected UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[error.start]:02x} is no UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is no JSON or is nested too deeply.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: is no JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        what = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number that is too long"
        raise UserError(f"{path}: {what}") from None


def reason_of(error: OSError | ValueError) -> str:
    """Why the system did not read or write a file, for a sentence that begins with its path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be used ({error.strerror})"
    return "is no path of a file"


# ------------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary neighbour, flushes it to disk and renames it over ``path``.

    For files inside folders that belong to this library (runs, caches); what goes where a user said is for
    ``write_output``.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary = path.with_name(f"{PART_BEGIN}{_host()}-{os.getpid()}-{uuid4().hex[:12]}{PART_END}")
        try:
            # Made here, with the umask's mode, whatever ``write`` would give it.
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from error


def write_text(path: Path, text: str) -> None:
    """``path`` with this content, as ``write_atomically``."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_output(path: Path, write: Callable[[Path], object]) -> None:
    """A file where the user said, as ``write_atomically``, and its entry in the folder's record.

    Raises:
        UserError: it cannot be written, or would replace a file that this library did not write.
    """
    refuse_foreign(path)
    write_atomically(path, write)
    entry = {"name": path.name, "size": path.stat().st_size, "blake2b": _digest(path)}
    with (path.parent / RECORD).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def refuse_foreign(path: Path) -> None:
    """Keeps a file that this library did not write, or that was changed since, from being replaced.

    Raises:
        UserError: there is such a file, or a folder of this name.
    """
    try:
        if not path.exists():
            return
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file to write")
        if path.is_file() and _recorded(path) == (path.stat().st_size, _digest(path)):
            return
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    raise UserError(
        f"{path}: is there already and was not written by distill3d, or was changed since: "
        "give another place, or move it away"
    )


def _recorded(path: Path) -> tuple[int, str] | None:
    """Size and digest of the file of this name when it was written; None where it was not."""
    try:
        lines = (path.parent / RECORD).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:  # half a line of a process that was killed
            continue
        if isinstance(entry, dict) and entry.get("name") == path.name:
            return entry.get("size", -1), entry.get("blake2b", "")
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder; looks once in a process."""
    folder = Path(os.path.abspath(folder))
    if folder in _swept:
        return
    _swept.add(folder)
    for part in folder.glob(f"{PART_BEGIN}*{PART_END}"):
        if _is_abandoned(part):
            part.unlink(missing_ok=True)


def _is_abandoned(part: Path) -> bool:
    host, _, process = part.name.removeprefix(PART_BEGIN).rpartition("-")[0].rpartition("-")
    if host == _host() and process.isdigit():
        return not is_alive(int(process))
    try:
        return time.time() - part.stat().st_mtime > ABANDONED_AFTER
    except OSError:
        return False


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
