"""Files: how text is read, and how anything is written.

Every file is written beside its place and renamed, with the mode that the umask gives: a reader, or a run killed at any
moment, sees the old file or the new one, never a part.  Files that go where a user said (``write_output``) never
replace one that this library did not write: each folder keeps a record of what was written there.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from distill3d.errors import UserError
from distill3d.processes import is_alive, machine, start_of
from distill3d.stop import held

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

#: Hidden file in a folder of outputs: a line of JSON for each file that was written there, the later one counts.
RECORD = ".distill3d-written.jsonl"
#: Of each name in a record so many of the latest entries count; a record of more lines than MOST_LINES is shortened
#: when most of them do not.
KEPT_ENTRIES, MOST_LINES = 4, 1000
#: Files that are being written are called .distill3d-<machine>-<process>-<its start>-<random>.part
PART_BEGIN, PART_END = ".distill3d-", ".part"
#: Leftovers of processes on other machines, which cannot be asked for, are removed when they are this old, s.
ABANDONED_AFTER = 24 * 3600
#: What may name a folder, and its greatest length (bytes).
NAME, LONGEST_NAME = re.compile(r"\w(?:[\w ,.=@+-]*[\w=@+-])?"), 120
#: Bytes that a file must be able to grow by, where a writer failed without saying why.
PROBE = 1 << 20
PIECE = 1 << 20  # bytes that are read at a time where the size says nothing
_NO_WAIT, _READ = getattr(os, "O_NONBLOCK", 0), os.O_RDONLY | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # a record that is a link leads to a file that is not ours
#: Settings in YAML are no longer than this (bytes), nested no deeper, and hold no more values once aliases are read.
LONGEST_YAML, DEEPEST, MOST_NODES = 1_000_000, 50, 100_000

_swept: set[Path] = set()


# ------------------------------------------------------------------------------------------------------------- reading


def at_once(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file, also as the opener of ``open``: named pipes, whose other end might never come, and
    devices, which may never end, are refused; the shell's own pipes (``<(...)``) are waited for.

    Raises:
        OSError, ValueError: as ``os.open``, or the path is of a named pipe or a device.
    """
    descriptor = os.open(path, flags | _NO_WAIT)
    mode = os.fstat(descriptor).st_mode
    pipe = stat.S_ISFIFO(mode)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or (pipe and os.path.exists(os.path.realpath(path))):
        os.close(descriptor)
        raise OSError(errno.ESPIPE, "a pipe or a device, not a file", str(path))
    if pipe:
        os.set_blocking(descriptor, True)
    return descriptor


def read_bytes(path: Path | str) -> bytes:
    """A file as it is.

    Raises:
        UserError: it cannot be read.
    """
    try:
        descriptor = at_once(path, _READ)
        try:  # Python's own files ask the system for more than is needed, which takes half as long again
            size = os.fstat(descriptor).st_size
            parts = [os.read(descriptor, size + 1)]
            while len(parts[0]) != size and parts[-1]:
                parts.append(os.read(descriptor, PIECE))
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise UserError(f"{path}: {reason_of(error)}") from None


def read_text(path: Path | str) -> str:
    """A text file in UTF-8, without the byte order mark that some editors put first.

    Raises:
        UserError: it is absent or not UTF-8; the sentence names the line.
    """
    return decoded(read_bytes(path), path)


def decoded(data: bytes, path: Path | str) -> str:
    """The text that a file's bytes stand for, without a byte order mark; line ends are ``\\n``.

    Raises:
        UserError: they are not UTF-8, or hold a NUL; the sentence names the line.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16, expected UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{data[error.start]:02x} is no UTF-8 text") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}:{line}: holds a NUL character, expected text")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, is no JSON, is nested too deeply or holds half a character.
    """
    return parse_json(read_text(path), path)


def parse_json(text: str, where: Path | str) -> Any:
    """What a JSON text holds.

    Raises:
        UserError: it is no JSON, is nested too deeply or holds half a character; the sentence begins with ``where``.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: is no JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        what = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number that is too long"
        raise UserError(f"{where}: {what}") from None
    _refuse_half_characters(text, value, where)
    return value


def read_yaml(path: Path) -> Any:
    """What a YAML file holds: plain values alone, for tags and anything that would run code are refused.

    Raises:
        UserError: it cannot be read, is no YAML, holds a tag, an alias of itself or aliases that stand for more than
            ``MOST_NODES`` values, is nested deeper than ``DEEPEST`` or longer than ``LONGEST_YAML``; the sentence
            names the line.
    """
    import yaml

    data = read_bytes(path)
    if len(data) > LONGEST_YAML:
        raise UserError(f"{path}: is {len(data)} bytes long, expected settings of at most {LONGEST_YAML}")
    text = decoded(data, path)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        _refuse_hostile(yaml.parse(text, Loader=loader), path)
        value = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{path}{'' if mark is None else f':{mark.line + 1}'}: is no YAML ({what})") from None
    except ValueError as error:  # of what looks like a number or a date and is none
        raise UserError(f"{path}: holds a value that cannot be read ({error})") from None
    _refuse_half_characters(text, value, path)
    return value


def _refuse_hostile(events: Iterable[Any], path: Path) -> None:
    """Looks at a YAML file's events, which come one after the other, before anything is built from them."""
    count = 0  # of values, those that aliases stand for included
    open_at: list[tuple[str | None, int]] = []  # the anchor of each open collection, and the count before it
    sizes: dict[str, int] = {}  # values that each finished anchor stands for
    for event in events:
        where = f"{path}:{event.start_mark.line + 1}"
        kind = type(event).__name__
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{where}: has the tag {event.tag!r}, expected plain values")
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_at.append((event.anchor, count))
            count += 1
            if len(open_at) > DEEPEST:
                raise UserError(f"{where}: is nested deeper than {DEEPEST} levels")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, before = open_at.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif kind == "ScalarEvent":
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif kind == "AliasEvent":
            if any(anchor == event.anchor for anchor, _ in open_at):
                raise UserError(f"{where}: the alias {event.anchor!r} stands within what it stands for")
            count += sizes.get(event.anchor, 1)
        if count > MOST_NODES:
            raise UserError(f"{where}: holds more than {MOST_NODES} values")


def _refuse_half_characters(text: str, value: Any, where: Path | str) -> None:
    r"""Escapes such as ``\ud800`` can stand for half a character, which no file can be written with."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where}: holds half a character (an escape such as \\ud800 alone)") from None


def inner_name(name: str, where: str) -> str:
    """A name that may become that of a file or folder inside another, as ``seq1/000006``; ``where`` it was read.

    Raises:
        UserError: it would lead out of that folder, or is no name.
    """
    if "\0" in name or not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise UserError(f"{where}: {name!r} is no name inside a folder, expected one such as 000006 or seq1/000006")
    return name


def names_below(folder: Path, ending: str) -> list[str]:
    """The files in a folder and its subfolders, without their ``ending`` (``.txt``): ``000006``, ``seq1/000006``.

    Hidden files and folders are left out, and folders that links lead back to.

    Raises:
        UserError: the folder is absent or cannot be read.
    """
    names: list[str] = []

    def look(place: str, prefix: str, above: tuple[str, ...]) -> None:
        real = os.path.realpath(place)
        if real in above:
            return
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(ending):
                    names.append(prefix + entry.name[: -len(ending)])
                elif entry.is_dir():
                    look(entry.path, f"{prefix}{entry.name}/", (*above, real))

    if not os.path.isdir(folder):  # unlike pathlib's, it takes names of any length
        raise UserError(f"{folder}: no such folder")
    try:
        look(os.fspath(folder), "", ())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {reason_of(error)}") from None
    return names


def reason_of(error: OSError | ValueError) -> str:
    """Why the system did not read or write a file, for a sentence that begins with its path."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError):
        return f"cannot be used ({error.strerror})"
    return "is no path of a file"


# ------------------------------------------------------------------------------------------------------------- writing


def folder_name(name: str, what: str) -> str:
    """A name that is going to be a folder's or a file's, such as a run's: ``what`` it names words the message.

    Raises:
        UserError: it is empty or too long, begins with a dot, or holds more than letters, digits, spaces and
            ``_+-.,=@``, such as a path's slashes.
    """
    if not NAME.fullmatch(name) or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"{what} is {name!r}, which cannot name a folder: expected letters, digits, spaces and _+-.,=@, "
            f"the first a letter, a digit or _, of {LONGEST_NAME} bytes at most"
        )
    return name


def write_atomically(path: Path, write: Callable[[Path], object], flush: bool = True) -> None:
    """Lets ``write`` fill a temporary neighbour, flushes it to disk and renames it over ``path``.

    For files inside folders that belong to this library (runs, caches, synthetic sets); what goes where a user said is
    for ``write_output``.  Without ``flush`` a file is still whole after a kill, though not after a power failure: for
    many small files that are cheap to make again.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    with _sentence_of(path), _filled(path, write, flush) as part:
        part.replace(path)


def write_text(path: Path, text: str, flush: bool = True) -> None:
    """``path`` with this content, as ``write_atomically``."""
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"), flush)


def append_text(path: Path, text: str) -> None:
    """Adds to a file of ours; what a killed process wrote of ``text`` may be a part of it.

    Raises:
        UserError: the folder or the file cannot be written.
    """
    with _sentence_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary folder, which then takes the place of ``folder``: a reader sees a whole one or
    none.  For folders of ours alone.

    Raises:
        OSError: it cannot be written; what was there is left unless the new one was complete.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    part = part_of(folder)
    try:
        part.mkdir()
        write(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_output(path: Path, write: Callable[[Path], object], of: Path | None = None, flush: bool = True) -> None:
    """A file where the user said, as ``write_atomically``, and its entry in the folder's record.

    ``of``: the file whose result this is, where many are made in one folder; the result of another one is not replaced.

    Raises:
        UserError: it cannot be written, or would replace a file that this library did not write.
    """
    before = _own(path, of)
    with _sentence_of(path), _filled(path, write, flush) as part:
        entry = _Entry(part.stat().st_size, _digest(part), _name_of(of))
        with held():
            # Recorded first: killed between the two, the record knows one file too many, not one too few.
            _records.add(path, entry)
            if before is not None or not _placed(part, path):
                if _stamp(path) != before:  # somebody wrote it in the meantime
                    _own(path, of)
                part.replace(path)
            part.unlink(missing_ok=True)
            outputs.append(path)


def write_output_text(path: Path, text: str) -> None:
    """A text file where the user said, as ``write_output``."""
    write_output(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def refuse_foreign(path: Path, of: Path | None = None) -> None:
    """What ``write_output`` would refuse, to be asked before long work: a file that this library did not write or that
    was changed since, one that is the result of another file than ``of``, and a place that cannot be written.  Nothing
    is written.

    Raises:
        UserError: there is such a file, or no file can be written there.
    """
    _own(path, of)
    with _sentence_of(path):
        folder = Path(os.path.abspath(path)).parent
        absent = [path.name]
        while not os.path.lexists(folder):
            absent.append(folder.name)
            folder = folder.parent
        if not folder.is_dir():
            raise UserError(f"{path}: cannot be written, for {folder} is no folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{path}: cannot be written, for the folder {folder} is closed to writing")
        if max(len(os.fsencode(name)) for name in absent) > _longest_name(folder):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _own(path: Path, of: Path | None) -> _Stamp | None:
    """The stamp of an output that may be replaced; None where there is nothing yet.

    Raises:
        UserError: what is there may not be replaced.
    """
    with _sentence_of(path):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{path}: is a folder, expected a file to write")
        known = _records.of(path) if stat.S_ISREG(found.st_mode) else ()
        size, digest = (found.st_size, _digest(path)) if known else (0, "")
        entry = next((e for e in reversed(known) if (e.size, e.digest) == (size, digest)), None)
        if entry is None:
            raise UserError(
                f"{path}: is there already and was not written by distill3d, or was changed since: "
                "give another place, or move it away"
            )
        if entry.of != _name_of(of):
            raise UserError(
                f"{path}: is the result of {entry.of or 'something else'}: give another place, or move it away"
            )
        return _stamp_of(found)


_Stamp = tuple[int, int, int, int]


def _stamp(path: Path) -> _Stamp | None:
    try:
        return _stamp_of(path.lstat())
    except FileNotFoundError:
        return None


def _stamp_of(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _placed(part: Path, path: Path) -> bool:
    """Puts a new file in its place if that is still free; False where that cannot be done in one step."""
    try:
        os.link(part, path)
    except OSError:  # it is there by now, or this file system has no hard links
        return False
    return True


@contextmanager
def _sentence_of(path: Path) -> Iterator[None]:
    """The system's refusal to write a file as a user's error."""
    if "\0" in str(path):
        raise UserError(f"{path}: is no path of a file")
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _filled(path: Path, write: Callable[[Path], object], flush: bool) -> Iterator[Path]:
    """A temporary neighbour with all its content; removed at the end, if it is still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    part = part_of(path)
    try:
        # Made here, so that it has the mode that the umask gives, whatever ``write`` would choose.
        file = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        os.close(file)
        try:
            write(part)
        except UserError:
            raise
        except Exception as error:
            # Writers in other languages have their own exceptions for a full disk.
            if not isinstance(error, OSError):
                _refuse_full(part)
            raise
        if stat.S_IMODE(part.stat().st_mode) != mode:
            part.chmod(mode)
        if flush:
            with part.open("r+b") as written:
                os.fsync(written.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def _refuse_full(part: Path) -> None:
    """Raises the OSError, if there is one, that keeps a file from growing."""
    with part.open("ab") as file:
        file.write(bytes(PROBE))
        file.flush()
        os.fsync(file.fileno())


def part_of(path: Path) -> Path:
    """A new name beside ``path`` for something that is not finished; ``sweep`` removes it once its process is gone."""
    process = os.getpid()
    writer = f"{machine()}-{process}-{start_of(process)}"
    return path.with_name(f"{PART_BEGIN}{writer}-{uuid4().hex[:12]}{PART_END}")


def _longest_name(folder: Path) -> int:
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        return 255


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _name_of(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)


# ---------------------------------------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class _Entry:
    """What an output held when it was written, and the file whose result it is."""

    size: int  # bytes
    digest: str
    of: str | None

    def line(self, name: str) -> str:
        """As the record has it."""
        values = {"name": name, "size": self.size, "blake2b": self.digest}
        return json.dumps(values if self.of is None else values | {"of": self.of})


class _Records:
    """The records of the folders that this process has written to, each read once and then only where it has grown."""

    def __init__(self) -> None:
        self._read: dict[Path, _Record] = {}

    def of(self, path: Path) -> tuple[_Entry, ...]:
        """What was written under a name lately, the last one last."""
        return tuple(self._current(path).entries.get(path.name, ()))

    def add(self, path: Path, entry: _Entry) -> None:
        """Adds a line, unless it would say again what is known; a record that says most things many times is shortened.

        Raises:
            OSError: it cannot be written.
        """
        record = self._current(path)
        if record.entries.get(path.name, (None,))[-1] == entry:
            return
        record.append(entry.line(path.name))
        if record.lines > MOST_LINES and record.lines > 2 * KEPT_ENTRIES * len(record.entries):
            record.shorten()

    def _current(self, path: Path) -> _Record:
        file = Path(os.path.abspath(path)).parent / RECORD
        record = self._read.setdefault(file, _Record(file))
        record.update()
        return record


class _Record:
    """One folder's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget(None)

    def _forget(self, inode: int | None) -> None:
        self._inode, self._end, self.lines = inode, 0, 0
        self.entries: dict[str, deque[_Entry]] = {}

    def update(self) -> None:
        """Reads what was added since the last look."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | _NO_LINK)
        except OSError:  # none, or none that can be trusted
            self._forget(None)
            return
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if found.st_ino != self._inode or found.st_size < self._end:
                self._forget(found.st_ino)
            file.seek(self._end)
            data = file.read()
        whole, _, _ = data.rpartition(b"\n")  # the last line may still be on its way
        if whole:
            self._end += len(whole) + 1
            self._take(whole)

    def _take(self, data: bytes) -> None:
        for line in data.split(b"\n"):
            self.lines += 1
            try:
                entry = json.loads(line)
                name, written = entry["name"], _Entry(int(entry["size"]), str(entry["blake2b"]), entry.get("of"))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue  # a part of a line, of a process that was killed or had no room
            if isinstance(name, str):
                self.entries.setdefault(name, deque(maxlen=KEPT_ENTRIES)).append(written)

    def append(self, line: str) -> None:
        """Adds a line; others may do so at the same time."""
        with self._held() as descriptor:
            begin = b""
            if os.fstat(descriptor).st_size:
                os.lseek(descriptor, -1, os.SEEK_END)
                # A line that was cut short must not swallow this one.
                begin = b"" if os.read(descriptor, 1) == b"\n" else b"\n"
            os.write(descriptor, begin + line.encode() + b"\n")
        self.update()

    def shorten(self) -> None:
        """Leaves of each name the latest entries alone."""
        if fcntl is None:
            return
        with self._held():
            self.update()
            lines = [entry.line(name) for name, entries in self.entries.items() for entry in entries]
            part = part_of(self.path)
            try:
                part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                part.replace(self.path)
            finally:
                part.unlink(missing_ok=True)
        self.update()

    @contextmanager
    def _held(self) -> Iterator[int]:
        """The open file, which nobody replaces meanwhile."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
            try:
                if fcntl is not None:
                    with suppress(OSError):  # a file system without locks: lines are appended all the same
                        fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _stamp(self.path) is None or os.fstat(descriptor).st_ino != self.path.stat().st_ino:
                    continue  # it was shortened between opening and holding it
                yield descriptor
                return
            finally:
                os.close(descriptor)


_records = _Records()
#: The outputs that this process has finished, in order.
outputs: list[Path] = []


# --------------------------------------------------------------------------------------------------------- what is left


def sweep(folder: Path) -> None:
    """Removes what killed processes left half-written in a folder; looks once in a process."""
    folder = Path(os.path.abspath(folder))
    if folder not in _swept:
        _swept.add(folder)
        for part in folder.glob(f"{PART_BEGIN}*{PART_END}"):
            if _is_abandoned(part):
                _remove(part)


def sweep_below(folder: Path) -> None:
    """Removes what is half-written in a folder and in those below, save what living processes of this machine write:
    for the holder of the folder's lock."""
    for part in list(folder.rglob(f"{PART_BEGIN}*{PART_END}")):
        if not _writer_lives(part):
            _remove(part)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _writer_lives(part: Path) -> bool | None:
    """Whether the process that writes a file is alive; None where this machine cannot tell."""
    writer = part.name.removeprefix(PART_BEGIN).split("-")
    if len(writer) == 4 and writer[0] == machine() and writer[1].isdigit():
        return is_alive(int(writer[1]), writer[2])
    return None


def _is_abandoned(part: Path) -> bool:
    lives = _writer_lives(part)
    if lives is not None:
        return not lives
    try:
        return time.time() - part.stat().st_mtime > ABANDONED_AFTER
    except OSError:
        return False
