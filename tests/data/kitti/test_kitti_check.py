"""Each planted fault is reported with its file and line, and nothing else is."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from PIL import Image

from distill3d.data.check import run_check
from distill3d.data.depth import write_depth
from distill3d.data.kitti.check import check_kitti
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.errors import UserError

IMAGE, CALIB = "training/image_2/000001.png", "training/calib/000001.txt"
LABEL, SCAN = "training/label_2/000001.txt", "training/velodyne/000001.bin"


def cut(keep: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def swap(old: str, new: str) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return apply


def append(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text() + text)


def spoil_point(value: float) -> Callable[[Path], object]:
    def apply(path: Path) -> None:
        points = np.fromfile(path, "<f4")
        points[9] = value
        points.tofile(path)

    return apply


def resize(width: int, height: int) -> Callable[[Path], object]:
    return lambda path: Image.new("RGB", (width, height)).save(path)


FAULTS = [
    (IMAGE, Path.unlink, None, "frame 000001 lacks this file"),
    (IMAGE, cut(200), None, "cannot be read as an image"),
    (IMAGE, cut(0), None, "cannot be read as an image"),
    (IMAGE, resize(32, 10), CALIB + ":3", "principal point (x = 31 px) does not fit an image of 32 x 10 px"),
    (IMAGE, resize(64, 90), CALIB + ":3", "principal point (y = 9 px)"),
    (SCAN, cut(0), None, "empty"),
    (SCAN, cut(1601), None, "1601 bytes are no multiple of the 16 bytes"),
    (SCAN, spoil_point(np.nan), None, "1 points hold NaN or Inf, the first is point 2"),
    (SCAN, spoil_point(np.inf), None, "1 points hold NaN or Inf"),
    (LABEL, swap(" 1.77", ""), 1, "expected 15 fields"),
    (LABEL, swap(" 0.04", " 0.04 0.5 0.5"), 2, "expected 15 fields"),
    (LABEL, swap("Pedestrian", "Walker"), 2, "unknown class 'Walker'"),
    (LABEL, swap("12.00", "twelve"), 1, "z is 'twelve'"),
    (LABEL, swap("12.00", "nan"), 1, "z is 'nan'"),
    (LABEL, swap("12.00", "-12.00"), 1, "lies behind the camera (z = -12 m)"),
    (LABEL, swap("8.00 0.04", "-1 0.04"), 2, "lies behind the camera (z = -1 m)"),
    (LABEL, swap("3.90", "-3.90"), 1, "length is -3.9 m"),
    (LABEL, swap("20.00", "40.00"), 1, "right 34.00 before left 40.00"),
    (LABEL, swap("8.00 -1 -1", "1.00 -1 -1"), 3, "bottom 1.00 above top 2.00"),
    (CALIB, Path.unlink, None, "frame 000001 lacks this file"),
    (CALIB, swap("P2:", "PX:"), None, "the line P2 is missing"),
    (CALIB, swap("R0_rect", "R1_rect"), None, "the line R0_rect is missing"),
    (CALIB, swap("Tr_velo_to_cam", "Tr_velo_cam2"), None, "the line Tr_velo_to_cam is missing"),
    (CALIB, swap("P2: 36", "P2:"), 3, "P2 has 11 numbers, expected 12"),
    (CALIB, swap("P1: 36", "P1: 36 36"), 2, "P1 has 13 numbers, expected 12"),
    (CALIB, swap("P2: 36", "P2: inf"), 3, "not a finite number"),
    (CALIB, swap("R0_rect: 1", "R0_rect: a"), 5, "not a finite number"),
    (LABEL, swap("0.04", "0.04 0.9"), 2, "expected 15 fields, found 16 (labels have no score)"),
    (LABEL, swap("12.00", "1e308"), 1, "z is '1e308'"),
    (LABEL, lambda path: path.write_bytes(path.read_bytes().replace(b"0.04", b"0.0\xe4")), 2, "byte 0xe4 is no UTF-8"),
    ("ImageSets/train.txt", append("000077\n"), 3, "names frame 000077, of which"),
    ("ImageSets/train.txt", append("../000000\n"), 3, "'../000000' is no name inside a folder"),
    ("ImageSets/train.txt", append("000000\n"), 3, "names frame 000000 twice"),
    ("ImageSets/val.txt", lambda path: path.write_text(""), None, "names no frame"),
    ("training/depth_2/000001.png", resize(64, 20), None, "one 16-bit channel"),
]


@pytest.mark.parametrize(("file", "spoil", "where", "words"), FAULTS)
def test_planted_fault(
    kitti_root: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    spoil: Callable,
    where: int | str | None,
    words: str,
) -> None:
    (kitti_root / "training/depth_2").mkdir()
    spoil(kitti_root / file)
    expected = where if isinstance(where, str) else f"{file}:{where}" if where else file
    problems = [str(p) for p in check_kitti(kitti_root)]
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"{kitti_root / expected}: ") and words in problems[0]
    assert run_check(kitti_root, "kitti") == 2
    assert capsys.readouterr().out.startswith(f"{problems[0]}\n1 problem in 1 file")


def test_all_faults_are_listed(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file, spoil, _, _ in (FAULTS[1], FAULTS[7], FAULTS[11], FAULTS[13], FAULTS[25], FAULTS[26]):
        spoil(kitti_root / file)
    append("000077\n")(kitti_root / "ImageSets/train.txt")
    assert len(check_kitti(kitti_root)) == 7
    run_check(kitti_root, "kitti")
    assert capsys.readouterr().out.splitlines()[-1].startswith("7 problems in 5 files")


def test_two_faults_of_one_line(kitti_root: Path) -> None:
    swap("Car", "Bus")(kitti_root / LABEL)
    swap("3.90", "nan")(kitti_root / LABEL)
    assert [(p.line, p.file.name) for p in check_kitti(kitti_root)] == [(1, "000001.txt")] * 2


def test_depth_of_another_size(kitti_root: Path) -> None:
    (kitti_root / "training/depth_2").mkdir()
    write_depth(kitti_root / "training/depth_2/000001.png", torch.ones(20, 63))
    (problem,) = check_kitti(kitti_root)
    assert problem.sentence == "is 63 x 20 px, its image 64 x 20"


def test_missing_folders(kitti_root: Path) -> None:
    (kitti_root / "training/calib").rename(kitti_root / "training/other")
    (kitti_root / "ImageSets").rename(kitti_root / "sets")
    sentences = {p.file.name: p.sentence for p in check_kitti(kitti_root)}
    assert sentences == {"calib": "no such folder", "ImageSets": "holds no split file (train.txt, val.txt, ...)"}


def test_scans_and_labels_may_lack(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What only some stages ask for is counted; who asks for it is refused there."""
    (kitti_root / SCAN).unlink()
    (kitti_root / LABEL).unlink()
    assert check_kitti(kitti_root) == []
    assert run_check(kitti_root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "training: 1 of 3 frames have no scan" in lines and "training: 1 of 3 frames have no label file" in lines
    rmtree(kitti_root / "training/velodyne")
    assert run_check(kitti_root) == 0
    assert "training: 3 of 3 frames have no scan" in capsys.readouterr().out


def test_any_picture(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = kitti_root / IMAGE
    with Image.open(path) as picture:
        picture.save(path.with_suffix(".jpg"))
    assert [str(p) for p in check_kitti(kitti_root)] == [f"{path.parent}: holds 2 pictures of frame 000001"]
    path.unlink()
    assert check_kitti(kitti_root) == []
    data = KittiDataset(KittiConfig(root=kitti_root, split="train", canvas=(64, 32)))
    assert data.get(data.frame_ids.index("000001")).image.shape == (3, 32, 64)


def test_many_equal_problems_are_told_together(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (kitti_root / LABEL).read_text().splitlines()
    (kitti_root / LABEL).write_text("\n".join([lines[0].replace("Car", "Bus")] * 30))
    assert run_check(kitti_root, "kitti") == 2
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 22 and told[-2].startswith("... and 10 more like this: unknown class 'Bus', expected one of")
    assert told[-1].startswith("30 problems in 1 file; for names of your own there are --classes")
    (kitti_root / "classes.txt").write_text("Pedestrian\nCar: Bus  # big ones\n")
    assert run_check(kitti_root) == 0
    assert "Bus is Car" in capsys.readouterr().out


def test_test_split_counts_with_its_folder(kitti_root: Path) -> None:
    (kitti_root / "ImageSets/test.txt").write_text("000000\n")
    assert check_kitti(kitti_root) == []
    (kitti_root / "testing").mkdir()
    for kind in ("image_2", "calib", "velodyne"):
        (kitti_root / "training" / kind).rename(kitti_root / "testing" / kind)
        (kitti_root / "training" / kind).mkdir()
    problems = check_kitti(kitti_root, ["test"])
    assert {p.file.parent.name for p in problems} == {"image_2", "calib"}  # the training folder's
    assert all("training" in str(p) for p in problems)
    (kitti_root / "ImageSets/test.txt").write_text("000009\n")
    assert any("names frame 000009" in str(p) for p in check_kitti(kitti_root))


def test_frames_in_subfolders(kitti_root: Path) -> None:
    for folder in (kitti_root / "training").iterdir():
        files = list(folder.iterdir())
        (folder / "seq1").mkdir()
        for path in files:
            path.rename(folder / "seq1" / path.name)
    for split in (kitti_root / "ImageSets").iterdir():
        split.write_text("".join(f"seq1/{name}\n" for name in split.read_text().split()))
    assert check_kitti(kitti_root) == []
    (kitti_root / "training/calib/seq1/000001.txt").unlink()
    assert [p.sentence for p in check_kitti(kitti_root)] == ["frame seq1/000001 lacks this file"]


def test_clean_set_tells_what_can_be_learnt(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(kitti_root, "kitti") == 0
    assert capsys.readouterr() == (
        "training: 3 frames, 3 of 64 x 20 px\nsplit train: 2 frames, 4 objects\nsplit val: 1 frames, 2 objects\n"
        "Pedestrian: 3 of 3 objects can be learnt from pictures\n"
        "Car: 3 of 3 objects can be learnt from pictures\n"
        "pictures are 64 px wide: counted with least heights of 0.05 of KITTI's, "
        "train counts so with --dataset.min-height-scale 0.05\n"
        "sound\n",
        "",
    )
    swap("Car 0.00 0", "Car -1 -1")(kitti_root / LABEL)
    assert run_check(kitti_root, "kitti") == 0
    assert (
        "Car: 2 of 3 objects can be learnt from pictures (1 truncation is -1, not annotated)\n"
        in capsys.readouterr().out
    )
    for number in (0, 2):
        swap("Car 0.00 0", "Car -1 -1")(kitti_root / f"training/label_2/{number:06d}.txt")
    assert run_check(kitti_root, "kitti") == 0
    assert capsys.readouterr().out.splitlines()[4].startswith("warning: Car: 0 of 3 objects")


def test_splits_without_objects_are_told(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitti_root / "training/label_2/000002.txt").write_text("")
    swap("Car", "Van")(kitti_root / LABEL)
    assert run_check(kitti_root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "split train: 2 frames, 3 objects" in lines  # a van is none of the set's classes
    assert "warning: split val: 1 frames, 0 objects" in lines and "1 of 3 label files hold no object" in lines
    for frame in range(3):
        (kitti_root / f"training/label_2/{frame:06d}.txt").write_text("")
    assert run_check(kitti_root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "warning: 3 of 3 label files hold no object" in lines
    assert "warning: split train: 2 frames, 0 objects" in lines
    (kitti_root / "training/label_2/000002.txt").unlink()
    assert run_check(kitti_root) == 0
    assert "split val: 1 frames" in capsys.readouterr().out.splitlines()  # without labels nothing is said of objects


def test_names_that_are_no_class_are_told_what_to_do(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swap("Car 0.00 0", "Lorry 0.00 0")(kitti_root / LABEL)
    assert run_check(kitti_root, "kitti") == 2
    assert "--label-names" in capsys.readouterr().out
    assert run_check(kitti_root, "kitti", label_names=("Lorry=DontCare",)) == 0


def test_faults_of_the_classes_hide_no_others(kitti_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kitti_root / "classes.txt").write_text("Car\ntwo words\n: Lkw\nBus\n")
    swap("3.90", "-3.90")(kitti_root / LABEL)
    (kitti_root / CALIB).unlink()
    assert run_check(kitti_root) == 2
    lines = capsys.readouterr().out.splitlines()
    begins = [f"{kitti_root / file}: " for file in ("classes.txt:2", "classes.txt:3", CALIB)]
    assert all(any(line.startswith(begin) for line in lines) for begin in begins)
    assert any("length is -3.9 m" in line for line in lines) and lines[-1] == "4 problems in 3 files"
    (kitti_root / "classes.txt").write_text("Car\ncar\n")
    assert run_check(kitti_root) == 2
    assert "classes.txt: the class name 'Car' stands twice" in capsys.readouterr().out
    assert run_check(kitti_root, classes=("Car", "Pedestrian")) == 2  # the file does not count
    assert "classes.txt" not in capsys.readouterr().out


@pytest.mark.real
def test_real_frames_are_clean(real_data: Path) -> None:
    assert check_kitti(real_data / "kitti_mini") == []


def test_wrong_calls(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        run_check(tmp_path / "absent", "kitti")
    with pytest.raises(UserError, match="layout is 'coco'"):
        run_check(tmp_path, "coco")
    assert [p.file.name for p in check_kitti(tmp_path)] == ["training", "ImageSets"]
