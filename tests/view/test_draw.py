"""Wire frames: clipping as a property, and colours where the corners are."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill3d.boxes import IGNORE, KITTI_CLASSES, Boxes3D
from distill3d.camera import Camera, ImageAffine
from distill3d.data.sample import Objects, Sample
from distill3d.view.draw import (
    BEHIND,
    EDGES,
    FIGURE_WIDTH,
    FRONT_FACE,
    NEAR,
    Extent,
    bird_view,
    clip_near,
    clip_polygon,
    clip_window,
    draw_boxes,
    field_of_view,
    fitting_extent,
    frame_figure,
    frame_panels,
    prediction_picture,
)
from distill3d.view.palette import LOOKS, looks

CAMERA = Camera.from_intrinsics(90.0, 90.0, 80.0, 24.0)
WIDTH, HEIGHT = 160, 48
coordinate = st.floats(-50, 50)
segment = st.lists(st.tuples(coordinate, coordinate, coordinate), min_size=2, max_size=2)
pixels = st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), min_size=2, max_size=2)


def boxes(centre: list[tuple[float, float, float]], yaw: float = 0.3, label: int = 1) -> Boxes3D:
    n = len(centre)
    size = torch.tensor([(4.0, 1.6, 1.5)], dtype=torch.float64).repeat(n, 1)
    return Boxes3D(
        torch.tensor(centre, dtype=torch.float64).reshape(n, 3), size, torch.full((n,), yaw, dtype=torch.float64),
        torch.full((n,), label), "camera", score=torch.linspace(0.9, 0.5, n),
    )  # fmt: skip


def sample(centre: list[tuple[float, float, float]], points: torch.Tensor | None = None) -> Sample:
    n = len(centre)
    unknown = torch.zeros(n, dtype=torch.int64)
    return Sample(
        "000007", torch.full((3, HEIGHT, WIDTH), 0.5), CAMERA, ImageAffine.crop((WIDTH, HEIGHT), (WIDTH, HEIGHT)),
        Objects(boxes(centre), torch.zeros(n), unknown, unknown), points=points,
    )  # fmt: skip


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def nearest_to(picture: Image.Image, colour: str) -> np.ndarray:
    """Distance of each pixel's colour from the given one, (H, W)."""
    return np.abs(np.asarray(picture).astype(int) - rgb(colour)).max(-1)


@given(segment, st.floats(0.01, 5))
def test_clipped_segments_lie_in_front_on_the_same_line(ends: list, near: float) -> None:
    whole = torch.tensor([ends], dtype=torch.float64)
    part, visible = clip_near(whole, near)
    assert bool(visible) == bool((whole[..., 2] >= near).any())
    if not visible:
        return
    assert (part[..., 2] >= near).all()
    kept = whole[..., 2] >= near
    assert torch.equal(part[kept], whole[kept])  # ends in front stay where they are
    along, cut = whole[0, 1] - whole[0, 0], part[0] - whole[0, 0]
    assert torch.linalg.cross(along.expand(2, 3), cut, dim=-1).abs().max() <= 1e-9 * (1 + along.norm() ** 2)
    assert (cut @ along >= -1e-9).all() and (cut @ along <= along @ along + 1e-9).all()


@given(segment)
def test_clipping_twice_changes_nothing(ends: list) -> None:
    once, visible = clip_near(torch.tensor([ends], dtype=torch.float64))
    twice, still = clip_near(once)
    assert torch.equal(once, twice) and torch.equal(visible, still)


@given(pixels)
def test_window_keeps_exactly_what_is_inside(ends: list) -> None:
    whole = torch.tensor([ends], dtype=torch.float64)
    part, inside = clip_window(whole, WIDTH, HEIGHT)
    steps = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    points = whole[0, 0] + steps * (whole[0, 1] - whole[0, 0])
    limit = torch.tensor((WIDTH, HEIGHT), dtype=torch.float64)
    within = ((points >= 0) & (points <= limit)).all(-1)
    if within.any():
        assert inside
    if inside:
        assert (part >= -1e-6).all() and (part <= limit + 1e-6).all()
        for end, point in ((0, within.nonzero()[:1]), (1, within.nonzero()[-1:])):
            if len(point):  # no inner point lies beyond the ends
                gap = (part[0, end] - points[point[0, 0]]).norm()
                assert gap <= (whole[0, 1] - whole[0, 0]).norm() / 2000 + 1e-6


@pytest.mark.parametrize(
    ("depths", "corners"),
    [((5, 5, 5, 5), 4), ((5, 5, -5, -5), 4), ((5, -5, -5, -5), 3), ((-5, 5, 5, 5), 5), ((-5, -5, -5, -5), 0)],
)
def test_polygon_loses_what_is_behind(depths: tuple, corners: int) -> None:
    flat = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
    polygon = torch.tensor([(*xy, float(z)) for xy, z in zip(flat, depths, strict=True)], dtype=torch.float64)
    clipped = clip_polygon(polygon)
    assert len(clipped) == corners
    assert (clipped[:, 2] >= NEAR).all()


@pytest.mark.parametrize("yaw", [0.0, 0.7, math.pi / 2])
def test_pixels_change_along_the_projected_edges_and_nowhere_far_from_them(yaw: float) -> None:
    box = boxes([(0.5, 0.5, 12.0)], yaw)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "#808080")
    draw_boxes(picture, CAMERA, box, "#ff0000", width=1)
    corners = CAMERA.project(box.corners()[0])[0]
    changed = np.asarray(picture).astype(int)[..., 0] > 140
    for a, b in EDGES:
        u, v = ((corners[a] + corners[b]) / 2).round().long().tolist()
        assert changed[v - 1 : v + 2, u - 1 : u + 2].any()
    rows, columns = np.nonzero((np.asarray(picture) != 128).any(-1))
    low, high = corners.amin(0).tolist(), corners.amax(0).tolist()
    assert columns.min() >= low[0] - 4 and columns.max() <= high[0] + 4
    assert rows.min() >= low[1] - 4 and rows.max() <= high[1] + 4


def test_the_front_face_alone_is_tinted() -> None:
    box = boxes([(0.0, 0.0, 10.0)], yaw=math.pi / 2)  # drives away: the front is the far face
    picture = Image.new("RGB", (800, 240), "#808080")
    camera = Camera.from_intrinsics(900.0, 900.0, 400.0, 120.0)
    draw_boxes(picture, camera, box, "#ff0000", width=1)
    red = np.asarray(picture).astype(int)[..., 0]
    inside_far = camera.project(torch.tensor([[0.2, 0.2, 12.0]], dtype=torch.float64))[0][0].round().long()
    beside_far = camera.project(torch.tensor([[0.75, 0.0, 8.1]], dtype=torch.float64))[0][0].round().long()
    assert red[inside_far[1], inside_far[0]] > 140
    assert red[beside_far[1], beside_far[0]] == 128


def raster(points: torch.Tensor, reach: int) -> np.ndarray:
    """Pixels within ``reach`` of the projections of points (m, 3) in front of the camera, bool (HEIGHT, WIDTH)."""
    uv = CAMERA.project(points[points[:, 2] >= NEAR])[0] + reach  # a margin: lines may pass beside the image
    cell = uv[((uv >= 0) & (uv < torch.tensor((WIDTH, HEIGHT)) + 2 * reach)).all(-1)].long()
    mask = torch.zeros(1, HEIGHT + 2 * reach, WIDTH + 2 * reach)
    mask[0, cell[:, 1], cell[:, 0]] = 1
    return torch.nn.functional.max_pool2d(mask, 2 * reach + 1, 1)[0].bool().numpy()


@pytest.mark.parametrize(
    ("centre", "yaw"),
    [
        ((0.0, 0.5, 0.3), 0.3),
        ((0.8, 0.3, 1.0), 1.2),
        ((-2.0, 0.0, 1.2), 1.5),
        ((0.3, 0.4, 2.0), -1.4),
        ((1, 0, 8), 2.0),
    ],
)
def test_boxes_around_the_camera_do_not_wrap(centre: tuple, yaw: float) -> None:
    """A box that surrounds or passes the camera shows its part in front: all of it, and nothing else."""
    box = boxes([centre], yaw)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "#808080")
    draw_boxes(picture, CAMERA, box, "#ff0000", width=2)
    changed = (np.asarray(picture) != 128).any(-1)
    ends = box.corners()[0, torch.tensor(EDGES)]
    run = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None, None]
    edges = (ends[:, 0] + run * (ends[:, 1] - ends[:, 0])).reshape(-1, 3)
    a, b, c, _ = box.corners()[0, list(FRONT_FACE)]
    side = torch.linspace(0, 1, 1200, dtype=torch.float64)
    face = (a + side[:, None, None] * (b - a) + side[None, :, None] * (c - b)).reshape(-1, 3)
    assert raster(edges, 0).any()
    assert changed[raster(edges, 0)].mean() > 0.97  # the few others lie half a pixel beside the line
    assert not changed[~raster(torch.cat((edges, face)), 4)].any()


@pytest.mark.parametrize("empty", [Boxes3D.empty("camera"), boxes([(0, 0, -20.0)]), boxes([(0, 0, 9.0)], label=IGNORE)])
def test_nothing_to_draw_leaves_the_image(empty: Boxes3D) -> None:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "#808080")
    draw_boxes(picture, CAMERA, empty, "#ff0000", names=KITTI_CLASSES)
    assert (np.asarray(picture) == 128).all()


def test_captions_make_room_for_each_other() -> None:
    """Two of one place hide nothing of each other: both plates are as large as one alone."""
    near, far = boxes([(0, 0, 20.0)]), boxes([(0, 0, 20.0), (0, 0, 20.5)])

    def plates(shown: Boxes3D) -> int:
        pictures = []
        for names in ((), KITTI_CLASSES):
            picture = Image.new("RGB", (640, 400), "#808080")
            draw_boxes(picture, Camera.from_intrinsics(400, 400, 320, 200), shown, "#ff0000", width=1, names=names)
            pictures.append(np.asarray(picture))
        return int((pictures[0] != pictures[1]).any(-1).sum())

    assert plates(far) > 1.9 * plates(near) > 0


def test_other_frames_are_refused() -> None:
    lidar = Boxes3D.empty("lidar")
    with pytest.raises(ValueError, match="camera frame"):
        draw_boxes(Image.new("RGB", (8, 8)), CAMERA, lidar, "#ff0000")
    with pytest.raises(ValueError, match="camera frame"):
        bird_view(None, {"student": lidar}, Extent(-10, 0, 10, 20))


def test_bird_view_shows_boxes_and_points_where_they_are() -> None:
    extent = Extent(-20, 0, 20, 40)
    points = torch.tensor([(10.0, -0.5, 30.0, 0.3)])  # two metres above the road
    plain = np.asarray(bird_view(None, {}, extent, size=400)).astype(int)
    dotted = np.asarray(bird_view(points, {}, extent, size=400)).astype(int)
    rows, columns = np.nonzero((plain != dotted).any(-1))
    assert len(rows) and abs(columns - 300).max() <= 2 and abs(rows - 100).max() <= 2  # 10 px a metre
    drawn = np.asarray(bird_view(None, {"student": boxes([(-10.0, 1.0, 20.0)], 0.0)}, extent, size=400)).astype(int)
    rows, columns = np.nonzero((plain != drawn).any(-1))
    assert (columns.min() + columns.max()) / 2 == pytest.approx(100, abs=1.5)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(200, abs=1.5)
    assert np.ptp(columns) == pytest.approx(40, abs=4) and np.ptp(rows) == pytest.approx(16, abs=4)


def test_bird_view_shades_what_the_camera_cannot_see() -> None:
    view = field_of_view(CAMERA, WIDTH)
    assert view == pytest.approx((-80 / 90, 80 / 90))
    picture = np.asarray(bird_view(None, {}, Extent(-20, 0, 20, 40), view, size=400))
    assert (picture[395, 150] < 255).all() and (picture[105, 220] == 255).all()


@pytest.mark.parametrize(("far", "reach"), [([], 30), ([12.0], 30), ([44.0], 50), ([58.0], 70), ([200.0], 80)])
def test_the_extent_holds_the_boxes(far: list, reach: float) -> None:
    extent = fitting_extent({"student": boxes([(0.0, 0.0, z) for z in far])})
    assert extent.far == reach
    assert extent.right - extent.left == extent.far - extent.near == reach + BEHIND


def test_panels_keep_the_baseline_apart() -> None:
    near, far = [(0.0, 0.5, 9.0)], [(-3.0, 0.5, 12.0)]
    sets = {"teacher": boxes(near), "baseline": boxes(far), "student": boxes(near)}
    panels, bird = frame_panels(sample(near), sets)
    assert [panel.size for panel in panels] == [(FIGURE_WIDTH, FIGURE_WIDTH * HEIGHT // WIDTH)] * 2
    student, baseline = LOOKS["student"].colour, LOOKS["baseline"].colour
    assert nearest_to(panels[0], student).min() < 30 < nearest_to(panels[0], baseline).min()
    assert nearest_to(panels[1], baseline).min() < 30 < nearest_to(panels[1], student).min()
    assert nearest_to(bird, student).min() < 30 and nearest_to(bird, baseline).min() < 30
    assert len(frame_panels(sample(near), {"student": boxes(near)})[0]) == 1


def test_figure_shows_all_parts_and_the_truth() -> None:
    near = [(0.0, 0.5, 9.0), (3.0, 0.5, 14.0)]
    points = torch.rand(500, 4) * torch.tensor([20.0, 2.0, 30.0, 1.0])
    parts = {name: boxes(near, yaw) for name, yaw in (("teacher", 0.2), ("baseline", 0.5), ("student", 0.8))}
    figure = frame_figure(sample(near, points), parts)
    for name in ("true", *parts):
        assert nearest_to(figure, LOOKS[name].colour).min() < 30
    unlabelled = Sample("000008", torch.zeros(3, HEIGHT, WIDTH), CAMERA, sample(near).affine)
    assert nearest_to(frame_figure(unlabelled, {}), LOOKS["true"].colour).min() > 30


def test_prediction_is_written(tmp_path: Path) -> None:
    path = tmp_path / "000007.png"
    prediction_picture(torch.rand(3, HEIGHT, WIDTH), CAMERA, boxes([(0.0, 0.5, 9.0)])).save(path, "PNG")
    with Image.open(path) as picture:
        assert picture.width > FIGURE_WIDTH and nearest_to(picture, LOOKS["student"].colour).min() < 10


def test_looks_differ() -> None:
    parts = ["teacher", "baseline", "student", "control", "student", "control"]
    chosen = looks(parts)
    assert chosen[:3] == [LOOKS[part] for part in parts[:3]]
    assert len({look.colour for look in chosen}) == len({look.dash for look in chosen}) == len(parts)
