"""GUPNet against recorded tensors of the released code (set ``monoskd``)."""

from pathlib import Path

import pytest
import torch
from golden import golden_file
from test_monodle_golden import close, load
from torch import Tensor, nn

from distill3d.boxes import KITTI_CLASSES, Boxes3D
from distill3d.camera import Camera, ImageAffine
from distill3d.data.kitti.labels import format_results
from distill3d.data.sample import Batch
from distill3d.detectors import gupnet
from distill3d.detectors.base import Outputs
from distill3d.detectors.gupnet import GUPNetConfig, Trained
from distill3d.detectors.monodle import HEAT_CLASSES, STRIDE, MonoDLETargets
from distill3d.layers.image.roi import COORDINATE_CHANNELS, MapWindow, RoIs, RoISlots, look_at, pooled_head

pytestmark = pytest.mark.golden

TERM_NAMES = {"heatmap": "seg", "offset_2d": "offset2d", "size_2d": "size2d", "offset_3d": "offset3d",
              "depth": "depth", "size_3d": "size3d", "heading": "heading"}  # fmt: skip


def group(recorded: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}


def recorded_rois(g: dict[str, Tensor]) -> tuple[dict[str, Tensor], RoISlots, RoIs]:
    """Maps as leaves of the graph, slots and RoIs of a recorded RoI stage."""
    maps = {name: g[f"in.{name}"].clone().requires_grad_() for name in ("feat", "offset_2d", "size_2d")}
    size = maps["feat"].shape[-2:]
    first, last = g["in.coord_ranges"].unbind(1)
    window = MapWindow((last - first) / torch.tensor([size[1], size[0]]), first)
    slots = RoISlots.at_targets(g["in.indices"], g["in.cls_ids"], g["in.mask"])
    rois = look_at(*maps.values(), slots, window, Camera(g["in.calibs"]), len(HEAT_CLASSES))
    return maps, slots, rois


def load_head(head: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """The head in float64 with recorded weights; it ran on the statistics of the batch where no others are recorded."""
    state = head.double().state_dict()
    own = {name for name in state if "running" in name or name.endswith("num_batches_tracked")}
    assert state.keys() - own <= weights.keys() <= state.keys()
    head.load_state_dict(state | weights)
    return head.train(not any("running" in name for name in weights))


def recorded_heads(g: dict[str, Tensor], names: tuple[str, ...], make) -> dict[str, nn.Module]:
    """Heads of the recorded widths, with recorded weights; ``make(channels_in, channels, channels_out)``."""
    heads = {}
    for name in names:
        weights = group(g, f"param.{name}.")
        first, *_, last = (w for k, w in weights.items() if w.dim() == 4)
        assert first.shape[1] == g["in.feat"].shape[1] + COORDINATE_CHANNELS + len(HEAT_CLASSES)
        heads[name] = load_head(make(first.shape[1], len(first), len(last)), weights)
    return heads


def check_gradients(g: dict[str, Tensor], maps: dict[str, Tensor], heads: dict[str, nn.Module]) -> None:
    leaves = maps | {f"param.{n}.{k}": p for n, head in heads.items() for k, p in head.named_parameters()}
    rounding = 1e-14 * max(float(v.abs().max()) for k, v in g.items() if k.startswith("grad."))  # biases before norms
    for name, leaf in leaves.items():
        expected = g[f"grad.{name}"]
        close(leaf.grad, expected, 1e-8, rounding + 1e-8 * float(expected.abs().max()))


@golden_file("monoskd/laplace_half_s")
def test_laplace(path: Path) -> None:
    g = load(path)
    for reduce in ("mean", "sum"):
        inputs = {k: g[f"in.{k}"].clone().requires_grad_() for k in ("pred", "target", "s")}
        loss = getattr(gupnet.laplace_of_variance(*inputs.values()), reduce)()
        close(loss, g[f"out.{reduce}"], 1e-12)
        loss.backward()
        for k, tensor in inputs.items():
            close(tensor.grad, g[f"grad.{k}_{reduce}"], 1e-12, 1e-15)


@golden_file("monoskd/gupnet_roi_depth")
def test_roi_depth(path: Path) -> None:
    g = load(path)
    maps, _, rois = recorded_rois(g)
    heads = recorded_heads(g, tuple(gupnet.ROI_HEADS), pooled_head)
    said = gupnet.describe_rois(heads, rois, g["param.mean_size"])
    close((rois.source_box[:, 3] - rois.source_box[:, 1]).clamp(min=1), g["out.check_box_height_px"], 1e-9)
    ours = {
        "heading": said["heading"], "offset_3d": said["offset_3d"], "size_3d": said["size_3d"],
        "depth": torch.stack((said["depth"], said["depth_log_variance"]), -1),
        "h3d_log_variance": said["height_log_variance"][:, None],
    }  # fmt: skip
    for name, value in ours.items():
        close(value, g[f"out.{name}"], 1e-9, 1e-12)
    torch.stack([(value * g[f"in.cotangent.{name}"]).sum() for name, value in ours.items()]).sum().backward()
    check_gradients(g, maps, heads)


def recorded_targets(g: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fields of ``MonoDLETargets`` from a recorded loss."""
    t = group(g, "in.target.")
    mask = t["mask_2d"].bool()
    return {name: t[name] for name in ("heatmap", "indices", "offset_2d", "size_2d", "offset_3d", "size_3d")} | {
        "dimension": t["size_3d"], "depth": t["depth"][..., 0], "heading_bin": t["heading_bin"][..., 0],
        "heading_residual": t["heading_res"][..., 0], "mask_2d": mask, "mask_3d": mask, "present": mask,
        "eligible": mask, "box2d": torch.zeros(*mask.shape, 4), "label": torch.zeros_like(t["indices"]),
        "on_map": mask, "centre_cell": t["indices"], "distance": torch.zeros_like(t["depth"][..., 0]),
    }  # fmt: skip


def by_slot(leaves: dict[str, Tensor], targets: MonoDLETargets) -> dict[str, Tensor]:
    """Recorded values of RoIs (M, ...) by slot, maps as they are."""
    slots = RoISlots.at_targets(targets.indices, targets.label, targets.mask_2d)
    return {k: slots.spread(v) if k.startswith("roi_") else v for k, v in leaves.items()}


def check_losses(g: dict[str, Tensor], losses: dict[str, Tensor], leaves: dict[str, Tensor]) -> None:
    """Terms, total and gradients; ``leaves`` by recorded name."""
    for name, recorded in TERM_NAMES.items():
        close(losses[name], g[f"out.term.{recorded}_loss"], 1e-10)
    total = torch.stack(list(losses.values())).sum()
    close(total, g["out.loss"], 1e-10)
    total.backward()
    for name, leaf in leaves.items():
        expected = g[f"grad.pred.{name}"]
        close(leaf.grad, expected, 1e-10, 1e-10 * float(expected.abs().max()))


@golden_file("monoskd/gupnet_loss")
def test_loss(path: Path) -> None:
    g = load(path)
    leaves = {name: value.clone().requires_grad_() for name, value in group(g, "in.pred.").items()}
    targets = MonoDLETargets(**recorded_targets(g))
    predictions = {name: leaves[name] for name in gupnet.MAP_HEADS} | {
        "roi_depth": leaves["depth"][:, 0], "roi_depth_log_variance": leaves["depth"][:, 1],
        "roi_height_log_variance": leaves["h3d_log_variance"][:, 0], "roi_offset_3d": leaves["offset_3d"],
        "roi_size_3d": leaves["size_3d"], "roi_heading": leaves["heading"],
    }  # fmt: skip
    losses = gupnet.detection_losses(Trained.select(by_slot(predictions, targets), targets, "nan"))
    check_losses(g, losses, leaves)


def recorded_peaks(g: dict[str, Tensor], rois: dict[str, Tensor], count: int) -> Outputs:
    """Outputs whose RoI values, recorded in the order of the top-K, stand in their slots."""
    maps = {name: g[f"in.{name}"] for name in gupnet.MAP_HEADS}
    slots = RoISlots.at_peaks(maps["heatmap"], count)
    return Outputs({}, maps | {f"roi_{k}": slots.spread(v) for k, v in rois.items()}, slots)


def recorded_batch(g: dict[str, Tensor]) -> Batch:
    """Images whose per-axis ratios to the map are the recorded ones."""
    height, width = g["in.heatmap"].shape[-2:]
    source = g["in.bbox_downsample_ratio"] * torch.tensor([width, height])
    n = len(source)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(n, 2, 3)
    affine = ImageAffine(identity, torch.zeros(n, dtype=torch.bool), torch.ones(n).double(), source, source)
    blank = torch.zeros(n, 3, height * STRIDE, width * STRIDE, dtype=torch.float64)
    return Batch([str(i) for i in g["in.img_id"].tolist()], blank, Camera(g["in.P2"]), affine)


def check_boxes(g: dict[str, Tensor], batch: Batch, found: list[Boxes3D]) -> None:
    """Unrounded rows and result lines, by image."""
    order = [int(i) for image in g["in.img_id"] for i in (g["out.rows"][:, 0] == image).nonzero()]
    ours = []
    for image, boxes in zip(g["in.img_id"], found, strict=True):
        assert len(boxes) == int((g["out.rows"][:, 0] == image).sum())
        hwl, bottom = boxes.size.flip(-1), boxes.centre + boxes.size[:, 2:] * torch.tensor([0, 0.5, 0])
        ours.append(torch.cat((image.expand(len(boxes), 1), boxes.label[:, None], boxes.alpha[:, None], boxes.box2d,
                               hwl, bottom, -boxes.yaw[:, None], boxes.score[:, None]), -1))  # fmt: skip
    close(torch.cat(ours), g["out.rows"][order], 1e-9, 1e-9)
    lines = [
        f"{frame}|{line}"
        for frame, boxes in zip(batch.frame_ids, found, strict=True)
        for line in format_results(boxes, KITTI_CLASSES, decimals=2, score_decimals=2, unknown=("0.0", "0"))
    ]
    assert lines == [g["out.lines"][i] for i in order]


@golden_file("monoskd/gupnet_decode")
def test_decode(path: Path) -> None:
    g = load(path)
    count, (height, width) = g["out.dets"].shape[1], g["in.heatmap"].shape[-2:]
    rois = {name: g[f"in.{name}"] for name in ("offset_3d", "size_3d", "heading")}
    rois |= {"depth": g["in.depth"][:, 0], "depth_log_variance": g["in.depth"][:, 1]}
    batch = recorded_batch(g)
    peaks = gupnet.scored_slots(recorded_peaks(g, rois, count), batch.affine.zoom)
    rows = torch.cat(
        (peaks.label[..., None], peaks.score[..., None], peaks.centre_2d, peaks.size_2d, peaks.depth[..., None],
         peaks.heading, peaks.size_3d, peaks.centre_3d), dim=-1,
    )  # fmt: skip
    close(rows, g["out.dets"], 1e-9, 1e-12)
    sizes = tuple(map(tuple, g["in.cls_mean_size"].tolist()))
    config = GUPNetConfig.styled("released", top_k=count, score_threshold=float(g["in.threshold"]), class_sizes=sizes)
    check_boxes(g, batch, gupnet.slots_to_boxes(peaks, batch, config, (width, height)))
