"""Projected depth, and its completion against a plain reference written pixel by pixel."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from distill3d.camera import Camera
from distill3d.data.cache import cache_folder, cache_key
from distill3d.data.depth import (
    CompletionConfig,
    cached_depth,
    complete_depth,
    project_depth,
    read_depth,
    write_depth,
)
from distill3d.errors import UserError


def test_projection_keeps_the_nearest_point_in_the_image() -> None:
    camera = Camera.from_intrinsics(10, 10, 4, 2)
    pixels = torch.tensor([[1.5, 1.5], [1.9, 1.1], [1.2, 1.2], [7.99, 3.99], [8.0, 1], [-0.01, 1], [5, 3], [2, 2]])
    depths = torch.tensor([9.0, 5.0, 7.0, 3.0, 4.0, 4.0, -6.0, 0.0])
    points = camera.back_project(pixels.double(), depths.double()).float()
    found = project_depth(points, camera, (8, 4))
    expected = torch.zeros(4, 8)
    expected[1, 1], expected[3, 7] = 5, 3
    assert found.dtype == torch.float32 and torch.allclose(found, expected)


@given(st.integers(0, 2**31), st.integers(0, 400))
def test_projection_does_not_depend_on_the_order_of_points(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(count, 4, generator=generator) * torch.tensor([20.0, 6, 30, 1]) - torch.tensor([10.0, 3, 2, 0])
    camera = Camera.from_intrinsics(20, 20, 16, 5)
    found = project_depth(points, camera, (32, 10))
    assert torch.equal(found, project_depth(points[torch.randperm(count, generator=generator)], camera, (32, 10)))
    slow = np.full((10, 32), np.inf)
    uv, z = camera.project(points[:, :3].double())
    for (u, v), d in zip(uv.tolist(), z.tolist(), strict=True):
        if d > 0 and 0 <= u < 32 and 0 <= v < 10:
            slow[int(v), int(u)] = min(slow[int(v), int(u)], d)
    slow[np.isinf(slow)] = 0
    assert np.allclose(found.numpy(), slow, atol=1e-5)


# ------------------------------------------------------------------------------------- the reference for the completion


def cross(size: int) -> np.ndarray:
    kernel = np.zeros((size, size), bool)
    kernel[size // 2], kernel[:, size // 2] = True, True
    return kernel


def dilate(x: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    return ndimage.maximum_filter(x, footprint=footprint, mode="constant", cval=-np.inf)


def top_rows(x: np.ndarray) -> np.ndarray:
    mask = np.ones(x.shape, bool)
    for column in range(x.shape[1]):
        first = np.flatnonzero(x[:, column] > 0.1)
        mask[: first[0] if len(first) else 0, column] = False
    return mask


def bilateral(x: np.ndarray) -> np.ndarray:
    out, padded = np.zeros_like(x), np.pad(x, 2, mode="reflect")
    for row, column in np.ndindex(*x.shape):
        total = weight = 0.0
        for dy, dx in np.ndindex(5, 5):
            radius = (dy - 2) ** 2 + (dx - 2) ** 2
            if radius <= 4:
                value = padded[row + dy, column + dx]
                share = np.exp(-((value - x[row, column]) ** 2) / (2 * 0.5**2) - radius / (2 * 2.0**2))
                total, weight = total + share * value, weight + share
        out[row, column] = total / weight
    return out


def reference(depth: np.ndarray) -> np.ndarray:
    d = np.where(depth > 0.1, 100 - depth, 0)
    filled = d.copy()
    for mask, kernel in ((depth > 30, 3), ((depth > 15) & (depth <= 30), 5), ((depth > 0.1) & (depth <= 15), 7)):
        grown = dilate(np.where(mask, d, 0), cross(kernel))
        filled[grown > 0.1] = grown[grown > 0.1]
    full = [np.ones((n, n), bool) for n in (5, 9)]
    filled = -dilate(-dilate(filled, full[0]), full[0])
    filled = np.where(filled > 0.1, ndimage.median_filter(filled, 5, mode="nearest"), filled)
    empty = ~(filled > 0.1) & top_rows(filled)
    filled = np.where(empty, dilate(filled, full[1]), filled)
    mask = top_rows(filled)
    for _ in range(6):
        filled = np.where((filled < 0.1) & mask, dilate(filled, full[0]), filled)
    valid = (filled > 0.1) & mask
    filled = np.where(valid, ndimage.median_filter(filled, 5, mode="nearest"), filled)
    filled = np.where(valid, bilateral(filled), filled)
    return np.where(filled > 0.1, 100 - filled, 0)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31), st.sampled_from([(24, 40), (7, 30), (33, 9)]), st.sampled_from([0.0, 0.01, 0.1, 0.4, 1.0])
)
def test_completion_equals_the_reference(seed: int, shape: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(seed)
    depth = np.where(rng.random(shape) < density, rng.choice([4.0, 15, 22, 30, 31, 70], shape) + rng.random(shape), 0)
    depth[: rng.integers(0, shape[0])] = 0
    found = complete_depth(torch.from_numpy(depth))
    assert np.abs(found.numpy() - reference(depth)).max() < 1e-9


def test_completion_of_an_even_wall_is_that_wall_and_the_sky_stays_open() -> None:
    depth = torch.zeros(40, 60)
    depth[16::4, ::3] = 20.0
    dense = complete_depth(depth)
    assert torch.allclose(dense[17:], torch.full((23, 60), 20.0), atol=1e-4)
    assert (dense[:10] == 0).all()
    assert (complete_depth(torch.full((8, 8), 120.0)) == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"maximum": 60.0}, {"valid": 6.0}, {"near": 8.0}, {"medium": 20.0}, {"near_cross": 3}, {"medium_cross": 3},
        {"far_cross": 5}, {"closing": 3}, {"median": 3}, {"hole_fill": 3}, {"gap_fill": 3}, {"gap_fill_rounds": 0},
        {"bilateral": 3}, {"colour_deviation": 2.0}, {"space_deviation": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_each_completion_parameter_matters(change: dict) -> None:
    rng = np.random.default_rng(3)
    depth = np.where(rng.random((60, 80)) < 0.05, rng.choice([5.0, 12, 25, 50, 70], (60, 80)) + rng.random((60, 80)), 0)
    depth[:20], depth[:, 60:76] = 0, 0
    sparse = torch.from_numpy(depth)
    assert not torch.equal(complete_depth(sparse, CompletionConfig(**change)), complete_depth(sparse))


# ------------------------------------------------------------------------------------------------------ files and cache


def test_png_round_trip(tmp_path: Path) -> None:
    depth = torch.rand(9, 14) * 90
    depth[0] = 0
    write_depth(tmp_path / "d.png", depth)
    back = read_depth(tmp_path / "d.png")
    assert back.dtype == torch.float32 and (back - depth).abs().max() <= 0.5 / 256 + 1e-6
    with Image.open(tmp_path / "d.png") as image:
        assert np.array_equal(np.asarray(image), (depth * 256).round().numpy().astype(np.uint16))
    assert os.listdir(tmp_path) == ["d.png"]


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_unreadable_depth(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "d.png"
    if content is None:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"d\.png: "):
        read_depth(path)


def test_cache_computes_once_and_heals(tmp_path: Path) -> None:
    calls = []

    def compute() -> torch.Tensor:
        calls.append(1)
        return torch.full((3, 4), 12.34567)

    first = cached_depth(tmp_path / "cache", "000001", "key", compute)
    assert torch.equal(first, cached_depth(tmp_path / "cache", "000001", "key", compute)) and len(calls) == 1
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_bytes(stored.read_bytes()[:20])
    assert torch.equal(first, cached_depth(tmp_path / "cache", "000001", "key", compute)) and len(calls) == 2
    cached_depth(tmp_path / "cache", "000001", "other key", compute)
    assert len(calls) == 3


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(UserError, match="d.png: cannot be written .disk full"):
        write_depth(tmp_path / "d.png", torch.zeros(2, 2))
    assert os.listdir(tmp_path) == []


def test_key_sees_every_input() -> None:
    base = (torch.zeros(3, 4), (64, 20), CompletionConfig())
    keys = {
        cache_key(*base),
        cache_key(torch.ones(3, 4), *base[1:]),
        cache_key(base[0], (20, 64), base[2]),
        cache_key(*base[:2], CompletionConfig(near=14.0)),
        cache_key(b"ab", b"c"),
        cache_key(b"a", b"bc"),
    }
    assert len(keys) == 6 and cache_key(*base) in keys


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_folder(tmp_path / "data") == tmp_path / "data/.distill3d_cache"
    assert cache_folder(tmp_path / "data", tmp_path / "mine") == tmp_path / "mine"
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        assert cache_folder(blocked) == tmp_path / "user/distill3d"
    with pytest.raises(UserError, match="set `cache`"):
        cache_folder(tmp_path, blocked / "below")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.raises(UserError, match="set `cache`"):
        cache_folder(blocked)
