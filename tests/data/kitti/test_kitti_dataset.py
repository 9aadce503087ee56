"""KITTI frames as samples."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill3d.boxes import KITTI_CLASSES
from distill3d.data.augment.image import AugmentConfig, frame_generator
from distill3d.data.collate import collate
from distill3d.data.depth import write_depth
from distill3d.data.kitti.calibration import read_calibration
from distill3d.data.kitti.check import check_kitti
from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
from distill3d.data.kitti.labels import read_labels
from distill3d.data.kitti.scans import read_points
from distill3d.data.pictures import read_image
from distill3d.data.sample import Sample
from distill3d.detectors.monodle import MonoDLE, tiny
from distill3d.errors import UserError


def config(root: Path, **changes) -> KittiConfig:
    return replace(KittiConfig(root, "train", canvas=(64, 20)), **changes)


def equal(a: Sample, b: Sample) -> bool:
    pairs = [(a.image, b.image), (a.camera.projection, b.camera.projection), (a.depth, b.depth), (a.points, b.points)]
    assert a.objects is not None and b.objects is not None
    pairs.append((a.objects.boxes.centre.nan_to_num(), b.objects.boxes.centre.nan_to_num()))
    return all((p is None and q is None) or (p is not None and q is not None and torch.equal(p, q)) for p, q in pairs)


def test_plain_sample_is_the_files(kitti_root: Path) -> None:
    dataset = KittiDataset(config(kitti_root, points=True, depth="lidar"))
    assert len(dataset) == 2 and dataset.frame_ids == ["000000", "000001"] and dataset.classes == KITTI_CLASSES
    sample = dataset.get(1)
    training = kitti_root / "training"
    assert sample.frame_id == "000001"
    assert torch.equal(sample.image, read_image(training / "image_2/000001.png") / 255)
    calibration = read_calibration(training / "calib/000001.txt")
    assert torch.equal(sample.camera.projection[:2], calibration.p2[:2]) and sample.camera.projection[2, 3] == 0
    labels = read_labels(training / "label_2/000001.txt")
    assert sample.objects is not None and sample.objects.boxes.centre.dtype == torch.float32
    assert torch.equal(sample.objects.boxes.label, labels.boxes.label)
    assert torch.equal(sample.objects.boxes.centre[:2], labels.boxes.centre[:2].float())
    scan = read_points(training / "velodyne/000001.bin")
    assert sample.points is not None and torch.equal(sample.points[:, 3], scan[:, 3])
    assert torch.allclose(sample.points[:, 2], scan[:, 0] - 0.27) and torch.allclose(
        sample.points[:, 0], 0.01 - scan[:, 1]
    )
    assert sample.depth is not None and sample.depth.shape == (1, 20, 64) and (sample.depth > 0).sum() > 50


def test_homogeneous_keeps_the_projection(kitti_root: Path) -> None:
    sample = KittiDataset(config(kitti_root, divide="homogeneous")).get(0)
    assert torch.equal(sample.camera.projection, read_calibration(kitti_root / "training/calib/000000.txt").p2)


@pytest.mark.parametrize("depth", ["none", "lidar", "completed", "png"])
@pytest.mark.parametrize("points", [False, True])
def test_memory_changes_nothing(kitti_root: Path, depth, points: bool) -> None:
    (kitti_root / "training/depth_2").mkdir()
    for i in range(2):
        write_depth(kitti_root / f"training/depth_2/00000{i}.png", torch.rand(20, 64) * 50)
    settings = config(kitti_root, depth=depth, points=points, augment=AugmentConfig())
    disk, memory = KittiDataset(settings), KittiDataset(replace(settings, in_memory=True))
    for _ in range(2):
        for generator in (None, 5):
            a, b = (d.get(1, None if generator is None else frame_generator(0, 0, generator)) for d in (disk, memory))
            assert equal(a, b)
            assert (a.depth is None) == (depth == "none") and (a.points is None) == (not points)


def test_completed_depth_follows_its_sources(kitti_root: Path) -> None:
    """The cache answers only for the very scan, calibration and settings."""
    settings = config(kitti_root, depth="completed")
    cache = kitti_root / ".distill3d_cache"
    first = KittiDataset(settings).get(0).depth
    assert first is not None and len(list(cache.iterdir())) == 1
    again = KittiDataset(settings).get(0).depth
    assert again is not None and torch.equal(first, again) and len(list(cache.iterdir())) == 1
    scan = kitti_root / "training/velodyne/000000.bin"
    other = kitti_root / "training/velodyne/000002.bin"
    scan.write_bytes(other.read_bytes()[::-1][: 16 * 50][::-1])
    changed = KittiDataset(settings).get(0).depth
    assert changed is not None and not torch.equal(first, changed) and len(list(cache.iterdir())) == 2
    KittiDataset(replace(settings, completion=replace(settings.completion, near=10.0))).get(0)
    assert len(list(cache.iterdir())) == 3
    KittiDataset(replace(settings, cache=kitti_root / "mine")).get(0)
    assert len(list((kitti_root / "mine").iterdir())) == 1


def test_frames_without_labels(kitti_root: Path) -> None:
    (kitti_root / "training").rename(kitti_root / "testing")
    dataset = KittiDataset(config(kitti_root, folder="testing"))
    assert dataset.get(0).objects is not None
    (kitti_root / "testing/label_2").rename(kitti_root / "elsewhere")
    assert KittiDataset(config(kitti_root, folder="testing")).get(0).objects is None


def test_a_car_that_drives_past(kitti_root: Path) -> None:
    """Its centre lies behind the camera, its front is in the picture: sound, and nothing for a camera to learn from."""
    path = kitti_root / "training/label_2/000000.txt"
    passing = "Car 0.40 0 -1.90 1.00 0.00 30.00 19.00 1.50 1.70 4.60 -3.00 1.70 -1.00 -1.57\n"
    path.write_text(passing + path.read_text())
    assert check_kitti(kitti_root) == []
    dataset = KittiDataset(config(kitti_root, canvas=(64, 32)))
    batch = collate([dataset.get(0)])
    assert batch.objects is not None and float(batch.objects.centre[0, 0, 2]) < 0
    detector = MonoDLE(tiny())
    targets = detector.encode(batch)
    assert not targets.mask_2d[0, 0]
    losses = detector.loss(detector(batch), batch, targets)
    assert all(value.isfinite() for value in losses.values())


def test_user_errors(kitti_root: Path) -> None:
    with pytest.raises(UserError, match=r"ImageSets/night\.txt: no such file"):
        KittiDataset(config(kitti_root, split="night"))
    with pytest.raises(UserError, match="testing: no such folder"):
        KittiDataset(config(kitti_root, folder="testing"))
    (kitti_root / "training/label_2/000000.txt").unlink()
    with pytest.raises(UserError, match=r"label_2/000000\.txt: no such file"):
        KittiDataset(config(kitti_root)).get(0)
    with pytest.raises(UserError, match=r"depth_2/000001\.png: "):
        KittiDataset(config(kitti_root, depth="png")).get(1)
    (kitti_root / "training/depth_2").mkdir()
    write_depth(kitti_root / "training/depth_2/000001.png", torch.ones(5, 5))
    with pytest.raises(UserError, match="is 5 x 5 px, its image 64 x 20"):
        KittiDataset(config(kitti_root, depth="png")).get(1)


def test_grey_images_are_read_as_rgb(kitti_root: Path) -> None:
    Image.new("L", (64, 20), 51).save(kitti_root / "training/image_2/000000.png")
    assert torch.allclose(KittiDataset(config(kitti_root)).get(0).image, torch.full((3, 20, 64), 0.2))


@pytest.mark.real
def test_real_frames(real_data: Path) -> None:
    """Points inside labelled boxes stay in the canvas's 2D boxes, whatever the augmentation."""
    margin = 2.0  # px
    settings = KittiConfig(
        real_data / "kitti_mini", "trainval", points=True, divide="homogeneous", augment=AugmentConfig()
    )  # fmt: skip
    dataset = KittiDataset(settings)
    inside = total = 0
    for index in range(len(dataset)):
        sample = dataset.get(index, frame_generator(0, 0, index))
        assert sample.image.shape == (3, 384, 1280) and sample.objects is not None and sample.points is not None
        boxes = sample.objects.boxes[sample.objects.boxes.label >= 0]
        uv, z = sample.camera.project(sample.points[:, :3].double(), "homogeneous")
        source = sample.affine.invert(uv)
        seen = (z > 0) & (source >= 0).all(1) & (source < sample.affine.source_size).all(1)
        box, point = boxes.contains(sample.points[seen, :3]).nonzero().unbind(1)
        assert boxes.box2d is not None
        edges, at = boxes.box2d[box], uv[seen][point]
        reach = margin * sample.affine.scale
        inside += int(((at >= edges[:, :2] - reach) & (at <= edges[:, 2:] + reach)).all(1).sum())
        total += len(box)
    assert total > 20_000 and inside / total >= 0.995


@pytest.mark.real
def test_real_completed_depth(real_data: Path, tmp_path: Path) -> None:
    """Completion keeps most measured depths and fills most of the ground."""
    root = real_data / "kitti_mini"
    sparse = KittiDataset(KittiConfig(root, "train", depth="lidar")).get(1).depth
    dense = KittiDataset(KittiConfig(root, "train", depth="completed", cache=tmp_path)).get(1).depth
    assert sparse is not None and dense is not None
    measured = (sparse > 0) & (dense > 0)
    error = (sparse - dense)[measured].abs()
    assert measured.sum() > 0.95 * (sparse > 0).sum() and error.median() < 0.1
    assert (dense[0, 192:] > 0).double().mean() > 0.95


@pytest.mark.real
def test_images_of_unequal_sizes_share_a_canvas_unscaled(real_data: Path) -> None:
    """Frames 000000 and 000010 are 1224 x 370 and 1242 x 375 px; a canvas that is too small is refused."""
    config = KittiConfig(root=real_data / "kitti_mini", split="train", canvas=(1248, 384), placement="corner")
    data = KittiDataset(config)
    batch = collate([data.get(0), data.get(1)])
    for i, (width, height) in enumerate(((1224, 370), (1242, 375))):
        file = read_image(data.folder / "image_2" / f"{data.frame_ids[i]}.png").float() / 255
        assert torch.equal(batch.image[i, :, :height, :width], file)
        assert not batch.image[i, :, height:].any() and not batch.image[i, :, :, width:].any()
    small = KittiDataset(replace(config, canvas=(1240, 384)))
    with pytest.raises(UserError, match="frame 000010 is 1242 x 375 px, too large for the canvas of 1240 x 384"):
        small.get(1)
