"""MonoDETR against recorded tensors of the released code (set ``monodetr``)."""

import json
from pathlib import Path

import pytest
import torch
from golden import golden_file, golden_files
from test_monodle_golden import close, load, one_frame_batch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill3d.boxes import KITTI_CLASSES
from distill3d.camera import Camera, DepthBins, ImageAffine
from distill3d.data.kitti.labels import format_results
from distill3d.data.sample import Batch
from distill3d.detectors import monodetr
from distill3d.detectors.base import Outputs
from distill3d.detectors.monodetr import MonoDETR, MonoDETRConfig, MonoDETRTargets
from distill3d.layers.heads.matching import UNMATCHED

pytestmark = pytest.mark.golden

HEAD_NAMES = {"logits": "logits", "boxes": "boxes", "size_3d": "3d_dim", "heading": "angle", "depth": "depth"}
TERM_NAMES = {"class": "ce", "centre": "center", "sides": "bbox", "giou": "giou", "size_3d": "dim",
              "heading": "angle", "depth": "depth"}  # fmt: skip
CANVAS = (1280, 384)


def slots(g: dict[str, Tensor], name: str, like: tuple[int, ...] = ()) -> Tensor:
    """A target of all images one after the other as (B, K, ...) slots; zeros where the file does not hold it."""
    counts = g["in.target.count"].tolist()
    values = g.get(f"in.target.{name}", torch.zeros(sum(counts), *like, dtype=torch.float64))
    return pad_sequence(list(values.split(counts)), batch_first=True)


def recorded_targets(g: dict[str, Tensor]) -> MonoDETRTargets:
    count = g["in.target.count"]
    mask = torch.arange(int(count.max())) < count[:, None]
    blank = torch.zeros(mask.shape, dtype=torch.int64)
    bins = slots(g, "heading_bin", (1,))[..., 0].long()
    return MonoDETRTargets(
        slots(g, "labels"), slots(g, "boxes_3d"), slots(g, "size_3d", (3,)), slots(g, "depth", (1,))[..., 0], bins,
        slots(g, "heading_res", (1,))[..., 0], mask, torch.zeros(*mask.shape, 4), mask, mask, blank.double(), blank,
    )  # fmt: skip


def pairs(matched: Tensor) -> list[list[int]]:
    """Matched slots (B, G, K) as rows of image, query and object, by image, group and query."""
    image, group, slot = (matched != UNMATCHED).nonzero(as_tuple=True)
    return sorted(torch.stack((image, matched[image, group, slot], slot), dim=-1).tolist())


@golden_file("monodetr/matcher")
def test_matcher(path: Path) -> None:
    g = load(path)
    targets = recorded_targets(g)
    predictions = {"logits": g["in.pred_logits"][:, None], "boxes": g["in.pred_boxes"][:, None]}
    cost = monodetr.matching_cost(predictions["logits"], predictions["boxes"], targets)[:, 0]
    start = 0
    for i, count in enumerate(g["in.target.count"].tolist()):
        close(cost[i, :, :count], g["out.cost_recomputed"][i, :, start : start + count], 1e-9)
        start += count
    queries = predictions["logits"].shape[2]
    for name, groups in (("one_group", 1), ("grouped", int(g["in.group_num"]))):
        matched = monodetr.match(predictions, targets, queries // groups)[:, 0]
        assert pairs(matched) == sorted(g[f"out.pairs_{name}"].tolist())


@golden_file("monodetr/criterion")
def test_criterion(path: Path) -> None:
    g = load(path)
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    targets = recorded_targets(g)
    heads = {head: g[f"in.pred_{name}"].clone().requires_grad_() for head, name in HEAD_NAMES.items()}
    queries = heads["logits"].shape[1] // int(g["in.group_num"])
    matched = monodetr.match({head: h[:, None] for head, h in heads.items()}, targets, queries)[:, 0]
    losses = monodetr.set_losses(heads, targets, matched)
    assert set(losses) == set(TERM_NAMES)
    for name, recorded in TERM_NAMES.items():
        close(losses[name], g[f"out.loss_{recorded}"], 1e-9)
        assert monodetr.WEIGHTS[name] == constants["weights"][f"loss_{recorded}"]
    total = sum(monodetr.WEIGHTS[name] * value for name, value in losses.items())
    close(total, g["out.weighted_total"], 1e-9)
    total.backward()
    for head, name in HEAD_NAMES.items():
        expected = g[f"grad.pred_{name}"]
        close(heads[head].grad, expected, 1e-9, 1e-9 * float(expected.abs().max()))


@golden_file("monodetr/decode")
def test_decode(path: Path) -> None:
    g = load(path)
    heads = {head: g[f"in.pred_{name}"] for head, name in HEAD_NAMES.items()}
    count, rows = g["out.dets"].shape[1], g["out.rows"]
    ranked = monodetr.rank_queries(heads, count)
    corners = monodetr.box_corners(ranked.boxes)
    low, high = corners.split(2, dim=-1)
    dets = torch.cat(
        (ranked.label[..., None], ranked.score[..., None], (low + high) / 2, high - low, ranked.depth[..., None],
         ranked.heading, ranked.size_3d, ranked.boxes[..., :2], ranked.confidence[..., None]), dim=-1,
    )  # fmt: skip
    close(dets, g["out.dets"], 1e-9, 1e-12)

    n = len(g["in.img_id"])
    source, canvas = g["in.img_size"].double(), torch.tensor([CANVAS], dtype=torch.float64).expand(n, 2)
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    affine = ImageAffine(identity.expand(n, 2, 3), torch.zeros(n, dtype=torch.bool), torch.ones(n).double(), source,
                         canvas)  # fmt: skip
    blank = torch.zeros(n, 3, 1, 1)
    batch = Batch([str(i) for i in g["in.img_id"].tolist()], blank, Camera(g["in.P2"]), affine)
    config = MonoDETRConfig.styled(
        "released", classes=monodetr.HEAT_CLASSES, top_k=count, score_threshold=float(g["in.threshold"]),
        queries=heads["logits"].shape[1], trunk=monodetr.TINY_TRUNK,
    )  # fmt: skip
    outputs = Outputs({}, {head: values[:, None] for head, values in heads.items()})
    found = MonoDETR(config).decode(outputs, batch)
    assert [len(b) for b in found] == [int((rows[:, 0] == i).sum()) for i in g["in.img_id"]]
    ours = []
    for image, boxes in zip(g["in.img_id"], found, strict=True):
        hwl, bottom = boxes.size.flip(-1), boxes.centre + boxes.size[:, 2:] * torch.tensor([0, 0.5, 0])
        ours.append(torch.cat((image.expand(len(boxes), 1), boxes.label[:, None], boxes.alpha[:, None], boxes.box2d,
                               hwl, bottom, -boxes.yaw[:, None], boxes.score[:, None]), -1))  # fmt: skip
    order = [int(i) for image in g["in.img_id"] for i in (rows[:, 0] == image).nonzero()]
    close(torch.cat(ours), rows[order], 1e-9, 1e-9)
    lines = [
        f"{frame}|{line}"
        for frame, boxes in zip(batch.frame_ids, found, strict=True)
        for line in format_results(boxes, KITTI_CLASSES, decimals=2, score_decimals=2, unknown=("0.0", "0"))
    ]
    assert lines == [g["out.lines"][i] for i in order]


@golden_file("monodetr/depth_bins_embedding")
def test_depth_bins_and_embedding(path: Path) -> None:
    g = load(path)
    bins = DepthBins(monodetr.NEAREST_DEPTH, len(g["param.weight"]) - 1, len(g["out.bin_values"]) - 1)
    values = monodetr.bin_values(bins, g["in.logits"])
    close(values, g["out.bin_values"], 1e-9)
    close(monodetr.expected_depth(g["in.logits"], values), g["out.weighted_depth"], 1e-9)
    depth, table = g["in.depth"].clone().requires_grad_(), g["param.weight"].clone().requires_grad_()
    embedding = monodetr.embed_depth(depth, table)
    close(embedding, g["out.embedding"], 1e-9, 1e-12)
    (embedding * g["in.cotangent"]).sum().backward()
    close(depth.grad, g["grad.depth"], 1e-9, 1e-12)
    close(table.grad, g["grad.weight"], 1e-9, 1e-12)


@golden_file("monodetr/depth_coding")
def test_depth_coding(path: Path) -> None:
    g = load(path)
    for layer in range(sum(name.startswith("out.pred_depth_") for name in g)):
        depth = monodetr.object_depth(
            g[f"in.depth_raw_{layer}"], g[f"in.dims_{layer}"][..., 0], g[f"in.boxes_{layer}"], g["in.weighted_depth"],
            g["in.calibs"][:, 0, 0], g["in.img_size"][:, 1],
        )  # fmt: skip
        close(depth, g[f"out.pred_depth_{layer}"], 1e-9)


@golden_file("monodetr/depth_map_loss")
def test_depth_map_loss(path: Path) -> None:
    g = load(path)
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    counts = g["in.count"].tolist()
    corners, depth = (pad_sequence(list(g[f"in.{k}"].split(counts)), batch_first=True) for k in ("boxes", "depth"))
    trained = torch.arange(max(counts)) < g["in.count"][:, None]
    height, width = g["out.depth_map"].shape[1:]
    painted = monodetr.paint_depth(corners, depth, trained, (height, width), "python")
    assert torch.equal(painted, g["out.depth_map"])
    bins = DepthBins(constants["depth_min"], constants["depth_max"], constants["bins"])
    assert torch.equal(bins.index(painted), g["out.target_bin"].long())
    logits = (g["in.logits_int16"].double() / 100).requires_grad_()
    loss = monodetr.depth_map_loss(logits, painted, bins)
    close(loss, g["out.loss"], 1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient[:, g["in.grad_channels"]][:, :, ::5, ::7], g["grad.logits_channels"], 1e-9, 1e-12)
    close(gradient.sum(), g["grad.logits_sum"], 1e-9, 1e-12)
    close(gradient.abs().sum(), g["grad.logits_abssum"], 1e-9)


TARGETS = [path for path in golden_files("monodetr") if path.stem.startswith("targets_")]


@pytest.mark.parametrize("path", TARGETS, ids=[f"monodetr/{p.stem}" for p in TARGETS])
def test_targets(path: Path, tmp_path: Path) -> None:
    g = load(path)
    constants = json.loads((path.parent / "index.json").read_text())[path.name]["constants"]
    (tmp_path / "label.txt").write_text("\n".join(g["in.label_lines"]) + "\n")
    affine = ImageAffine.crop(tuple(g["in.img_size"].tolist()), CANVAS, flip=bool(g["in.flip"]))
    projection = g["in.P2"].double()
    projection[2, 3] = 0  # the released projection divides by z itself
    batch = one_frame_batch(tmp_path / "label.txt", Camera(projection), affine)
    config = MonoDETRConfig.styled(
        "intended" if constants["aug_calib"] else "released", classes=tuple(constants["write_list"]),
        clip_2d=constants["clip_2d"], trunk=monodetr.TINY_TRUNK,
    )  # fmt: skip
    targets = MonoDETR(config).encode(batch)
    rows = targets.mask_2d.shape[1]
    recorded = {k: g[f"out.{k}"] for k in ("mask_2d", "labels", "boxes", "boxes_3d", "depth", "size_3d", "heading_bin",
                                           "heading_res")}  # fmt: skip
    assert not recorded["mask_2d"][rows:].any()
    trained = recorded["mask_2d"][:rows]
    assert torch.equal(targets.mask_2d[0], trained)
    of = {k: v[:rows][trained] for k, v in recorded.items()}
    assert torch.equal(targets.label[0][trained], of["labels"].long())
    assert torch.equal(targets.heading_bin[0][trained], of["heading_bin"][:, 0])
    close(targets.boxes[0][trained], of["boxes_3d"], 0, 1e-5)
    close(targets.size_3d[0][trained], of["size_3d"], 0, 1e-5)
    close(targets.depth[0][trained], of["depth"][:, 0], 0, 1e-5)
    close(targets.heading_residual[0][trained], of["heading_res"][:, 0], 0, 1e-5)
    low, high = (targets.box2d[0][trained] / torch.tensor([*CANVAS, *CANVAS])).split(2, dim=-1)
    close(torch.cat(((low + high) / 2, high - low), -1), of["boxes"], 0, 1e-5)
