"""Scans of other columns than expected are found out by their values; real and sound ones never are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill3d.data.check import run_check
from distill3d.data.kitti.check import check_kitti
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.scans import read_points
from distill3d.data.nuscenes.dataset import read_scan
from distill3d.data.scans import layout_fault, likely_layout, read_rows
from distill3d.errors import UserError

COUNT = 6000  # points; a multiple of all tried columns


def scan(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """A sweep around the sensor: ground and walls, (count, 4), intensities in 0..1."""
    rng = np.random.default_rng(seed)
    azimuth = np.sort(rng.uniform(-np.pi, np.pi, count))
    reach, height = rng.gamma(2.0, 8.0, count).clip(2, 110), rng.choice([-1.7, -1.6, 0.0, 1.0, 2.5], count)
    rows = (
        reach * np.cos(azimuth),
        reach * np.sin(azimuth),
        height + rng.normal(0, 0.05, count),
        rng.beta(1, 3, count),
    )
    return np.stack(rows, axis=1).astype("<f4")


def more(rows: np.ndarray, *columns: np.ndarray) -> np.ndarray:
    return np.hstack([rows, *(np.asarray(c, "<f4").reshape(len(rows), -1) for c in columns)])


POINTS = scan()
RING, TIME, NOTHING = np.arange(COUNT) % 64, np.linspace(0, 0.1, COUNT), np.zeros(COUNT)
#: What a file holds, and what its layout is called.
KINDS: dict[str, tuple[np.ndarray, str]] = {
    "three": (POINTS[:, :3].copy(), "3 columns of float32"),
    "four": (POINTS, "4 columns of float32"),
    "bytes": (POINTS * np.array([1, 1, 1, 255], "<f4"), "4 columns of float32"),
    "ring": (more(POINTS, RING), "5 columns of float32"),
    "time": (more(POINTS, TIME), "5 columns of float32"),
    "padding": (more(POINTS, NOTHING), "5 columns of float32"),
    "six": (more(POINTS, RING, TIME), "6 columns of float32"),
    "seven": (more(POINTS, POINTS[:, :3] / 50), "7 columns of float32"),
    "double": (POINTS.astype("<f8"), "4 columns of float64"),
    "full doubles": (POINTS.astype("<f8") * np.pi / 3, "4 columns of float64"),
    "double ring": (more(POINTS, RING).astype("<f8"), "5 columns of float64"),
    "three doubles": (POINTS[:, :3].astype("<f8"), "3 columns of float64"),
}


@pytest.mark.parametrize("columns", [3, 4, 5, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_other_columns_are_found_out(tmp_path: Path, kind: str, columns: int) -> None:
    values, name = KINDS[kind]
    values.tofile(tmp_path / "a.bin")
    if name == f"{columns} columns of float32":
        assert np.array_equal(read_rows(tmp_path / "a.bin", columns), values)
        return
    with pytest.raises(UserError) as error:
        read_rows(tmp_path / "a.bin", columns)
    assert str(error.value).startswith(f"{tmp_path / 'a.bin'}: ") and f"looks like {name}: " in str(error.value)
    advice = f"set --dataset.scan-columns {name[0]} " if "float32" in name else "convert it to float32"
    assert advice in str(error.value)


def test_a_byte_count_that_fits_no_row_still_says_what_it_looks_like(tmp_path: Path) -> None:
    KINDS["ring"][0][: COUNT - 1].tofile(tmp_path / "a.bin")
    with pytest.raises(UserError, match="119980 bytes are no multiple of the 16 bytes of a point, it looks like 5 col"):
        read_points(tmp_path / "a.bin")


@pytest.mark.parametrize("columns", [3, 4, 5])
def test_what_is_read_of_other_columns(tmp_path: Path, columns: int) -> None:
    rows = {3: KINDS["three"], 4: KINDS["four"], 5: KINDS["ring"]}[columns][0]
    rows.tofile(tmp_path / "a.bin")
    points, full = read_points(tmp_path / "a.bin", columns).numpy(), read_scan(tmp_path / "a.bin", columns).numpy()
    assert points.shape == (COUNT, 4) and full.shape == (COUNT, 5)
    assert np.array_equal(points[:, : min(columns, 4)], rows[:, :4]) and np.array_equal(full[:, :columns], rows)
    assert not points[:, columns:].any() and not full[:, columns:].any()


def test_odd_intensities_are_no_fault_by_themselves() -> None:
    """Some whiten them: no other layout explains the values better."""
    assert layout_fault(POINTS * np.array([1, 1, 1, -1], "<f4")) is None
    assert layout_fault(POINTS - np.array([0, 0, 0, 0.4], "<f4")) is None


def test_noise_zeros_and_far_points_are_refused(tmp_path: Path) -> None:
    for values, words in (
        (np.random.default_rng(0).bytes(16 * COUNT), "beyond 500 m or higher or lower than 150 m"),
        (bytes(16 * COUNT), "holds nothing but zeros"),
        ((POINTS + np.array([6e5, 5e6, 200, 0], "<f4")).tobytes(), "100% of the points lie beyond 500 m"),
    ):
        (tmp_path / "a.bin").write_bytes(values)
        with pytest.raises(UserError, match=words):
            read_points(tmp_path / "a.bin")


def test_a_few_stray_points_are_none_of_the_layouts_faults() -> None:
    rows = POINTS.copy()
    rows[::500, :3] = 1e30
    assert layout_fault(rows) is None


@given(st.binary(max_size=400), st.sampled_from([3, 4, 5]))
@settings(max_examples=100)
def test_any_bytes_give_points_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, columns: int
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(data * 8)
    for read in (read_points, read_scan):
        try:
            assert read(path, columns).isfinite().all()
        except UserError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.real
@pytest.mark.parametrize("layout", ["kitti_mini", "kitti_raw_mini", "nuscenes_one"])
def test_real_scans_are_known(real_data: Path, tmp_path: Path, layout: str) -> None:
    columns = 5 if layout == "nuscenes_one" else 4
    files = sorted((real_data / layout).rglob("*.bin"))[::3]
    assert files
    for path in files:
        rows = read_rows(path, columns)
        assert likely_layout(rows.reshape(-1), columns) is None
        for other in (more(rows, rows[:, :1] * 0), rows[:, :3], rows.astype("<f8")):
            values = np.ascontiguousarray(other[: len(other) // 60 * 60]).view("<f4").reshape(-1)
            for wrong in {3, 4, 5} - {other.shape[1] if other.dtype == "<f4" else 0}:
                fault = layout_fault(values[: len(values) // wrong * wrong].reshape(-1, wrong))
                assert fault is not None and f"looks like {other.shape[1]} columns" in fault, (path, wrong)


@pytest.fixture
def five_columns(write_kitti: Callable[..., Path], tmp_path: Path) -> Path:
    root = write_kitti(tmp_path / "kitti")
    for number, path in enumerate(sorted((root / "training/velodyne").iterdir())):
        more(scan(600, number), np.arange(600) % 64).tofile(path)
    return root


def test_check_names_scans_of_other_columns(five_columns: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill3d.cli import main

    problems = check_kitti(five_columns)
    assert len(problems) == 3 and all("looks like 5 columns of float32" in p.sentence for p in problems)
    assert check_kitti(five_columns, scan_columns=5) == []
    with pytest.raises(SystemExit) as stop:
        main(["check", str(five_columns), "--scan-columns", "5"])
    assert stop.value.code == 0, capsys.readouterr().out


@pytest.mark.parametrize("columns", [-4, 0, 2, 65])
@pytest.mark.parametrize("layout", ["kitti", "nuscenes"])
def test_columns_that_no_scan_has(five_columns: Path, columns: int, layout: str) -> None:
    with pytest.raises(UserError, match=f"scan_columns is {columns}, expected 3"):
        run_check(five_columns, layout, columns)
    with pytest.raises(UserError, match=f"scan_columns is {columns}, expected 3"):
        read_rows(five_columns / "training/velodyne/000000.bin", columns)


def test_the_setting_reaches_the_reader(five_columns: Path) -> None:
    config = KittiConfig(five_columns, "train", canvas=(64, 20), points=True)
    with pytest.raises(UserError, match="000000.bin: looks like 5 columns"):
        KittiDataset(config).get(0)
    sample = KittiDataset(replace(config, scan_columns=5)).get(0)
    assert sample.points is not None and sample.points.shape == (600, 4)
