"""VCD's masks, losses and occupancy against recorded tensors of the released code (set ``vcd``)."""

from pathlib import Path

import pytest
import torch
from golden import constants, golden_file
from test_labeldistill_golden import load
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill3d.boxes import IGNORE
from distill3d.data.surround import SurroundObjectBatch
from distill3d.distill.methods.vcd import (
    VCDConfig,
    map_distance,
    motion_loss,
    motion_mask,
    occupancy_loss,
    spread_over,
)
from distill3d.distill.occupancy import object_volume, occupancy
from distill3d.layers.ground.voxel_pooling import frustum_points
from distill3d.layers.heads.centre_head import CentreHeadConfig, centre_targets
from distill3d.layers.points.voxels import VoxelGrid

pytestmark = pytest.mark.golden
MASKS = {"rtol": 0.0, "atol": 1e-5}
LOSSES = {"rtol": 2e-5, "atol": 0.0}
GRADIENTS = {"rtol": 0.0, "atol": 1e-6}
VOXELS = {"rtol": 0.0, "atol": 1e-6}
VOXEL_GRADIENTS = {"rtol": 1e-4, "atol": 1e-9}
#: What the released code adds to the volume of objects, and the voxels of its occupancy.
RELEASED_VOXELS = VoxelGrid((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), (0.4, 0.4, 1.0))
DISTANCES = {
    "L2Loss": "l2",
    "L1Loss": "l1",
    "NormL2Loss": "relative_l2",
    "ChannelWiseDivergence": "channel_wise",
    "KLLoss": "kl",
}


def objects_of(boxes: list[Tensor], labels: list[Tensor]) -> SurroundObjectBatch:
    """Rows x, y, z of the bottom, length, width, height, yaw, velocity."""
    rows = pad_sequence([b.reshape(-1, 9) for b in boxes], batch_first=True)
    label = pad_sequence(labels, batch_first=True, padding_value=IGNORE)
    centre = torch.cat((rows[..., :2], rows[..., 2:3] + rows[..., 5:6] / 2), dim=-1)
    return SurroundObjectBatch(
        centre, rows[..., 3:6], rows[..., 6], rows[..., 7:], label, torch.zeros_like(label), label != IGNORE
    )


def frames_of(g: dict[str, Tensor], frames: int) -> list[SurroundObjectBatch]:
    """The current boxes, then those of each adjacent frame, cut out of the list by the cumulative counts."""
    boxes: list[list[Tensor]] = [[] for _ in range(frames)]
    labels: list[list[Tensor]] = [[] for _ in range(frames)]
    for i, counts in enumerate(g["in.adj_index"].tolist()):
        parts = g[f"in.adjacent_boxes{i}"].split(counts), g[f"in.adjacent_labels{i}"].split(counts)
        for frame in range(frames):
            current = frame == 0
            boxes[frame].append(g[f"in.boxes{i}"] if current else parts[0][frame])
            labels[frame].append(g[f"in.labels{i}"] if current else parts[1][frame])
    return [objects_of(b, k) for b, k in zip(boxes, labels, strict=True)]


@golden_file("vcd/motion_bev_released", "vcd/motion_bev_shifted", "vcd/motion_bev_single")
def test_motion_bev(path: Path) -> None:
    g, stated = load(path), constants(path)
    low, cell = stated["lower"], stated["cell"]
    high = low + stated["size"] * cell
    head = CentreHeadConfig(
        tasks=tuple(tuple(task) for task in stated["tasks"]), extent=(low, low, high, high), cell=cell,
        nms_thresholds=(1.0,) * len(stated["tasks"]),
    )  # fmt: skip
    recorded = [g[f"out.heatmap{frame}"] for frame in range(stated["frames"])]
    for frame, objects in enumerate(frames_of(g, stated["frames"])):
        if frame == 0 or not stated["shifted"]:  # the released code can move the others into the key frame
            found = centre_targets(head, objects, head.classes).heatmap
            torch.testing.assert_close(found, recorded[frame], **MASKS)
    mask = motion_mask(recorded)
    torch.testing.assert_close(mask, g["out.mask"], **MASKS)
    config = VCDConfig.styled("released", bev_weight=stated["weight"])
    student = g["in.student"].clone().requires_grad_()
    loss = config.bev_weight * motion_loss(student, g["in.teacher"], mask, config)
    torch.testing.assert_close(loss, g["out.loss_l2_bev"], **LOSSES)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], g["grad.student"], **GRADIENTS)
    # the default differs by nothing where there is an object
    ours = motion_loss(g["in.student"], g["in.teacher"], mask, VCDConfig())
    torch.testing.assert_close(config.bev_weight * ours, g["out.loss_l2_bev"], **LOSSES)


@golden_file("vcd/loss_classes")
def test_distances(path: Path) -> None:
    g, stated = load(path), constants(path)
    for name, form in DISTANCES.items():
        student = g["in.student"].clone().requires_grad_()
        loss = stated["weight"] * map_distance(student, g["in.teacher"], form, stated["tau"])  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(loss, g[f"out.{name}"], **LOSSES)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, g[f"grad.{name}"], rtol=2e-5, atol=1e-6)
    assert {name.removeprefix("out.") for name in g if name.startswith("out.")} == set(DISTANCES)


def agree(found: Tensor, index: Tensor, value: Tensor, tolerance: dict[str, float]) -> None:
    """Of a volume whose cells that are not 0 are recorded."""
    dense = torch.zeros_like(found)
    dense[tuple(index.long().T)] = value
    torch.testing.assert_close(found, dense, **tolerance)


@golden_file("vcd/occupancy_released", "vcd/occupancy_grid256")
def test_occupancy(path: Path) -> None:
    g, stated = load(path), constants(path)
    near, far, step = stated["depth"]
    count, height, width = g["in.depth_student"].shape[1:]
    depth = torch.arange(near, far, step)
    assert len(depth) == count
    at = depth[:, None, None, None].repeat(1, height, width, 4)
    at[..., 3] = 1
    at = spread_over(at, tuple(stated["frustum_extent"]))

    def homogeneous(rotation: Tensor, translation: Tensor | None = None) -> Tensor:
        out = torch.eye(4, dtype=torch.float64).repeat(*rotation.shape[:-2], 1, 1)
        out[..., :3, :3] = rotation
        if translation is not None:
            out[..., :3, 3] = translation
        return out

    points = frustum_points(
        at, homogeneous(g["in.post_rots"], g["in.post_trans"]), homogeneous(g["in.intrinsics"]),
        homogeneous(g["in.rots"], g["in.trans"]), homogeneous(g["in.bda"]),
    )  # fmt: skip
    depths = {name: g[f"in.depth_{name}"].clone().requires_grad_() for name in ("student", "teacher")}
    seen = {
        name: occupancy(d[None], points, RELEASED_VOXELS, "released") for name, d in depths.items()
    }  # fmt: skip
    for name, found in seen.items():
        summed = torch.logit(found.detach().double() + 0.5).float()
        index, value = g[f"out.occupancy_{name}_index"], g[f"out.occupancy_{name}_value"]
        agree(summed[0], index, value, VOXELS)
    objects = objects_of([g["in.boxes"]], [g["in.labels"]])
    volume = object_volume(objects, RELEASED_VOXELS, "released", (stated["centre_grid"],) * 2)
    agree(volume[0], g["out.heat_index"], g["out.heat_value"], VOXELS)
    assert int((volume == 1).sum()) == stated["objects_used"]
    loss = stated["weight"] * occupancy_loss(seen["student"], seen["teacher"].detach(), volume)
    torch.testing.assert_close(loss, g["out.loss_l2_occ"], **LOSSES)
    (gradient,) = torch.autograd.grad(loss, depths["student"])
    torch.testing.assert_close(gradient, g["grad.depth_student"], **VOXEL_GRADIENTS)
