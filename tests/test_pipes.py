"""Pipes in place of files: a named one is refused at once, for nobody may ever write to it; the shell's are read."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from distill3d.errors import UserError
from distill3d.files import read_bytes, read_text


def test_named_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with suppress(OSError):
            (tmp_path / "pipe").write_bytes(b"x")

    # A writer that waits for a reader: where the pipe is opened to be read after all, the test fails and goes on.
    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with pytest.raises(UserError, match="pipe: cannot be used \\(a pipe or a device, not a file\\)"):
        read_bytes(tmp_path / "pipe")
    os.close(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK))
    writer.join()


def test_pipes_of_the_shell_are_read() -> None:
    reading, writing = os.pipe()
    later = threading.Timer(0.05, lambda: (os.write(writing, b"000001\n"), os.close(writing)))
    later.start()
    try:
        assert read_text(f"/dev/fd/{reading}") == "000001\n"
    finally:
        later.join()
        os.close(reading)
