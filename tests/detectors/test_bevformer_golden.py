"""BEVFormer against recorded tensors of the released code (set ``bevformer``).

The release's boxes have width before length, the bottom's height, and a yaw that turns clockwise from minus y.
"""

import math
from pathlib import Path

import pytest
import torch
from golden import by_number, constants, golden_file
from test_gupnet_golden import group
from test_monodle_golden import close, load
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from distill3d.boxes import IGNORE, wrap_angle
from distill3d.data.surround import SurroundObjectBatch
from distill3d.detectors.bevformer import (
    BEVFormerConfig,
    BEVFormerTargets,
    GroundEncoder,
    LayerHead,
    SignalNet,
    SpatialCrossAttention,
    TemporalSelfAttention,
    best_boxes,
    box_cost,
    box_targets,
    class_cost,
    ground_shift,
    in_metres,
    layer_losses,
    match,
    pillars,
    seen_points,
    turned,
    views_of,
)
from distill3d.detectors.monodetr import RELEASED_DEFORMABLE
from distill3d.layers.heads.matching import UNMATCHED
from distill3d.layers.image.deformable_attention import DeformableAttention, cell_centres
from distill3d.layers.image.resnet import STRIDES
from distill3d.layers.points.voxels import VoxelGrid

pytestmark = pytest.mark.golden


def own_name(name: str) -> str:
    """Of a weight of deformable attention, without its parts' released beginnings."""
    layer, kind = name.removeprefix("deformable_attention.").rsplit(".", 1)
    return f"{RELEASED_DEFORMABLE[layer]}.{kind}"


def with_weights(attention: DeformableAttention, g: dict[str, Tensor]) -> None:
    attention.load_state_dict({own_name(name): value for name, value in group(g, "param.").items()})


def check_gradients(attention: DeformableAttention, recorded: dict[str, Tensor], inputs: dict[str, Tensor]) -> None:
    """Gradients of the weights and of named inputs, which are all that is recorded."""
    weights = dict(attention.named_parameters())
    assert {own_name(name) for name in recorded.keys() - inputs.keys()} == weights.keys()
    for name, value in recorded.items():
        ours = inputs[name] if name in inputs else weights[own_name(name)]
        close(ours.grad, value, 1e-7, 1e-9)


def ground(c: dict, low: tuple = (-51.2, -51.2, -5.0), high: tuple = (51.2, 51.2, 3.0)) -> VoxelGrid:
    """A ground of the recorded numbers of cells."""
    side = ((high[0] - low[0]) / c["width"], (high[1] - low[1]) / c["height"], high[2] - low[2])
    return VoxelGrid((*low, *high), side)


@golden_file("bevformer/reference_points")
def test_reference_points(path: Path) -> None:
    g, c = load(path), constants(path)
    extent = c["point_cloud_range"]
    grid = ground(c, tuple(extent[:3]), tuple(extent[3:]))
    points = pillars(grid, c["points_in_pillar"], torch.zeros(()))
    for recorded in g["out.ref_3d"]:
        close(points.transpose(0, 1), recorded, 1e-6, 1e-7)
    for recorded in g["out.ref_2d"]:
        close(cell_centres(((c["height"], c["width"]),), points), recorded[:, 0], 1e-6)
    height, width = g["in.image_size"].tolist()
    shares, visible = seen_points(in_metres(points, grid), g["in.lidar2img"], (height, width))
    ours, mask = shares.transpose(0, 1), visible.transpose(0, 1)
    recorded = g["out.camera_points"]
    edge = torch.stack((recorded, recorded - 1)).abs().amin(0).amin(-1) < 1e-5
    assert torch.equal(mask[~edge], g["out.mask"][~edge]) and mask.any() and not mask.all()
    close(ours[g["out.mask"]], recorded[g["out.mask"]], 1e-4)


@golden_file("bevformer/temporal_self_attention")
def test_temporal_self_attention(path: Path) -> None:
    g, c = load(path), constants(path)
    size, channels = (c["height"], c["width"]), g["in.query"].shape[-1]
    centres = cell_centres((size,), torch.zeros(())).double()  # the record's are of single precision
    module = TemporalSelfAttention(channels, c["heads"], c["points"], "interleaved").double()
    with_weights(module.attention, g)
    own = TemporalSelfAttention(channels, c["heads"], c["points"], "own").double()
    own.load_state_dict(module.state_dict())
    for case in ("history", "first"):
        query = g["in.query"].clone().requires_grad_()
        reference = centres[:, None].expand(len(query), -1, 2, -1).clone()
        history = None
        if case == "history":
            reference[:, :, 0] += g["in.shift"][:, None]
            history = torch.stack((g["in.previous"], query), dim=1)
        out = query + module(query, g["in.pos"], history, reference, size)
        close(out, g[f"out.{case}"], 1e-7, 1e-9)
        module.zero_grad()
        (out * g[f"in.{case}.cotangent"]).sum().backward()
        check_gradients(module.attention, group(g, f"grad.{case}."), {"query": query})
        with torch.no_grad():  # the first sample is joined with its own history in either form
            alone = own(query, g["in.pos"], history, reference, size)[0]
        close(query[0] + alone, g[f"out.{case}"][0], 1e-7, 1e-9)


@golden_file("bevformer/spatial_cross_attention")
def test_spatial_cross_attention(path: Path) -> None:
    g, c = load(path), constants(path)
    sizes = tuple(map(tuple, c["levels"]))
    query, value = (g[f"in.{name}"].clone().requires_grad_() for name in ("query", "value"))
    module = SpatialCrossAttention(query.shape[-1], len(sizes), c["heads"], c["points"]).double()
    with_weights(module.attention, g)
    points, mask = g["in.camera_points"].transpose(0, 1), g["in.mask"].transpose(0, 1)
    tokens = value.permute(2, 0, 1, 3)
    out = query + module(query, tokens, views_of(points, mask, "first"), sizes)
    close(out, g["out.y"], 1e-7, 1e-9)
    (out * g["in.cotangent"]).sum().backward()
    check_gradients(module.attention, group(g, "grad."), {"query": query, "value": value})
    with torch.no_grad():  # the first sample's cells are looked for in either form
        own = query + module(query, tokens, views_of(points, mask, "own"), sizes)
    close(own[0], g["out.y"][0], 1e-7, 1e-9)


@golden_file("bevformer/decoder_attention")
def test_decoder_attention(path: Path) -> None:
    g, c = load(path), constants(path)
    query, bev = (g[f"in.{name}"].clone().requires_grad_() for name in ("query", "bev"))
    module = DeformableAttention(query.shape[-1], 1, c["heads"], c["points"]).double()
    with_weights(module, g)
    asking = (query + g["in.query_pos"]).transpose(0, 1)
    found = module(asking, g["in.reference"][:, :, 0], bev.transpose(0, 1), ((c["height"], c["width"]),))
    out = query + found.transpose(0, 1)
    close(out, g["out.y"], 1e-7, 1e-9)
    (out * g["in.cotangent"]).sum().backward()
    check_gradients(module, group(g, "grad."), {"query": query, "bev": bev})


@golden_file("bevformer/ego_motion")
def test_ego_motion(path: Path) -> None:
    g, c = load(path), constants(path)
    size, signals = (c["height"], c["width"]), g["in.can_bus"]
    cell_y, cell_x = g["in.grid_length"].tolist()
    shift = ground_shift(signals, (cell_x * size[1], cell_y * size[0]), ahead="y")
    close(shift, g["out.shift"], 1e-8)
    maps = g["in.previous"].permute(1, 2, 0).unflatten(2, size)
    x, y = g["in.rotate_center"].tolist()
    rotated, *near = (
        turned(maps, signals[:, -1] + more, (float(x), float(y))).flatten(2).permute(2, 0, 1)
        for more in (0.0, 1e-6, -1e-6)
    )
    settled = near[0] == near[1]  # others lie between two cells
    assert torch.equal(rotated[settled], g["out.previous_rotated"][settled]) and settled.float().mean() > 0.9

    channels, features = maps.shape[1], [g[name] for name in by_number(g) if name.startswith("in.feature")]
    encoder = GroundEncoder(
        BEVFormerConfig(
            strides=STRIDES[-len(features) :], channels=channels, attention_heads=1, encoder_layers=1,
            cameras=features[0].shape[1], grid=ground(c),
        )
    ).double()  # fmt: skip
    weights = {"level.weight": g["param.level_embeds"], "camera.weight": g["param.cams_embeds"],
               "query.weight": g["in.bev_queries"]}  # fmt: skip
    encoder.load_state_dict(weights, strict=False)
    assert isinstance(encoder.signals, SignalNet)
    released = group(g, "param.can_bus_mlp.")
    encoder.signals.load_state_dict({name.replace("norm", "4"): value for name, value in released.items()})
    close(encoder.queries(signals).transpose(0, 1), g["out.query"], 1e-8, 1e-12)
    close(encoder.tokens(features).permute(1, 2, 0, 3), g["out.key"], 1e-8, 1e-12)


def recorded_targets(g: dict[str, Tensor], extent: tuple[float, ...], classes: int) -> BEVFormerTargets:
    """``in.boxes0``, ``in.labels0``, ... in our convention."""
    names = by_number(name.removeprefix("in.boxes") for name in g if name.startswith("in.boxes"))
    boxes = pad_sequence([g[f"in.boxes{i}"] for i in names], batch_first=True)
    label = pad_sequence([g[f"in.labels{i}"] for i in names], batch_first=True, padding_value=IGNORE)
    bottom, (width, length, height) = boxes[..., :3], boxes[..., 3:6].split(1, dim=-1)
    lift = torch.cat((torch.zeros_like(bottom[..., :2]), height / 2), dim=-1)
    yaw = wrap_angle(-boxes[..., 6] - math.pi / 2)
    objects = SurroundObjectBatch(
        bottom + lift,
        torch.cat((length, width, height), dim=-1),
        yaw,
        boxes[..., 7:],
        label,
        torch.zeros_like(label),
        label != IGNORE,
    )
    cell = tuple(high - low for low, high in zip(extent[:3], extent[3:], strict=True))
    targets = box_targets(objects, VoxelGrid(extent, cell), classes)
    assert torch.equal(targets.mask, objects.present)
    return targets


def own_codes(codes: Tensor) -> Tensor:
    """Released codes with the sine and cosine of our yaw -a - pi/2 in place of those of theirs, a."""
    first, sin, cos, velocity = codes.split((6, 1, 1, 2), dim=-1)
    return torch.cat((first, -cos, -sin, velocity), dim=-1)


@golden_file("bevformer/detection_head")
def test_detection_head(path: Path) -> None:
    g, c = load(path), constants(path)
    extent, layers = tuple(c["point_cloud_range"]), c["layers"]
    grid = VoxelGrid(extent, tuple(high - low for low, high in zip(extent[:3], extent[3:], strict=True)))
    hidden = g["in.hidden"].clone().requires_grad_()
    heads = nn.ModuleList([LayerHead(hidden.shape[-1], c["classes"]) for _ in range(layers)])
    logits, codes = [], []
    for layer, head in enumerate(heads):
        assert isinstance(head, LayerHead)
        head.kind.load_state_dict(group(g, f"param.cls_branches.{layer}."))
        head.box.load_state_dict(group(g, f"param.reg_branches.{layer}."))
        reference = g["in.inter_reference"][layer - 1] if layer else g["in.init_reference"]
        of_class, code, _ = head(hidden[layer].transpose(0, 1), reference, grid)
        logits.append(of_class)
        codes.append(code)
    logits, codes = torch.stack(logits, dim=1), torch.stack(codes, dim=1)
    close(logits.transpose(0, 1), g["out.logits"], 2e-4, 1e-5)
    close(codes.transpose(0, 1), g["out.codes"], 2e-4, 1e-5)

    targets = recorded_targets(g, extent, c["classes"])
    ours = own_codes(codes)
    matched = match(logits, ours, targets)
    costs = {"class_cost": class_cost(logits, targets), "box_cost": box_cost(ours, targets)}
    for layer in range(layers):
        for sample, rows in enumerate(targets.mask):
            recorded = group(g, f"out.layer{layer}.sample{sample}.")
            for name, cost in costs.items():
                close(cost[sample, layer, :, rows], recorded[name], 2e-4, 1e-5)
            query = matched[sample, layer][rows]
            assert (query != UNMATCHED).all()
            assigned = torch.zeros_like(recorded["assigned"])
            assigned[query] = torch.arange(1, len(query) + 1)
            assert torch.equal(assigned, recorded["assigned"])

    total = torch.zeros(())
    for layer in range(layers):
        losses = layer_losses(logits[:, layer], ours[:, layer], targets, matched[:, layer], tuple(c["code_weights"]))
        prefix = "out." if layer == layers - 1 else f"out.d{layer}."
        close(losses["class"], g[f"{prefix}loss_cls"].squeeze(), 2e-4, 1e-5)
        close(losses["box"], g[f"{prefix}loss_bbox"].squeeze(), 2e-4, 1e-5)
        total = total + losses["class"] + losses["box"]
    close(total, g["out.total"].squeeze(), 2e-4, 1e-5)
    total.backward()
    close(hidden.grad, g["grad.hidden"], 2e-4, 1e-5)
    for layer, head in enumerate(heads):
        for name, branch in (("cls_branches", head.kind), ("reg_branches", head.box)):
            recorded = group(g, f"grad.{name}.{layer}.")
            weights = dict(branch.named_parameters())
            assert weights.keys() == recorded.keys()
            for weight, gradient in recorded.items():
                close(weights[weight].grad, gradient, 2e-4, 1e-5)


@golden_file("bevformer/decode")
def test_decode(path: Path) -> None:
    g, c = load(path), constants(path)
    logits, codes = g["in.logits"][-1], own_codes(g["in.codes"][-1])
    found = best_boxes(logits, codes, c["K"], tuple(c["post_center_range"]), c["score_threshold"] or 0.0)
    for sample, kept in enumerate(found.kept):
        recorded = group(g, f"out.sample{sample}.")
        rows = found.rows[sample][kept]
        close(found.score[sample][kept], recorded["scores"], 1e-5)
        assert torch.equal(found.label[sample][kept], recorded["labels"])
        close(rows[:, [0, 1, 2, 4, 3, 5, 7, 8]], recorded["boxes"][:, [0, 1, 2, 3, 4, 5, 7, 8]], 1e-5)
        turn = wrap_angle(-rows[:, 6] - math.pi / 2 - recorded["boxes"][:, 6])
        assert turn.abs().max() < 1e-5
