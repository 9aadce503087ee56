"""Imported CMKD and MonoTAKD, and their LiDAR teachers, answer as the authors' code does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from made_checkpoints import imported, input_of, recorded, weights_of, write_checkpoint
from round_trip import check_round_trip
from test_dla_golden import close
from torch import Tensor, nn

from distill3d.boxes import KITTI_CLASSES, lidar_rows, wrap_angle
from distill3d.camera import Camera, DepthBins, ImageAffine
from distill3d.data.sample import Batch
from distill3d.detectors.base import Detector
from distill3d.detectors.caddn import CaDDN, CaDDNConfig
from distill3d.detectors.pointpillars import PointPillars, PointPillarsConfig
from distill3d.detectors.released import TO_SPCONV_1, part_of_file, plain_names
from distill3d.detectors.second import SECOND, SECONDConfig
from distill3d.layers.ground.bev_blocks import FeatureFusion
from distill3d.layers.heads.anchor_head import AnchorHead, AnchorHeadConfig
from distill3d.layers.heads.anchors import YAW, anchor_grid, decode_directed
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.published.importing import fitted, import_checkpoint
from distill3d.published.systems import SYSTEMS
from distill3d.train.checkpoint import load_detector

pytestmark = pytest.mark.golden

#: Relative to the largest value, as the index states: of maps and of boxes; and of networks that read the image, whose
#: sampling grid is float32 here.
TOLERANCE, OF_BOXES = 1e-8, 1e-7
LIFTED, OF_LIFTED_BOXES = 5e-6, 1e-5
#: From a LiDAR's frame (x forward, y left, z up) to a camera's in the same place.
TURN = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
CAMERA = torch.tensor([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]], dtype=torch.float64)
#: Whose weights each recording is.
PARTS = {
    "cmkd": ("cmkd", "student"), "monotakd": ("monotakd", "student"), "second_c64": ("cmkd", "teacher"),
    "pointpillars_cmkd": ("cmkd", "pointpillars_teacher"),
}  # fmt: skip
RECORDED = [f"released/{name}/whole_forward" for name in PARTS]


# ----------------------------------------------------------------------------------------------------------- the parts


def head_as_recorded(path: Path, system: str, part: str) -> AnchorHeadConfig:
    about = constants(path)
    detector = SYSTEMS[system].parts[part].taken_from()[1].detector
    assert isinstance(detector, CaDDNConfig | SECONDConfig | PointPillarsConfig)
    return replace(
        detector.head, score_threshold=float(recorded(path)["in.score_threshold"]),
        nms_threshold=about["nms_threshold"], candidates=about["nms_pre"], max_detections=about["nms_post"],
    )  # fmt: skip


def ground(path: Path, cell: str) -> VoxelGrid:
    about = constants(path)
    x0, y0, z0, x1, y1, z1 = map(float, about["point_cloud_range"])
    x, y, z = map(float, about[cell])
    return VoxelGrid((x0, y0, z0, x1, y1, z1), (x, y, z))


def with_exact_anchors(head: AnchorHead) -> AnchorHead:
    """The head with anchors in double precision, as it was recorded; made in single precision they lie 1e-6 m off."""
    x0, y0, _, x1, y1, _ = head.extent
    torch.set_default_dtype(torch.float64)
    try:
        grid = anchor_grid(head.config.classes, (x0, y0, x1, y1), (head.anchors.shape[0], head.anchors.shape[1]))
    finally:
        torch.set_default_dtype(torch.float32)
    head._anchors = grid.flatten(0, 3)
    return head


def batch_of(image: Tensor, projection: Tensor, pose: Tensor, **more: Any) -> Batch:
    """Pictures that fill the canvas."""
    n, size = len(image), torch.tensor(image.shape[:1:-1], dtype=torch.float64)
    identity = torch.eye(2, 3, dtype=torch.float64).expand(n, 2, 3)
    affine = ImageAffine(identity, torch.zeros(n, dtype=torch.bool), torch.ones(n).double(), *[size.expand(n, 2)] * 2)
    return Batch([str(i) for i in range(n)], image, Camera(projection), affine, lidar_to_camera=pose, **more)


def batch_of_points(g: dict[str, Any], count: int) -> Batch:
    turned = torch.cat((g["in.points"][:, 1:4] @ TURN[:3, :3].T, g["in.points"][:, 4:]), dim=1)
    scans = [turned[g["in.points"][:, 0] == i] for i in range(count)]
    blank = torch.zeros(count, 3, 8, 8, dtype=torch.float64)
    return batch_of(blank, CAMERA.expand(count, 3, 4), TURN.expand(count, 4, 4), points=scans)


def results_of(module: nn.Module) -> list[Any]:
    """What the module gives in the passes that follow."""
    found: list[Any] = []
    module.register_forward_hook(lambda _, __, result: found.append(result))
    return found


def some_channels(maps: Tensor, expected: Tensor) -> Tensor:
    """Every so many channels, as many as were recorded."""
    return maps[:, :: -(-maps.shape[1] // expected.shape[1])]


def check_head(
    head: AnchorHead, predictions: dict[str, Tensor], g: dict[str, Any], maps: float, of_boxes: float
) -> None:
    """Raw maps, and the box of every anchor."""
    for name, expected in (("cls", "cls_preds"), ("box", "box_preds"), ("dir", "dir_cls_preds")):
        close(predictions[name], g[f"out.{expected}"], maps)
    scores, codes, directions = head.rows(predictions)
    boxes = decode_directed(codes, directions, head.anchors.flatten(0, 3).expand(len(codes), -1, -1))
    close_boxes(boxes, g["out.batch_box_preds"], of_boxes)
    if "out.batch_cls_preds_max" in g:
        close(scores.sigmoid().amax(-1), g["out.batch_cls_preds_max"], maps)


def close_boxes(boxes: Tensor, expected: Tensor, tolerance: float) -> None:
    """Boxes of the LiDAR's frame; whole turns apart are alike."""
    turned = wrap_angle(boxes[..., YAW] - expected[..., YAW])
    torch.testing.assert_close(turned, torch.zeros_like(turned), rtol=0, atol=tolerance * torch.pi)
    close(boxes[..., :YAW], expected[..., :YAW], tolerance)


def check_detections(detector: Detector, outputs: Any, batch: Batch, path: Path, tolerance: float) -> None:
    """What is left after the suppression."""
    rows, classes = recorded(path)["out.rows"], constants(path)["classes"]
    assert batch.lidar_to_camera is not None
    for i, found in enumerate(detector.decode(outputs, batch)):
        expected = rows[rows[:, 0] == i]
        back = torch.linalg.inv(batch.lidar_to_camera[i])
        assert found.score is not None
        assert found.label.tolist() == [KITTI_CLASSES.index(classes[int(c)]) for c in expected[:, 1]]
        close(found.score, expected[:, 2], tolerance)
        close_boxes(lidar_rows(found.centre, found.size, found.yaw, back), expected[:, 3:10], tolerance)


# ----------------------------------------------------------------------------------------------------- whole networks


@golden_file("released/second_c64/whole_forward", "released/pointpillars_cmkd/whole_forward")
def test_teachers(path: Path, tmp_path: Path) -> None:
    check_teacher(path, *PARTS[path.parent.name], tmp_path)


@torch.no_grad()
def check_teacher(path: Path, system: str, part: str, tmp_path: Path, named: bool = True) -> None:
    """A network that sees points; ``named``: the import is told which it is."""
    g, about = recorded(path), constants(path)
    config = SYSTEMS[system].parts[part].taken_from()[1].detector
    grid = "pillars" if isinstance(config, PointPillarsConfig) else "voxels"
    changes = {grid: ground(path, "voxel_size"), "max_points": about["max_points_per_voxel"]}
    detector = imported(path, system, part, tmp_path, named, head=head_as_recorded(path, system, part), **changes)
    assert isinstance(detector, SECOND | PointPillars)
    batch, seen = batch_of_points(g, about["B"]), results_of(detector.head.backbone)
    outputs = detector(batch)

    bev = outputs.features["bev"].tensor
    close(bev.mean((2, 3)), g["out.spatial_features_channel_mean"], TOLERANCE)
    expected = g["out.spatial_features_first_cells"]
    close(some_channels(bev, expected), expected, TOLERANCE)
    close(seen[0].mean((2, 3)), g["out.spatial_features_2d_channel_mean"], TOLERANCE)
    close(seen[0].abs().mean((2, 3)), g["out.spatial_features_2d_channel_absmean"], TOLERANCE)
    check_head(with_exact_anchors(detector.head), outputs.predictions, g, TOLERANCE, OF_BOXES)
    check_detections(detector, outputs, batch, path, OF_BOXES)


@golden_file("released/cmkd/whole_forward", "released/monotakd/whole_forward")
def test_students(path: Path, tmp_path: Path) -> None:
    check_student(path, *PARTS[path.parent.name], tmp_path)


@torch.no_grad()
def check_student(path: Path, system: str, part: str, tmp_path: Path, named: bool = True) -> None:
    """A network that sees the image; ``named``: the import is told which it is."""
    g, about = recorded(path), constants(path)
    b = about["depth_bins"]
    detector = imported(
        path, system, part, tmp_path, named, head=head_as_recorded(path, system, part),
        voxels=ground(path, "voxel_size_img"),
        bins=DepthBins(float(b["depth_min"]), float(b["depth_max"]), b["num_bins"], b["mode"]),
    )  # fmt: skip
    assert isinstance(detector, CaDDN)
    image = input_of(path, (about["B"], 3, about["H"], about["W"]), scale=1.0) + 0.5
    close(image.flatten()[:8], g["in.images_first8"], 1e-12)
    depth = g["in.depth_maps"][:, None] if "in.depth_maps" in g else None
    batch = batch_of(image, g["in.trans_cam_to_img"], g["in.trans_lidar_to_cam"], depth=depth)
    found = [results_of(m) for m in (detector.trunk, detector.head.backbone)]
    volumes: list[Tensor] = []
    detector.collapse.register_forward_pre_hook(lambda _, given: volumes.append(given[0]))
    detector.training = True  # of the whole alone, not of its parts: it then gives the assistant's map
    outputs = detector(batch)
    ((lifted, logits),), (seen,) = found

    close(lifted.mean((2, 3)), g["out.image_features_channel_mean"], TOLERANCE)
    close(logits.mean((2, 3)), g["out.depth_logits_channel_mean"], TOLERANCE)
    close(some_channels(logits, g["out.depth_logits"]), g["out.depth_logits"], TOLERANCE)
    close(volumes[0].mean((3, 4)), g["out.voxel_features_channel_mean"], LIFTED)
    maps = {name: outputs.features[name].tensor for name in outputs.features}
    close(maps["bev"].mean((2, 3)), g["out.spatial_features_channel_mean"], LIFTED)
    names = {"bev": "", "bev_visual": "_visual", "bev_spatial": "_copy", "bev_assistant": "_target"}
    for tap, values in maps.items():
        expected = g[f"out.spatial_features{names[tap]}"]
        close(some_channels(values, expected), expected, LIFTED)
    if "out.fusion_nn_of_visual_plus_copy" in g:
        expected = g["out.fusion_nn_of_visual_plus_copy"]
        fused = released_fusion(path)(maps["bev_visual"] + maps["bev_spatial"])
        close(some_channels(fused, expected), expected, LIFTED)
    assert len(maps) == sum(f"out.spatial_features{name}" in g for name in names.values())
    close(seen.mean((2, 3)), g["out.spatial_features_2d_channel_mean"], LIFTED)
    check_head(with_exact_anchors(detector.head), outputs.predictions, g, LIFTED, OF_LIFTED_BOXES)
    check_detections(detector, outputs, batch, path, OF_LIFTED_BOXES)


def released_fusion(path: Path) -> FeatureFusion:
    """The recorded fusion, which the released forward pass leaves out: for those who switch it on."""
    part = SYSTEMS["monotakd"].parts["student"]
    fused = replace(
        part, settings=lambda config, weights: replace(part.settings(config, weights), fusion="released_as_commented")
    )
    taken = fitted(plain_names(weights_of(path)), fused, torch.float64)[2]
    fusion = FeatureFusion(taken.config.bev_channels, norm=taken.config.fusion_norm).double()
    fusion.load_state_dict(part_of_file(taken.weights, "fusion."))
    return fusion.eval()


# ------------------------------------------------------------------------------------------------------------- names


@golden_file(*RECORDED)
def test_round_trip(path: Path) -> None:
    check_round_trip(path, *PARTS[path.parent.name])


@golden_file("released/cmkd/whole_forward", "released/monotakd/whole_forward")
def test_an_assistant_is_a_student_of_cmkd_with_or_without_what_monotakd_adds(path: Path) -> None:
    taken = fitted(plain_names(weights_of(path)), SYSTEMS["monotakd"].parts["assistant"])[2]
    assert taken.config.input == "rgb" and taken.config.spatial_alignment == (path.parent.name == "monotakd")


@golden_file("released/second_c64/whole_forward")
def test_sparse_kernels_of_spconv_1(path: Path, tmp_path: Path) -> None:
    weights = weights_of(path)

    def taken_from(changed: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        file = write_checkpoint(path, {name: changed(value) for name, value in weights.items()}, folder)
        return load_detector(import_checkpoint(file, "cmkd", "teacher", folder / "runs").folder)[0].state_dict()

    new = taken_from(lambda value: value)
    old = taken_from(lambda value: value.permute(TO_SPCONV_1) if value.dim() == 5 else value)
    assert sum(value.dim() == 5 for value in new.values()) > 10
    assert old.keys() == new.keys() and all(torch.equal(old[name], value) for name, value in new.items())
