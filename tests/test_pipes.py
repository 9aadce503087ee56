"""Pipes in place of files: a named one is refused at once, for nobody may ever write to it; the shell's are read."""

import os
import threading
from pathlib import Path

import pytest

from distill3d.errors import UserError
from distill3d.files import read_bytes, read_text


def test_named_pipes_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # With both ends open and a byte in it, whoever opens it to read it does not wait for a writer.
    both = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        os.write(both, b"x")
        with pytest.raises(UserError, match="pipe: cannot be used \\(a pipe or a device, not a file"):
            read_bytes(tmp_path / "pipe")
    finally:
        os.close(both)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no device of this name here")
def test_devices_are_refused() -> None:
    with pytest.raises(UserError, match="/dev/zero: cannot be used \\(a pipe or a device, not a file"):
        read_bytes("/dev/zero")


def test_pipes_of_the_shell_are_read() -> None:
    reading, writing = os.pipe()
    later = threading.Timer(0.05, lambda: (os.write(writing, b"000001\n"), os.close(writing)))
    later.start()
    try:
        assert read_text(f"/dev/fd/{reading}") == "000001\n"
    finally:
        later.join()
        os.close(reading)
