"""Which names split files may hold, and which files a folder has."""

import os
from pathlib import Path

import pytest

from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.files import inner_name, names_below


@pytest.mark.parametrize("name", ["../000001", "/etc/passwd", "a//b", "a/./b", "a/", "", "a/..", "x\0y"])
def test_names_that_lead_out_of_a_folder_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^split.txt:3: .* is no name inside a folder"):
        inner_name(name, "split.txt:3")


def test_a_split_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbfseq1/000001\r\n\r\n  cam0 b  \r\n")
    assert read_split(path) == ["seq1/000001", "cam0 b"]
    path.write_text("000001\n\n../000002\n")
    with pytest.raises(UserError, match=f"^{path}:3: '../000002' is no name"):
        read_split(path)


def test_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: cannot be used .a pipe or a device, not a file"):
        read_split(tmp_path / "pipe")


def test_names_of_a_folder_and_its_subfolders(tmp_path: Path) -> None:
    for name in ("000001.txt", "seq1/000002.txt", "seq1/deep/a.txt", ".hidden.txt", ".git/a.txt", "b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "seq1/back").symlink_to(tmp_path)
    assert sorted(names_below(tmp_path, ".txt")) == ["000001", "seq1/000002", "seq1/deep/a"]
    with pytest.raises(UserError, match="absent: no such folder"):
        names_below(tmp_path / "absent", ".txt")
