"""Writing KITTI folders: layout, reproducibility, going on after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill3d.camera import Camera, misfit
from distill3d.errors import UserError
from distill3d.synth import StreetConfig, content_hash, render_frame, write_kitti
from distill3d.synth.sensors import KITTI_CENTRE, projections

TINY = StreetConfig(width=96, height=32, rays_per_pixel_side=1, lidar_step=1.0)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kitti(
        tmp_path_factory.mktemp("streets") / "set", frames=6, seed=5, config=TINY, workers=1, progress=False
    )


@pytest.mark.parametrize("size", [(1920, 1080), (1242, 375), (320, 96), (640, 192), (800, 800), (96, 32), (1000, 200)])
def test_cameras_can_have_taken_their_pictures(size: tuple[int, int]) -> None:
    projection = projections(*size)["P2"]
    assert misfit(Camera(torch.from_numpy(projection)), size) is None
    assert np.allclose(projections(1242, 375)["P2"][:2, 2], KITTI_CENTRE)


def test_official_layout_is_complete(written: Path) -> None:
    endings = {"image_2": "png", "label_2": "txt", "calib": "txt", "velodyne": "bin"}
    for folder, ending in endings.items():
        names = sorted(p.name for p in (written / "training" / folder).iterdir())
        assert names == [f"{i:06d}.{ending}" for i in range(6)]
    sets = {name: (written / "ImageSets" / f"{name}.txt").read_bytes() for name in ("train", "val", "trainval")}
    assert sets["train"] == b"000000\n000001\n000002\n000003\n"
    assert sets["val"] == b"000004\n000005\n"
    assert sets["trainval"] == sets["train"] + sets["val"]


def test_files_hold_what_kitti_files_hold(written: Path) -> None:
    with Image.open(written / "training/image_2/000000.png") as image:
        assert image.size == (96, 32)
        assert image.mode == "RGB"
    points = np.fromfile(written / "training/velodyne/000000.bin", np.float32).reshape(-1, 4)
    assert np.isfinite(points).all()
    rows = dict(
        line.split(": ") for line in (written / "training/calib/000000.txt").read_text().splitlines() if line.strip()
    )
    assert list(rows) == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]
    counts = {name: len(values.split()) for name, values in rows.items()}
    assert counts == {**dict.fromkeys(rows, 12), "R0_rect": 9}
    focal = float(rows["P2"].split()[0])
    assert abs(focal - 721.5377 * 96 / 1242) < 1e-6
    rotation = np.array(rows["R0_rect"].split(), float).reshape(3, 3)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    for i in range(6):
        for line in (written / f"training/label_2/{i:06d}.txt").read_text().splitlines():
            fields = line.split()
            assert len(fields) == 15
            assert all(np.isfinite(float(v)) for v in fields[1:])


def test_number_of_workers_changes_nothing(written: Path, tmp_path: Path) -> None:
    other = write_kitti(tmp_path / "set", frames=6, seed=5, config=TINY, workers=2, progress=False)
    assert hashes(other) == hashes(written)


def test_other_seed_gives_other_frames(written: Path, tmp_path: Path) -> None:
    other = write_kitti(tmp_path / "set", frames=2, seed=6, config=TINY, workers=1, progress=False)
    for name in ("training/image_2/000000.png", "training/velodyne/000000.bin"):
        assert (other / name).read_bytes() != (written / name).read_bytes()


def test_cut_short_run_is_completed(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_kitti(out, frames=6, seed=5, config=TINY, workers=1, progress=False)
    kept = out / "training/image_2/000000.png"
    stamp = kept.stat().st_mtime_ns
    for name in ("image_2/000003.png", "velodyne/000002.bin", "label_2/000005.txt"):
        (out / "training" / name).unlink()
    (out / "ImageSets/train.txt").unlink()
    (out / "training/velodyne/.distill3d-0-1-0-0.part").write_bytes(b"half")
    write_kitti(out, frames=6, seed=5, config=TINY, workers=1, progress=False)
    assert hashes(out) == hashes(written)
    assert kept.stat().st_mtime_ns == stamp


def test_splits_by_name(tmp_path: Path) -> None:
    splits = {"train": 2, "val": 1}
    out = write_kitti(tmp_path / "set", seed=0, splits=splits, config=TINY, workers=1, progress=False)
    assert (out / "ImageSets/val.txt").read_text() == "000002\n"


HARD = replace(TINY, haze=(0.02, 0.02), car_bodies=("suv",))


def write_splits(out: Path, **changes) -> Path:
    settings = {
        "splits": {"train": 2, "test": 2, "val": 1}, "seed": 5, "config": TINY, "configs": {"test": HARD}, "workers": 1,
        "progress": False,
    }  # fmt: skip
    return write_kitti(out, **{**settings, **changes})


def test_splits_have_settings_of_their_own(written: Path, tmp_path: Path) -> None:
    out = write_splits(tmp_path / "set")
    sets = {name: (out / "ImageSets" / f"{name}.txt").read_text().split() for name in ("test", "trainval")}
    assert sets == {"test": ["000002", "000003"], "trainval": ["000000", "000001", "000004"]}
    for index in range(5):
        image, points = (f"training/{name}" for name in (f"image_2/{index:06d}.png", f"velodyne/{index:06d}.bin"))
        if index in (2, 3):
            shown = render_frame(5, index, HARD)
            assert np.array_equal(np.asarray(Image.open(out / image)), shown.image)
            assert (out / points).read_bytes() == shown.points.tobytes()
        else:
            assert (out / image).read_bytes() == (written / image).read_bytes()
    record = json.loads((out / "synth.json").read_text())
    assert record["config"]["haze"] == list(TINY.haze)
    assert record["configs"]["test"]["haze"] == [0.02, 0.02]
    assert list(record["configs"]) == ["test"]


def test_settings_of_splits_are_claimed_and_completed(tmp_path: Path) -> None:
    out = write_splits(tmp_path / "set", workers=2)
    before = hashes(out)
    (out / "training/image_2/000002.png").unlink()
    write_splits(out)
    assert hashes(out) == before
    others = (
        {"configs": None},
        {"configs": {"test": TINY}},
        {"configs": {"val": HARD}},
        {"splits": {"test": 2, "train": 2, "val": 1}},
    )
    for changes in others:
        with pytest.raises(UserError, match=f"another {next(iter(changes))}"):
            write_splits(out, **changes)
    assert hashes(out) == before


def test_settings_of_no_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="configs names the split 'tst'; the splits are train, test, val"):
        write_splits(tmp_path / "set", configs={"tst": HARD})
    assert not (tmp_path / "set").exists()


def test_content_hash_names_the_data(written: Path, tmp_path: Path) -> None:
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes(written).items()) if name != "synth.json")
    assert content_hash(written) == hashlib.sha256(lines.encode()).hexdigest()
    copy = tmp_path / "copy"
    shutil.copytree(written, copy)
    (copy / "synth.json").write_text("{}")
    (copy / ".cache").mkdir()
    (copy / ".cache/depth.npy").write_bytes(b"computed")
    assert content_hash(copy) == content_hash(written)
    label = copy / "training/label_2/000003.txt"
    label.write_bytes(label.read_bytes() + b"\n")
    changed = content_hash(copy)
    assert changed != content_hash(written)
    label.rename(label.with_name("000007.txt"))
    assert content_hash(copy) not in (changed, content_hash(written))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data"):
        content_hash(tmp_path / "empty")


def test_other_settings_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write_kitti(out, frames=1, seed=5, config=TINY, workers=1, progress=False)
    for seed, config in ((6, TINY), (5, replace(TINY, pitch_sigma=1.0))):
        with pytest.raises(UserError, match="made with another"):
            write_kitti(out, frames=1, seed=seed, config=config, workers=1, progress=False)
    with pytest.raises(UserError, match="splits"):
        write_kitti(out, frames=2, seed=5, config=TINY, workers=1, progress=False)


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    foreign = tmp_path / "training" / "image_2"
    foreign.mkdir(parents=True)
    (foreign / "000000.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="nothing was written"):
        write_kitti(tmp_path, frames=1, seed=0, config=TINY, workers=1, progress=False)
    assert hashes(tmp_path) == {"training/image_2/000000.png": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.parametrize(
    "arguments", [{}, {"frames": 0}, {"frames": 3, "val_share": 2.0}, {"frames": 3, "splits": {"train": 1}}]
)
def test_impossible_sizes_are_refused(tmp_path: Path, arguments: dict) -> None:
    with pytest.raises(UserError):
        write_kitti(tmp_path / "set", seed=0, config=TINY, workers=1, progress=False, **arguments)
    assert not (tmp_path / "set").exists()


def test_quiet_without_progress_and_on_stderr_with(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_kitti(tmp_path / "a", frames=1, seed=0, config=TINY, workers=1, progress=False)
    assert capfd.readouterr() == ("", "")
    write_kitti(tmp_path / "b", frames=1, seed=0, config=TINY, workers=1, progress=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "1/1" in output.err


def test_starts_without_the_training_framework() -> None:
    code = "import sys, distill3d.synth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
