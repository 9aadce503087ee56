"""KITTI's raw drives: both layouts, lists, and which raw frame an object frame is."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill3d.boxes import KITTI_CLASSES
from distill3d.data.augment.image import AugmentConfig, frame_generator
from distill3d.data.augment.lidar import field_of_view
from distill3d.data.collate import collate
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.raw import (
    KittiRawConfig,
    KittiRawDataset,
    RawMapping,
    clean_frames,
    drive_of,
    is_raw_id,
    list_raw_frames,
    read_list,
    read_raw_calibration,
    write_list,
)
from distill3d.data.sample import Dataset, JointDataset
from distill3d.data.splits import read_split
from distill3d.errors import UserError
from distill3d.train.teachers import refuse_overlap, trained_on

DATE = "2011_09_30"
DRIVES = (f"{DATE}_drive_0034_sync", f"{DATE}_drive_0016_sync")
CAMERA_FILE = """calib_time: 09-Jan-2012 13:57:47
R_rect_00: 1 0 0 0 1 0 0 0 1
P_rect_00: 36 0 31 0 0 36 9 0 0 0 1 0
R_rect_02: 0 1 0 -1 0 0 0 0 1
P_rect_02: 36 0 31 2.3 0 36 9 0.01 0 0 1 0.003
"""
LIDAR_FILE = """calib_time: 15-Mar-2012 11:37:16
R: 0 -1 0 0 0 -1 1 0 0
T: 0.01 -0.08 -0.27
delta_f: 0 0
delta_c: 0 0
"""


def raw_id(drive: int, frame: int) -> str:
    return f"{DATE}/{DRIVES[drive]}/image_02/data/{frame:010d}"


FRAMES = [raw_id(1, 0), raw_id(0, 3), raw_id(0, 7)]


@pytest.fixture(params=["raw", "cmkd"])
def raw_root(request: pytest.FixtureRequest, kitti_root: Path, tmp_path: Path) -> Path:
    """The object frames of ``kitti_root`` as raw frames, in either layout."""
    root, training = tmp_path / "drives", kitti_root / "training"
    folder = root if request.param == "raw" else root / "KITTI_Raw"
    for number, frame in enumerate(FRAMES):
        for kind, source, end in (("image_02", "image_2", "png"), ("velodyne_points", "velodyne", "bin")):
            path = folder / f"{frame.replace('image_02', kind)}.{end}"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(training / source / f"{number:06d}.{end}", path)
    if request.param == "raw":
        (folder / DATE / "calib_cam_to_cam.txt").write_text(CAMERA_FILE)
        (folder / DATE / "calib_velo_to_cam.txt").write_text(LIDAR_FILE)
    else:
        (root / "calib").mkdir()
        shutil.copy(training / "calib/000000.txt", root / "calib" / f"{DATE}.txt")
    return root


def config(folder: Path, **changes) -> KittiRawConfig:
    frames = folder.parent / "frames.txt"
    write_list(frames, FRAMES)
    return replace(KittiRawConfig(folder, frames, canvas=(64, 20)), **changes)


@pytest.mark.parametrize("depth", ["none", "lidar", "completed"])
@pytest.mark.parametrize("points", [False, True])
def test_raw_frames_are_object_frames_without_labels(
    raw_root: Path, kitti_root: Path, depth, points: bool
) -> None:  # fmt: skip
    """The same files give the same samples, augmented or not, but no label lines."""
    same = {"depth": depth, "points": points, "augment": AugmentConfig(), "canvas": (64, 20)}
    (kitti_root / "ImageSets/all.txt").write_text("000000\n000001\n000002\n")
    labelled = KittiDataset(KittiConfig(kitti_root, "all", **same))
    raw = KittiRawDataset(config(raw_root, **same))
    assert isinstance(raw, Dataset) and raw.frame_ids == FRAMES and len(raw) == 3 and raw.classes == KITTI_CLASSES
    for index in range(3):
        for seed in (None, 0, 1, 2):
            a, b = (d.get(index, None if seed is None else frame_generator(0, 0, seed)) for d in (labelled, raw))
            assert b.objects is None and b.frame_id == FRAMES[index] and a.objects is not None
            assert torch.equal(a.image, b.image) and torch.equal(a.affine.matrix, b.affine.matrix)
            assert torch.equal(a.camera.projection, b.camera.projection)
            assert a.lidar_to_camera is not None and b.lidar_to_camera is not None
            assert torch.equal(a.lidar_to_camera, b.lidar_to_camera)
            for p, q in ((a.depth, b.depth), (a.points, b.points)):
                assert (p is None and q is None) or (p is not None and q is not None and torch.equal(p, q))
            assert (b.depth is None) == (depth == "none") and (b.points is None) == (not points)
    if depth == "completed":
        assert len(list((raw_root / ".distill3d_cache").glob("*.png"))) == 3


def test_labelled_and_raw_frames_meet_in_a_batch(raw_root: Path, kitti_root: Path) -> None:
    labelled = KittiDataset(KittiConfig(kitti_root, "train", canvas=(64, 20), points=True))
    joint = JointDataset((labelled, KittiRawDataset(config(raw_root, points=True))))
    batch = collate([joint.get(i) for i in (0, 2, 4)])
    assert batch.frame_ids == ["000000", FRAMES[0], FRAMES[2]]
    assert batch.labelled is not None and batch.labelled.tolist() == [True, False, False]


def test_field_of_view_of_raw_frames(raw_root: Path) -> None:
    whole, cut = (KittiRawDataset(config(raw_root, points=True, field_of_view=f)).get(0) for f in (False, True))
    assert whole.points is not None and cut.points is not None
    assert torch.equal(cut.points, whole.points[field_of_view(whole.points, whole.camera, (64, 20))])
    assert 0 < len(cut.points) < len(whole.points)


def test_listing(raw_root: Path, tmp_path: Path) -> None:
    folder = raw_root / "KITTI_Raw" if (raw_root / "KITTI_Raw").is_dir() else raw_root
    assert list_raw_frames(raw_root) == sorted(FRAMES)
    (folder / f"{FRAMES[1].replace('image_02', 'velodyne_points')}.bin").unlink()
    (folder / f"{DATE}/{DRIVES[0]}/image_02/data/preview.png").write_bytes(b"")
    assert list_raw_frames(raw_root) == [FRAMES[0], FRAMES[2]]
    written = write_list(tmp_path / "list.txt", FRAMES, without={DRIVES[1]})
    assert written == FRAMES[1:] == read_list(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"other\.txt: no frame is left"):
        write_list(tmp_path / "other.txt", FRAMES, without=DRIVES)
    with pytest.raises(UserError, match="holds no frame with image and scan"):
        list_raw_frames(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", "", "names no frame"),
        (f"{FRAMES[0]}\n000042\n", ":2", "'000042' is no raw frame, expected one such as 2011_09_30/"),
        (f"{FRAMES[0]}.png\n", ":1", "is no raw frame"),
        (f"\n\n{FRAMES[0].replace('image_02', 'image_03')}\n", ":3", "is no raw frame"),
        (FRAMES[0].replace(DATE, "2011_10_03", 1), ":1", "is no raw frame"),  # the drive is of another date
        (f"{FRAMES[0]}\n{FRAMES[1]}\n{FRAMES[0]}\n", "", f"names frame {FRAMES[0]} twice"),
    ],
)
def test_malformed_lists(tmp_path: Path, text: str, where: str, words: str) -> None:
    path = tmp_path / "frames.txt"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_list(path)
    assert str(error.value).startswith(f"{path}{where}: ") and words in str(error.value)


def test_absent_files(raw_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"night\.txt: no such file"):
        KittiRawDataset(config(raw_root, frames=tmp_path / "night.txt"))
    with pytest.raises(UserError, match="nowhere: no such folder, expected KITTI raw's layout"):
        KittiRawDataset(config(raw_root, root=tmp_path / "nowhere"))
    write_list(tmp_path / "more.txt", [raw_id(0, 8)])
    with pytest.raises(UserError, match=r"image_02/data/0000000008\.png: no such file"):
        KittiRawDataset(config(raw_root, frames=tmp_path / "more.txt")).get(0)
    dataset = KittiRawDataset(config(raw_root, points=True))
    folder = raw_root / "KITTI_Raw" if (raw_root / "KITTI_Raw").is_dir() else raw_root
    (folder / f"{FRAMES[0].replace('image_02', 'velodyne_points')}.bin").unlink()
    with pytest.raises(UserError, match=r"velodyne_points/data/0000000000\.bin: no such file"):
        dataset.get(0)


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "words"),
    [
        ("cam_to_cam", "P_rect_02: 36", "P_rect_02:", 5, "P_rect_02 has 11 numbers, expected 12"),
        ("cam_to_cam", "R_rect_00: 1", "R_rect_00: 2", 2, "R_rect_00 does not hold a rotation"),
        ("cam_to_cam", "R_rect_00:", "R_rect:", None, "the line R_rect_00 is missing"),
        ("velo_to_cam", "R: 0", "R: x", 2, "R holds a value that is not a finite number"),
        ("velo_to_cam", "T: 0.01", "T:", 3, "T has 2 numbers, expected 3"),
        ("velo_to_cam", "T: 0.01", "T: nan", 3, "not a finite number"),
        ("velo_to_cam", "T:", "t:", None, "the line T is missing"),
    ],
)
def test_malformed_calibration(
    tmp_path: Path, file: str, old: str, new: str, line: int | None, words: str
) -> None:  # fmt: skip
    (tmp_path / "calib_cam_to_cam.txt").write_text(CAMERA_FILE)
    (tmp_path / "calib_velo_to_cam.txt").write_text(LIDAR_FILE)
    calibration = read_raw_calibration(tmp_path)
    assert calibration.p2[0].tolist() == [36, 0, 31, 2.3] and calibration.tr_velo_to_cam[:, 3].tolist() == [
        0.01, -0.08, -0.27
    ]  # fmt: skip
    path = tmp_path / f"calib_{file}.txt"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError) as error:
        read_raw_calibration(tmp_path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ") and words in str(error.value)


# -------------------------------------------------------------------------------------------------------- the mapping

#: Object frames 0, 1, 2 are lines 3, 1, 2.
LINES = [f"{DATE} {DRIVES[0]} 0000000003", f"{DATE} {DRIVES[0]} 0000000007", f"{DATE} {DRIVES[1]} 0000000000"]


@pytest.fixture
def write_mapping(tmp_path: Path) -> Callable[..., Path]:
    def write(lines: str = "\n".join(LINES) + "\n", order: str = "3,1,2\n") -> Path:
        (tmp_path / "train_mapping.txt").write_text(lines)
        (tmp_path / "train_rand.txt").write_text(order)
        return tmp_path

    return write


def test_mapping(write_mapping: Callable[..., Path]) -> None:
    mapping = RawMapping.read(write_mapping())
    assert mapping.raw_ids == tuple(FRAMES) and all(is_raw_id(frame) for frame in mapping.raw_ids)
    for number, frame in enumerate(FRAMES):
        assert mapping.to_raw(f"{number:06d}") == frame and mapping.to_object(frame) == f"{number:06d}"
    assert mapping.to_object(raw_id(0, 5)) is None
    assert mapping.drives(["000000"]) == {DRIVES[1]} and mapping.drives(["000001", "000002"]) == {DRIVES[0]}
    for unknown in ("000003", "3", "frame1"):
        with pytest.raises(UserError, match=f"'{unknown}' is not in the mapping .* 000000 to 000002"):
            mapping.to_raw(unknown)


@pytest.mark.parametrize("order", ["3,1,2", "3, 1, 2\n", "3 1\n2\n"])
def test_indices_in_several_forms(write_mapping: Callable[..., Path], order: str) -> None:
    assert RawMapping.read(write_mapping(order=order)).raw_ids == tuple(FRAMES)


@pytest.mark.parametrize(
    ("changes", "where", "words"),
    [
        ({"lines": f"{LINES[0]}\n\n{LINES[1]}\n"}, "train_mapping.txt:2", "expected `date drive frame`, found ''"),
        ({"lines": f"{LINES[0]}\n{LINES[1][:-3]}\n"}, "train_mapping.txt:2", "expected `date drive frame`"),
        ({"lines": LINES[0].replace(DATE, "2011_10_03", 1)}, "train_mapping.txt:1", "expected `date drive frame`"),
        ({"order": "3,1"}, "train_rand.txt", "has 2 indices, expected one for each of 3 frames"),
        ({"order": "3,1,4"}, "train_rand.txt:1", "'4' is no line of train_mapping.txt, expected a number from 1 to 3"),
        ({"order": "3,1\n0"}, "train_rand.txt:2", "'0' is no line"),
        ({"order": "3,1,two"}, "train_rand.txt:1", "'two' is no line"),
        ({"order": "3,1,-2"}, "train_rand.txt:1", "'-2' is no line"),
        ({"order": "3,1,3"}, "train_rand.txt:1", "names line 3 of train_mapping.txt twice"),
    ],
)
def test_malformed_mapping(write_mapping: Callable[..., Path], changes: dict, where: str, words: str) -> None:
    folder = write_mapping(**changes)
    with pytest.raises(UserError) as error:
        RawMapping.read(folder)
    assert str(error.value).startswith(f"{folder / where}: ") and words in str(error.value)


@pytest.mark.parametrize("absent", ["train_mapping.txt", "train_rand.txt"])
def test_absent_mapping(write_mapping: Callable[..., Path], absent: str) -> None:
    folder = write_mapping()
    (folder / absent).unlink()
    with pytest.raises(UserError, match=f"{absent}: no such file"):
        RawMapping.read(folder)


def test_clean_frames(write_mapping: Callable[..., Path]) -> None:
    """A frame goes with its whole drive, also where the object data does not have it."""
    mapping = RawMapping.read(write_mapping())
    raw = [raw_id(0, 0), raw_id(0, 3), raw_id(1, 0), raw_id(1, 9)]
    assert clean_frames(raw, mapping, ["000001"]) == raw[2:]
    assert clean_frames(raw, mapping, ["000000"]) == raw[:2]
    assert clean_frames(raw, mapping, []) == raw and clean_frames(raw, mapping, ["000000", "000001"]) == []
    with pytest.raises(UserError, match="'000007' is not in the mapping"):
        clean_frames(raw, mapping, ["000007"])


# ------------------------------------------------------------------------------------------------------- what was seen


def test_cards_tell_raw_frames_from_object_frames() -> None:
    card = trained_on("kitti", ["000042", raw_id(0, 5)], [trained_on("kitti-raw", [raw_id(1, 0)], [])])
    assert card["frames"] == [f"kitti-raw/{raw_id(1, 0)}", f"kitti-raw/{raw_id(0, 5)}", "kitti/000042"]
    assert card["count"] == 3 and card["identity"] == "kitti"


@pytest.mark.parametrize("where", ["own", "teacher"])
@pytest.mark.parametrize(
    ("raw", "evaluated", "mapped", "words"),
    [
        ([(0, 5)], ["000000"], True, None),  # another drive
        ([(0, 5), (1, 8)], ["000001"], True, r"\(1 of its 2 raw frames, such as kitti-raw/.*0000000005\)"),
        ([(0, 3)], ["000001"], True, "clean_frames"),  # the very frame
        ([(0, 5)], ["000000"], False, r"KITTI's raw drives \(1 of its \d frames\), and only the mapping"),
        ([(0, 5)], ["000000", "000009"], True, "'000009' is not in the mapping"),  # nothing is known of it
        ([(0, 5)], ["n015-2018"], False, None),  # no frame of KITTI
        ([(0, 5)], [raw_id(0, 5), raw_id(0, 6)], False, "1 of the 2 evaluation frames"),
        ([], ["000000"], False, None),
    ],
)
def test_overlap_of_raw_and_object_frames(
    write_mapping: Callable[..., Path], where: str, raw: list, evaluated: list[str], mapped: bool, words: str | None
) -> None:
    frames = [raw_id(*pair) for pair in raw]
    card = trained_on("kitti", ["000500", *frames], [])
    if where == "teacher":
        card = trained_on("kitti", ["000501"], [card])
    mapping = RawMapping.read(write_mapping()) if mapped else None
    refuse_overlap({"trained_on": card}, "teacher x", "kitti", evaluated, True, mapping)
    if words is None:
        refuse_overlap({"trained_on": card}, "teacher x", "kitti", evaluated, False, mapping)
        return
    with pytest.raises(UserError, match=words) as error:
        refuse_overlap({"trained_on": card}, "teacher x", "kitti", evaluated, False, mapping)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- real drives


@pytest.mark.real
def test_real_frames(real_data: Path, tmp_path: Path) -> None:
    """Point counts as known; the calibration is, number for number, that of the date's object frames."""
    root = real_data / "kitti_raw_mini"
    frames = list_raw_frames(root)
    assert [frame[-2:] for frame in frames] == ["05", "06", "07", "08"]
    write_list(tmp_path / "frames.txt", frames)
    settings = KittiRawConfig(
        root, tmp_path / "frames.txt", canvas=(1242, 375), placement="corner", points=True, depth="lidar",
        divide="homogeneous",
    )  # fmt: skip
    dataset = KittiRawDataset(settings)
    counts = zip((113459, 113327, 113294, 113549), (15306, 15196, 15187, 15248), strict=True)
    for index, (count, in_view) in enumerate(counts):
        sample = dataset.get(index)
        assert sample.points is not None and sample.depth is not None and sample.objects is None
        assert sample.points.shape == (count, 4) and sample.image.shape == (3, 375, 1242)
        assert int(field_of_view(sample.points, sample.camera, (1242, 375), "homogeneous").sum()) == in_view
        assert 0.9 * in_view < int((sample.depth > 0).sum()) <= in_view
    raw, known = dataset.calibration("2011_09_26"), read_calibration(real_data / "kitti_mini/training/calib/000010.txt")
    for name in ("p2", "r0_rect", "tr_velo_to_cam"):
        assert torch.equal(getattr(raw, name), getattr(known, name))


@pytest.mark.real
def test_real_mapping(real_data: Path) -> None:
    mapping = RawMapping.read(real_data / "kitti_mini/mapping")
    known = {
        "001497": ("2011_09_26", 52, 7), "004587": ("2011_09_26", 52, 14), "001206": ("2011_09_26", 52, 21),
        "001966": ("2011_09_26", 52, 31), "000000": ("2011_09_28", 106, 48), "000015": ("2011_09_29", 71, 421),
        "000217": ("2011_09_26", 20, 2),
    }  # fmt: skip
    for frame, (date, drive, number) in known.items():
        raw = f"{date}/{date}_drive_{drive:04d}_sync/image_02/data/{number:010d}"
        assert mapping.to_raw(frame) == raw and mapping.to_object(raw) == frame
    train, val = (read_split(real_data / f"kitti_mini/ImageSets/official/{s}.txt") for s in ("train", "val"))
    drives = mapping.drives(train), mapping.drives(val)
    assert [len(d) for d in drives] == [96, 45] and not drives[0] & drives[1] and len(mapping.raw_ids) == 7481
    assert {drive_of(frame)[:10] for frame in mapping.raw_ids} == {
        "2011_09_26", "2011_09_28", "2011_09_29", "2011_10_03"
    }  # fmt: skip
    seen = {"trained_on": trained_on("kitti", train, [trained_on("kitti-raw", list(mapping.raw_ids[:10]), [])])}
    with pytest.raises(UserError, match="of its 10 raw frames"):
        refuse_overlap(seen, "teacher x", "kitti", val, False, mapping)
    clean = clean_frames(mapping.raw_ids, mapping, val)
    assert len(clean) == len(train)
    refuse_overlap({"trained_on": trained_on("kitti", clean, [])}, "teacher x", "kitti", val, False, mapping)
