"""The folder in which inputs are tried: what is there before, what is put in place of it, and what it has become.

<box>/in      the inputs, which no command may change
<box>/out     where the command is told to write; filled anew before every input
<box>/cwd     the current folder, <box>/home the user's: neither gets anything unless the command line asks for it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from itertools import count
from pathlib import Path

from .mutations import Place

#: Contents are told apart by size and time by what keeps results in caches: each content has a time of its own.
FIRST_TIME = 1_700_000_000
CACHE = ".distill3d_cache"
PARTS = ("in", "out", "cwd", "home", "elsewhere")
WATCHED = ("in", "cwd", "home")

Seen = dict[str, tuple[int, int, int]]


class Box:
    """A box that is filled from ``template`` (with ``in`` and perhaps ``out``)."""

    def __init__(self, root: Path, template: Path) -> None:
        self.root, self.template = root, template
        self._times = count(FIRST_TIME + 1)
        self._undo: list[Path] = []
        self.spoilt = False  # a command has changed what it must not: restoring is not enough
        self.fill()

    def fill(self) -> None:
        """Everything as at the beginning."""
        for part in PARTS:
            _remove(self.root / part)
        shutil.copytree(self.template / "in", self.root / "in", symlinks=True)
        for part in ("cwd", "home", "elsewhere"):
            (self.root / part).mkdir(parents=True)
        for folder, _, names in os.walk(self.root / "in"):
            for name in names:
                os.utime(os.path.join(folder, name), (FIRST_TIME, FIRST_TIME))
        self._undo, self.spoilt = [], False
        self._fill_out()

    def _fill_out(self) -> None:
        _remove(self.root / "out")
        if (self.template / "out").is_dir():
            shutil.copytree(self.template / "out", self.root / "out", symlinks=True)
        else:
            (self.root / "out").mkdir()

    def files(self, patterns: Iterable[str]) -> list[str]:
        """The files below the template that fit a pattern, sorted."""
        names = (
            os.path.relpath(os.path.join(folder, name), self.template)
            for folder, _, names in os.walk(self.template)
            for name in names
        )
        return sorted(name for name in names if any(fnmatch(name, pattern) for pattern in patterns))

    def original(self, file: str) -> bytes:
        return (self.template / file).read_bytes()

    def put(self, file: str, content: bytes | Place) -> None:
        """Puts a content, or what is no file, where ``file`` stands."""
        path = self.root / file
        if isinstance(content, Place) and content.kind in ("renamed", "stray"):
            self._put_beside(path, content)
            return
        self._undo.append(path)
        _remove(path)
        if isinstance(content, bytes):
            path.write_bytes(content)
            time = next(self._times)
            os.utime(path, (time, time))
        elif content.kind == "empty":
            path.touch()
        elif content.kind == "folder":
            path.mkdir()
        elif content.kind == "loop":
            path.symlink_to(path.name)
        elif content.kind == "dangling":
            path.symlink_to("nowhere")
        elif content.kind == "fifo":
            os.mkfifo(path)
        elif content.kind == "link":
            kept = self.root / "elsewhere" / f"{len(self._undo)}{path.suffix}"
            shutil.copyfile(self.template / file, kept)
            self._undo.append(kept)
            path.symlink_to(kept)

    def _put_beside(self, path: Path, content: Place) -> None:
        name = content.name.replace("{}", path.name)
        other = path.parent / name.replace("/", ":")
        if len(os.fsencode(other.name)) > 255 or other == path:
            return
        if content.kind == "renamed":
            self._undo.append(path)
            _remove(path)
        if not os.path.lexists(other):
            self._undo.append(other)
            original = self.original(path.relative_to(self.root).as_posix())
            other.write_bytes(b"stray\n" if content.kind == "stray" else original)

    def restore(self) -> None:
        """Takes back what was put, and empties the places where commands write."""
        if self.spoilt:
            self.fill()
            return
        for path in reversed(self._undo):
            _remove(path)
            before = self.template / path.relative_to(self.root)
            if before.is_file() and path.parent.is_dir():
                shutil.copyfile(before, path)
                os.utime(path, (FIRST_TIME, FIRST_TIME))
        self._undo = []
        self._fill_out()
        for cache in (*self.root.glob(f"in/{CACHE}"), *self.root.glob(f"in/*/{CACHE}"), self.root / "home" / ".cache"):
            _remove(cache)

    def look(self) -> Seen:
        """Kind, size and time of everything that commands must leave alone."""
        seen: Seen = {}
        for part in WATCHED:
            for folder, folders, names in os.walk(self.root / part):
                folders[:] = [name for name in folders if name not in (CACHE, ".cache")]
                for name in (*folders, *names):
                    path = os.path.join(folder, name)
                    status = os.lstat(path)
                    of_file = (status.st_size, status.st_mtime_ns) if name in names else (0, 0)
                    seen[os.path.relpath(path, self.root)] = (status.st_mode, *of_file)
        return seen

    def written(self, patterns: Iterable[str]) -> dict[str, bytes]:
        """What the command wrote that fits a pattern, by name below ``out``."""
        out = self.root / "out"
        found = {
            path.relative_to(out).as_posix(): path
            for path in out.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        return {name: found[name].read_bytes() for name in sorted(found) if any(fnmatch(name, p) for p in patterns)}


def differences(before: Seen, after: Seen, additions: bool) -> list[str]:
    """What a command changed; files that were added count only with ``additions``."""
    told = [f"{name} was removed" for name in before.keys() - after.keys()]
    told += [f"{name} was changed" for name in before.keys() & after.keys() if before[name] != after[name]]
    if additions:
        told += [f"{name} was added" for name in after.keys() - before.keys()]
    return sorted(told)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
