"""Calibration files as KITTI's parts and other people write them; only what is used is asked for."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill3d.data.kitti.calibration import parse_calibration, read_calibration
from distill3d.data.kitti.check import check_kitti
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.errors import UserError

P2, R0 = "P2: 36 0 31 2.3 0 36 9 0.01 0 0 1 0.003", "R0_rect: 1 0 0 0 1 0 0 0 1"
TR = "Tr_velo_to_cam: 0 -1 0 0.01 0 0 -1 -0.08 1 0 0 -0.27"
PLAIN = f"{P2}\n{R0}\n{TR}\n"

SPELLINGS = {
    "tracking": PLAIN.replace("R0_rect:", "R_rect").replace("Tr_velo_to_cam:", "Tr_velo_cam")
    + "Tr_imu_velo"
    + " 0" * 12,
    "raw": PLAIN.replace("P2", "P_rect_02").replace("R0_rect", "R_rect_00") + "R_rect_02: 9 9 9\nS_02: 1 2\n",
    "comments": f"# my rig\n\n{PLAIN}# P2: 1 2 3\n",
    "comment behind": PLAIN.replace("\n", "  # metres\n"),
    "blank before the colon": PLAIN.replace(":", " :"),
    "no colons": PLAIN.replace(":", ""),
    "carriage returns": PLAIN.replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + PLAIN,
    "twice alike": PLAIN + PLAIN,
    "zeros that nothing reads": f"P0:{' 0' * 12}\nP1:{' 0' * 12}\n{PLAIN}P3:{' 0' * 12}\nTr_imu_to_velo:{' 0' * 12}\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "plain.txt").write_text(PLAIN)
    (tmp_path / "other.txt").write_bytes(SPELLINGS[spelling].encode())
    plain, other = read_calibration(tmp_path / "plain.txt"), read_calibration(tmp_path / "other.txt")
    assert torch.equal(plain.p2, other.p2) and torch.equal(plain.lidar_to_rect, other.lidar_to_rect)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (f"{R0}\n{TR}", None, "the line P2 is missing"),
        (f"{PLAIN}P2: 37 0 31 2.3 0 36 9 0.01 0 0 1 0.003", 4, "P2 has other numbers than on line 1, expected it once"),
        (f"{PLAIN}P_rect_02 37 0 31 2.3 0 36 9 0.01 0 0 1 0.003", 4, "P_rect_02 has other numbers than on line 1"),
        (PLAIN.replace("36 0 31", "36 2 31"), 1, "P2 has a skew of 2 px"),
        (PLAIN.replace("2.3 0 36", "2.3 -2 36"), 1, "P2 has a skew of -2 px"),
        (PLAIN.replace("36 0 31", "1e308 0 31"), 1, "P2 holds 1e+308, which no camera has"),
        (PLAIN.replace("36 0 31 2.3", "36 0 31 1e9"), 1, "P2 holds 1e+09, which no camera has"),
        (PLAIN.replace("36 0 31", "-36 0 31"), 1, "P2 is no projection"),
        (PLAIN.replace("36 0 31", "1e999 0 31"), 1, "P2 holds a value that is not a finite number"),
        (PLAIN.replace("-0.27", "1e30"), 3, "Tr_velo_to_cam places a sensor 1e+30 m away"),
        (PLAIN.replace("R0_rect: 1 0", "R0_rect: 1e300 0"), 2, "R0_rect does not hold a rotation"),
        (PLAIN.replace("P2:", "P2"), None, ""),
        ("no calibration at all", 1, "expected `name: numbers`"),
        ("P2", 1, "P2 has 0 numbers, expected 12"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(text)
    if not words:
        read_calibration(path)
        return
    with pytest.raises(UserError) as error:
        read_calibration(path)
    assert str(error.value).startswith(f"{path}:{line}: " if line else f"{path}: ") and words in str(error.value)


@pytest.mark.parametrize(("missing", "line"), [(R0, "R0_rect"), (TR, "Tr_velo_to_cam")])
def test_lidar_lines_are_asked_for_when_needed(kitti_root: Path, missing: str, line: str) -> None:
    path = kitti_root / "training/calib/000000.txt"
    path.write_text(PLAIN.replace(missing + "\n", ""))
    config = {"canvas": (64, 20)}
    assert KittiDataset(KittiConfig(kitti_root, "train", **config)).get(0).lidar_to_camera is None
    for needs in ({"points": True}, {"depth": "lidar"}):
        with pytest.raises(UserError) as error:
            KittiDataset(KittiConfig(kitti_root, "train", **config, **needs)).get(0)
        assert str(error.value) == f"{path}: the line {line} is missing, which LiDAR scans need"
    assert [p.sentence for p in check_kitti(kitti_root)] == [f"the line {line} is missing"]
    shutil.rmtree(kitti_root / "training/velodyne")
    assert check_kitti(kitti_root) == []


def test_a_picture_that_does_not_fit_its_calibration_is_not_trained_on(kitti_root: Path) -> None:
    """As ``check`` says; a picture that lies on its side in the file is one when its data say so."""
    from PIL import Image

    path, calib = kitti_root / "training/image_2/000000.png", kitti_root / "training/calib/000000.txt"
    image, turned = Image.open(path).copy(), Image.Exif()
    turned[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=turned)
    data = KittiDataset(KittiConfig(kitti_root, "train", canvas=(64, 20)))
    assert torch.equal(data.get(0).image, KittiDataset(data.config).get(0).image)
    assert check_kitti(kitti_root) == []
    image.transpose(Image.Transpose.ROTATE_90).save(path)
    sentence = "the principal point (x = 31 px) does not fit an image of 20 x 64 px"
    with pytest.raises(UserError) as error:
        data.get(0)
    assert str(error.value) == f"{calib}: {sentence}, the size of {path}"
    assert [str(p) for p in check_kitti(kitti_root)] == [f"{calib}:1: {sentence}".replace(":1:", ":3:")]


number = st.sampled_from(["0", "1", "36", "-1", "nan", "1e999", "1e308", "-1e-320", "0x1", "x", "1_0", ""])
line = st.tuples(
    st.sampled_from(["P2", "R0_rect", "R_rect", "Tr_velo_cam", "P_rect_02", "P0", "#", ""]),
    st.sampled_from([":", " :", "", "#", "::"]), st.lists(number, max_size=13),
)  # fmt: skip


@given(st.lists(st.one_of(line.map(lambda t: f"{t[0]}{t[1]} {' '.join(t[2])}"), st.text(max_size=20)), max_size=6))
def test_any_text_gives_matrices_or_faults(lines: list[str]) -> None:
    matrices, first, faults = parse_calibration("\n".join(lines))
    assert set(matrices) <= set(first)
    assert all(math.isfinite(v) for m in matrices.values() for v in m.flatten().tolist())
    assert faults or "P2" in matrices
