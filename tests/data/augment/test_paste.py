"""Objects pasted into picture, scan and depth map: the three agree, and nothing stands where something is."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streets import small_bev_preset
from torch import Tensor

from distill3d.boxes import KITTI_CLASSES, Boxes3D, camera_to_lidar
from distill3d.camera import Camera
from distill3d.data.augment.image import AugmentConfig, frame_generator
from distill3d.data.augment.lidar import LidarAugmentConfig, bev_overlap, ground_rows
from distill3d.data.augment.paste import (
    CLEARANCE,
    Donors,
    PasteConfig,
    Patch,
    hidden,
    outlines,
    owners,
    regions,
    stands,
)
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.sample import EASY, HARD, UNKNOWN, Objects, Sample
from distill3d.errors import UserError
from distill3d.synth.settings import StreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import is_repeatable

SIZE = (416, 128)
FRAMES = 6
#: Objects are small in so small pictures: few points show them.
PASTE = PasteConfig(probability=1.0, counts=(("Car", 4), ("Pedestrian", 3), ("Cyclist", 2)), least_points=3)
PLAIN = AugmentConfig(flip=0.0, crop=0.0, photometric=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = StreetConfig(width=SIZE[0], height=SIZE[1], rays_per_pixel_side=1)
    return write_kitti(
        tmp_path_factory.mktemp("streets"), seed=3, config=config, splits={"train": FRAMES, "val": 1}, workers=1,
        progress=False,
    )  # fmt: skip


def frames(root: Path, augment: AugmentConfig | None, **fields: object) -> KittiDataset:
    settings = {"depth": "lidar", "points": True, "placement": "corner"} | fields
    return KittiDataset(
        KittiConfig(root=root, split="train", canvas=SIZE, min_height_scale=SIZE[0] / 1242, augment=augment,
                    in_memory=True, **settings)  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def drawn(data: KittiDataset) -> list[Sample]:
    return [data.get(i, frame_generator(0, 1, i)) for i in range(len(data))]


@pytest.fixture(scope="module")
def pairs(root: Path) -> list[tuple[Sample, Sample]]:
    """Every frame as it is, and with pasted objects."""
    before = [data.get(i) for data in (frames(root, None),) for i in range(FRAMES)]
    return list(zip(before, drawn(frames(root, replace(PLAIN, paste=PASTE))), strict=True))


def pasted(pair: tuple[Sample, Sample]) -> Objects:
    """The label lines that came: those behind the frame's own."""
    before, after = pair
    assert before.objects is not None and after.objects is not None
    return after.objects[len(before.objects) :]


def rows_apart(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of ``a`` are none of ``b``."""
    known = set(map(tuple, b.tolist()))
    return torch.tensor([tuple(row) not in known for row in a.tolist()], dtype=torch.bool)


def pixels(points: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Row and column of points, which may lie outside the picture."""
    column, row = camera.project(points[:, :3].to(camera.projection))[0].floor().long().unbind(-1)
    return row, column


def test_objects_are_pasted(pairs: list[tuple[Sample, Sample]]) -> None:
    counts = [len(pasted(pair)) for pair in pairs]
    assert sum(counts) >= FRAMES and max(counts) > 1
    assert len({int(label) for pair in pairs for label in pasted(pair).boxes.label}) > 1


def test_points_depths_and_picture_agree(pairs: list[tuple[Sample, Sample]]) -> None:
    """All points in a pasted box came with it; the depth map at their pixels holds their depths and no others; and the
    frame's own points are gone from the pixels that now show the object, and only from there or from within its box."""
    checked = 0
    for before, after in pairs:
        boxes = pasted((before, after)).boxes
        assert before.points is not None and after.points is not None
        assert before.depth is not None and after.depth is not None
        came = rows_apart(after.points, before.points)
        new, own = after.points[came], after.points[~came]
        inside = boxes.to(torch.float32).contains(after.points[:, :3])
        assert bool((inside.any(0) == came).all())
        assert bool((inside.sum(1) >= PASTE.least_points).all())
        row, column = pixels(new, after.camera)
        nearest = torch.full(SIZE[::-1], torch.inf)
        nearest.view(-1).scatter_reduce_(0, row * SIZE[0] + column, new[:, 2], "amin")
        shown = after.depth[0][row, column]
        torch.testing.assert_close(shown, nearest[row, column])
        changed = (after.image != before.image).any(0)
        # where the depth map changed, it is in a pasted object's region, and so is where the picture did
        region = torch.zeros_like(changed)
        for i in range(len(boxes)):
            region |= outlines(boxes[i : i + 1], after.camera, SIZE)[0]
        assert not bool((changed & ~region).any())
        assert not bool(((after.depth != before.depth)[0] & ~region).any())
        gone = before.points[rows_apart(before.points, after.points)]
        row, column = pixels(gone, after.camera)
        in_picture = (row >= 0) & (row < SIZE[1]) & (column >= 0) & (column < SIZE[0]) & (gone[:, 2] > 0)
        in_box = boxes.to(torch.float32).contains(gone[:, :3]).any(0)
        assert bool((region[row[in_picture], column[in_picture]] | in_box[in_picture]).all())
        # no point of the frame's own is seen through a pixel with a pasted object's depth
        row, column = pixels(own, after.camera)
        seen = (row >= 0) & (row < SIZE[1]) & (column >= 0) & (column < SIZE[0]) & (own[:, 2] > 0)
        assert bool(nearest[row[seen], column[seen]].isinf().all())
        checked += len(new)
    assert checked > 20 * FRAMES


def test_pictures_show_the_donor(root: Path, pairs: list[tuple[Sample, Sample]]) -> None:
    """Cameras are alike here, so a pasted pixel is the donor's own."""
    donors, known = frames(root, None), [before for before, _ in pairs]
    assert all(torch.equal(s.camera.projection, known[0].camera.projection) for s in known)
    for before, after in pairs:
        changed = (after.image != before.image).any(0)
        from_any = torch.zeros_like(changed)
        for other in known:
            from_any |= ((after.image - other.image).abs() < 1e-4).all(0)
        assert bool(from_any[changed].all())
    assert len(donors.donors.objects) > FRAMES


def test_nothing_stands_where_something_is(pairs: list[tuple[Sample, Sample]]) -> None:
    for before, after in pairs:
        boxes = pasted((before, after)).boxes
        assert after.objects is not None and before.points is not None and after.lidar_to_camera is not None
        rows = ground_rows(camera_to_lidar(after.objects.boxes, torch.linalg.inv(after.lidar_to_camera)))
        overlap = bev_overlap(rows, rows)
        overlap.fill_diagonal_(False)
        assert not bool(overlap[len(rows) - len(boxes) :].any())
        inside = boxes.to(torch.float32).contains(before.points[:, :3])
        bottom = (boxes.centre[:, 1] + boxes.size[:, 2] / 2)[:, None]
        assert not bool((inside & (bottom - before.points[:, 1] > CLEARANCE)).any())


def test_mirrored_frames_still_agree(root: Path) -> None:
    mirrored = drawn(frames(root, replace(PLAIN, flip=1.0, paste=PASTE)))
    straight = drawn(frames(root, replace(PLAIN, paste=PASTE)))
    for a, b in zip(mirrored, straight, strict=True):
        assert a.objects is not None and b.objects is not None and a.points is not None and b.points is not None
        held = [s.objects.boxes.to(torch.float32).contains(s.points[:, :3]).sum(1) for s in (a, b)]
        assert torch.equal(*held)
        torch.testing.assert_close(a.image.flip(-1), b.image)


@pytest.mark.parametrize("fields", [{"points": False, "depth": "none"}, {"depth": "completed"}], ids=str)
def test_what_is_read_does_not_change_what_is_pasted(
    root: Path, pairs: list[tuple[Sample, Sample]], fields: dict[str, object]
) -> None:
    """A detector of pictures alone sees the same pictures and labels, and dense depth maps stay within the boxes."""
    plain = frames(root, None, **fields)
    for i, sample in enumerate(drawn(frames(root, replace(PLAIN, paste=PASTE), **fields))):
        after = pairs[i][1]
        assert sample.objects is not None and after.objects is not None
        assert torch.equal(sample.image, after.image)
        assert torch.equal(sample.objects.boxes.centre.nan_to_num(), after.objects.boxes.centre.nan_to_num())
        known = plain.get(i).depth
        assert (sample.depth is None) == (known is None) == (fields["depth"] == "none")
        if sample.depth is not None and known is not None:
            depths, reach = sample.depth[sample.depth != known], pasted(pairs[i]).boxes.corners()[..., 2]
            fits = (depths[:, None] > reach.amin(1) - 0.1) & (depths[:, None] < reach.amax(1) + 0.1)
            assert bool(fits.any(1).all())


def test_without_it_nothing_changes(root: Path) -> None:
    """Also where objects are pasted with probability 0, and in frames without labels; pasting can be repeated."""
    plain = drawn(frames(root, PLAIN))
    never = drawn(frames(root, replace(PLAIN, paste=replace(PASTE, probability=0.0))))
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, never, strict=True))
    again = [drawn(frames(root, replace(PLAIN, paste=PASTE))) for _ in range(2)]
    assert all(torch.equal(a.image, b.image) for a, b in zip(*again, strict=True))
    unlabelled = drawn(frames(root, replace(PLAIN, paste=PASTE), labels=False))
    assert all(torch.equal(a.image, b.image) for a, b in zip(plain, unlabelled, strict=True))


def test_frames_without_a_scan_stay_as_they_are(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    shutil.rmtree(copy / "training" / "velodyne")
    bare = {"points": False, "depth": "none"}
    pictures = [drawn(frames(copy, a, **bare)) for a in (PLAIN, replace(PLAIN, paste=PASTE))]
    assert all(torch.equal(a.image, b.image) for a, b in zip(*pictures, strict=True))


def test_unknown_classes_are_refused(root: Path) -> None:
    """Before any frame is read; of frames whose labels are not looked at nothing is asked."""
    buses = replace(PLAIN, paste=replace(PASTE, counts=(("Bus", 1),)))
    with pytest.raises(UserError, match="augment.paste.counts names class 'Bus', expected one of Pedestrian, Car, "):
        frames(root, buses)
    assert frames(root, buses, labels=False).pasted is None
    with pytest.raises(UserError, match="no frame has labels"):
        Donors.of([None, None])


def test_what_takes_the_place_of_augment_is_refused_beside_it(root: Path) -> None:
    with pytest.raises(UserError, match="augment.paste and lidar_augment are both set"):
        frames(root, replace(PLAIN, paste=PASTE), lidar_augment=LidarAugmentConfig())
    assert frames(root, PLAIN, lidar_augment=LidarAugmentConfig()).pasted is None


def test_a_teachers_answers_to_such_frames_are_not_kept() -> None:
    quiet = AugmentConfig(crop=0.0, photometric=False)
    assert is_repeatable(quiet, "points") and not is_repeatable(replace(quiet, paste=PASTE), "points")


def lines(boxes: Boxes3D) -> Objects:
    zero = torch.zeros(len(boxes), dtype=torch.int64)
    return Objects(boxes, zero.double(), zero, torch.full_like(zero, EASY))


def box(x: float, z: float, y: float = 1.0) -> Boxes3D:
    return Boxes3D(
        torch.tensor([[x, y, z]], dtype=torch.float64), torch.tensor([[4.0, 1.6, 1.5]], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64), torch.tensor([KITTI_CLASSES.index("Car")]), "camera",
        box2d=torch.zeros(1, 4, dtype=torch.float64), alpha=torch.zeros(1, dtype=torch.float64),
    )  # fmt: skip


CAMERA = Camera.from_intrinsics(200, 200, SIZE[0] / 2, SIZE[1] / 2)


def test_nearer_objects_hide_farther_ones() -> None:
    """Of a pasted car between two of the frame's own: it hides the far one and is hidden by the near one."""
    near, middle, far = (outlines(box(x, z), CAMERA, SIZE)[0] for x, z in ((0.0, 10.0), (1.5, 15.0), (0.5, 25.0)))
    nothing = torch.zeros(3, SIZE[1], SIZE[0]), torch.zeros(0, 4)
    patch = Patch(lines(box(1.5, 15.0)), middle, *nothing)
    own = torch.stack((near, far))
    shown = owners([patch], own, torch.tensor([10.0, 25.0]))
    assert torch.equal(shown == 0, middle & ~near)
    assert bool((middle & near).any()) and bool((middle & far & ~near).any())
    share = hidden(shown, own)
    assert float(share[0]) == 0 and float(share[1]) == pytest.approx(float((far & middle & ~near).sum() / far.sum()))


def test_outlines_are_of_the_box() -> None:
    """A box seen straight on covers its front, to the pixel; one beside the picture covers nothing."""
    along = replace(box(0.0, 10.0), yaw=torch.full((1,), math.pi / 2, dtype=torch.float64))
    found = outlines(along, CAMERA, SIZE)
    rows, columns = found[0].any(1).nonzero()[:, 0], found[0].any(0).nonzero()[:, 0]
    front = 10.0 - 2.0
    assert int(columns[-1] - columns[0] + 1) == pytest.approx(200 * 1.6 / front, abs=1)
    assert int(rows[-1] + 1) == pytest.approx(SIZE[1] / 2 + 200 * 1.75 / front, abs=1)
    assert not bool(outlines(box(50.0, 10.0), CAMERA, SIZE).any())


def test_regions_follow_the_points() -> None:
    """Points in one half of a box show that half; a few points show nothing, so the outline has to do."""
    boxes = box(0.0, 15.0)
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(3000, 4, generator=generator) - 0.5) * torch.tensor([2.0, 1.4, 1.6, 0.0])
    points = points + torch.tensor([-1.0, 1.0, 15.0, 0.0])
    outline = outlines(boxes, CAMERA, SIZE)[0]
    half = regions(boxes, points, CAMERA, SIZE)[0]
    assert not bool((half & ~outline).any())
    assert 0.4 < float(half.sum() / outline.sum()) < 0.75
    assert torch.equal(regions(boxes, points[:3], CAMERA, SIZE)[0], outline)
    assert len(regions(boxes[:0], points, CAMERA, SIZE)) == 0


@pytest.mark.parametrize(
    ("name", "expected"), [("road", True), ("no ground", False), ("step", False), ("hole", False), ("occupied", False)]
)
def test_what_a_place_must_be(name: str, expected: bool) -> None:
    boxes, bottom = box(0.0, 15.0), 1.0 + 0.75
    heights = {"road": 0.0, "step": 0.5, "hole": -0.5, "occupied": 0.0}
    x, z = torch.meshgrid(torch.linspace(-4, 4, 17), torch.linspace(10, 20, 21), indexing="ij")
    y = torch.full_like(x, bottom - heights.get(name, 0.0))
    points = torch.stack((x, y, z, torch.zeros_like(x)), dim=-1).flatten(0, 1)
    if name == "no ground":
        points = points[points[:, 2] > 18]
    if name == "occupied":
        points = torch.cat((points, torch.tensor([[0.2, bottom - 0.8, 15.0, 0.0]])))
    assert stands(boxes, points, 0.3).tolist() == [expected]


def test_donors_are_whole_and_large_enough() -> None:
    four = Boxes3D(*(torch.cat([getattr(box(0.0, z), f) for z in (10.0, 12.0, 14.0, 16.0)]) for f in
                     ("centre", "size", "yaw", "label")), "camera", box2d=torch.zeros(4, 4).double(),
                   alpha=torch.zeros(4).double())  # fmt: skip
    objects = replace(
        lines(four), truncation=torch.tensor([0.0, 0.2, 0.0, 0.0]).double(), occlusion=torch.tensor([0, 0, 1, 0]),
        difficulty=torch.tensor([EASY, EASY, EASY, HARD]),
    )  # fmt: skip
    found = Donors.of([None, objects, replace(objects, difficulty=torch.full((4,), UNKNOWN)), objects])
    assert found.frame.tolist() == [1, 3]
    assert found.objects.boxes.centre[:, 2].tolist() == [10.0, 10.0]


def test_a_preset_with_pasted_objects_trains(streets: Path, tmp_path: Path) -> None:
    """CMKD's student beside labels, and one that looks at none, from a teacher that sees the pasted points."""
    recipe = small_bev_preset(streets, "tiny_odm3d")
    options = RunOptions(out=tmp_path, progress=False, tensorboard=False, threads=1, accelerator="cpu")
    folder = run_recipe(recipe, options, ("teacher", "baseline", "odm3d_labelled", "bev", "odm3d"))
    shapes = [{k: v.shape for k, v in load_weights(folder / name)[0].items()} for name in ("baseline", "odm3d")]
    assert shapes[0] == shapes[1]
    labelled, control = recipe.stage("odm3d_labelled"), recipe.stage("continued_pasted")
    assert labelled.augment == control.augment and labelled.augment is not None
    assert labelled.augment.paste is not None and recipe.stage("continued").augment == replace(
        labelled.augment, paste=None
    )
