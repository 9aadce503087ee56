"""What is written: whole or not at all, with the umask's mode, and never over what somebody else wrote."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from distill3d import files
from distill3d.errors import UserError
from distill3d.files import (
    RECORD,
    folder_name,
    refuse_foreign,
    sweep,
    sweep_below,
    write_atomically,
    write_output,
    write_output_text,
    write_text,
)
from distill3d.train.checkpoint import save_state


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != RECORD)


@pytest.mark.parametrize("umask", [0o022, 0o027])
@pytest.mark.parametrize(
    "write", [write_text, write_output_text, lambda p, _: save_state(p, {})], ids=["text", "output", "state"]
)
def test_files_have_the_mode_of_the_umask(umask: int, write: Callable, tmp_path: Path) -> None:
    former = os.umask(umask)
    try:
        write(tmp_path / "file", "text")
    finally:
        os.umask(former)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_output_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for text in ("first", "second", "second"):
        write_output_text(path, text)
        assert path.read_text() == text
    path.write_text("changed by hand")
    (tmp_path / "notes.txt").write_text("mine")
    for own in (path, tmp_path / "notes.txt"):
        before = own.read_bytes()
        for act in (refuse_foreign, lambda p: write_output_text(p, "new")):
            with pytest.raises(UserError, match="not written by distill3d"):
                act(own)
        assert own.read_bytes() == before
    assert names(tmp_path) == ["notes.txt", "report.html"]


def test_a_link_is_not_followed_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    for target in ("target", "nowhere"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(UserError, match="not written by distill3d"):
            write_output_text(link, "new")
        assert link.is_symlink() and (tmp_path / "target").read_text() == "mine"
    (tmp_path / RECORD).unlink(missing_ok=True)
    (tmp_path / RECORD).symlink_to(tmp_path / "target")
    with pytest.raises(UserError, match="cannot be written"):
        write_output_text(tmp_path / "new", "new")
    assert (tmp_path / "target").read_text() == "mine"


def test_what_appears_while_an_output_is_made_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"

    def write(part: Path) -> None:
        part.write_text("ours")
        path.write_text("theirs")

    for _ in range(2):  # the second time it is there from the beginning
        with pytest.raises(UserError, match="not written by distill3d"):
            write_output(path, write)
        assert path.read_text() == "theirs" and names(tmp_path) == ["numbers.json"]
    path.unlink()
    write_output_text(path, "ours")
    with pytest.raises(UserError, match="was changed since"):
        write_output(path, write)
    assert path.read_text() == "theirs"


@pytest.mark.parametrize("step", ["link", "replace"])
def test_killed_before_or_after_its_record_an_output_can_be_made_again(step: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_output_text(path, "old")
    if step == "link":
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_output_text(path, "new")
    assert path.exists() == (step == "replace")
    write_output_text(path, "newer")
    assert path.read_text() == "newer" and names(tmp_path) == ["page.html"]


def test_the_result_of_another_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "000001.txt"
    write = lambda part: part.write_text("found")  # noqa: E731
    write_output(path, write, of=tmp_path / "left/000001.png")
    write_output(path, write, of=tmp_path / "left/000001.png")
    with pytest.raises(UserError, match="result of .*left/000001.png"):
        refuse_foreign(path, of=tmp_path / "right/000001.png")
    with pytest.raises(UserError, match="result of .*left/000001.png"):
        write_output(path, write)


def test_the_record_does_not_grow_without_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LINES", 20)
    write_output_text(tmp_path / "other", "kept")
    for number in range(100):
        write_output_text(tmp_path / "page", str(number))
    assert len((tmp_path / RECORD).read_text().splitlines()) <= 22
    monkeypatch.setattr(files, "_records", files._Records())  # as another process reads it
    for name in ("page", "other"):
        write_output_text(tmp_path / name, "again")


def test_half_a_line_of_the_record_spoils_no_other(tmp_path: Path) -> None:
    write_output_text(tmp_path / "a", "1")
    with (tmp_path / RECORD).open("a") as file:
        file.write('{"name": "b", "si')
    write_output_text(tmp_path / "c", "3")
    monkey = files._Records()
    assert [len(monkey.of(tmp_path / name)) for name in "abc"] == [1, 0, 1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b", "no path"), ("n" * 5000, "too long"), ("f/" + "n" * 300, "too long"), ("n" * 300 + "/f", "too long"),
        ("file/below", "cannot be written"), ("file/further/below", "cannot be written"), ("folder", "is a folder"),
    ],
    ids=range(7),
)  # fmt: skip
def test_impossible_places(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for act in (refuse_foreign, lambda p: write_output_text(p, "new")):
        with pytest.raises(UserError, match=words) as refused:
            act(tmp_path / name)
        assert str(refused.value).count("\n") == 0
    assert names(tmp_path / "folder") == [] and (tmp_path / "file").read_text() == "mine"


def test_a_closed_folder_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # which root may enter all the same
    with pytest.raises(UserError, match="closed to writing"):
        refuse_foreign(tmp_path / "new" / "page.html")
    assert names(tmp_path) == []


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file may become larger: the system refuses the rest of it, as that of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_large_state(path: Path) -> None:
    save_state(path, {"weights": torch.zeros(100_000)})


@pytest.mark.parametrize(
    "save", [lambda p: write_output_text(p, "x" * 100_000), save_large_state], ids=["text", "torch"]
)
def test_a_full_disk_leaves_the_old_file(save: Callable, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_output_text(path, "old")
    with room(50_000), pytest.raises(UserError, match="file: cannot be written"):
        save(path)
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_errors_of_what_is_written_stay_what_they_are(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        raise ValueError("boxes are in another frame")

    with pytest.raises(ValueError, match="another frame"):
        write_atomically(tmp_path / "file", write)
    assert names(tmp_path) == []


def test_leftovers_of_dead_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = files.part_of(tmp_path / "file")
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-4194399-"))
    reused = mine.with_name(mine.name.replace(f"-{files.start_of(os.getpid())}-", "-1-"))
    elsewhere = mine.with_name(mine.name.replace(files.machine(), "00000000"))
    for part in (mine, dead, reused, elsewhere):
        part.write_text("half")
    monkeypatch.setattr(files, "_swept", set())
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, elsewhere}
    monkeypatch.setattr(files, "_swept", set())
    os.utime(elsewhere, (0, 0))
    sweep(tmp_path)
    assert set(tmp_path.iterdir()) == {mine}
    for part in (dead, elsewhere):
        part.write_text("half")
    sweep_below(tmp_path.parent)
    assert set(tmp_path.iterdir()) == {mine}


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "a\\b", "/x", ".x", "a\0", "a\n", "x" * 200, "a:b", "x."]
)
def test_names_that_are_no_folders(name: str) -> None:
    with pytest.raises(UserError, match="the recipe's name is .* cannot name a folder"):
        folder_name(name, "the recipe's name")


@pytest.mark.parametrize("name", ["demo", "monoskd_monodle", "seed 3, lr=1e-4", "v1.0", "街道", "_x"])
def test_names_of_folders(name: str) -> None:
    assert folder_name(name, "") == name


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    write_output_text(tmp_path / "a", "text")
    (line,) = (tmp_path / RECORD).read_text().splitlines()
    assert json.loads(line).keys() == {"name", "size", "blake2b"}
