"""The tests of the methods' recorded tensors pass on another folder of the same names with other shapes and values."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_bevdistill_golden
import test_distillbev_golden
import test_simdistill_golden
import test_tig_bev_golden
import test_unidistill_golden
import test_uvtr_kd_golden
import test_vcd_golden
import torch
import torch.nn.functional as F
from golden import golden_files, golden_root, stem
from golden_elsewhere import (
    EXACT,
    SINGLE,
    Elsewhere,
    Tensors,
    asks_for,
    at_share,
    check_elsewhere,
    drawn,
    gradients,
    leaf,
    uniform,
)  # fmt: skip
from torch import Tensor

#: Batch norm's.
NORM_EPS = 1e-5


def unidistill(g: Tensors, c: dict[str, Any]) -> Tensors:
    x0, y0, _, x1, y1, _ = c["point_cloud_range"]
    corner, sides = torch.tensor([[x0, y0], [x1 - x0, y1 - y0]], dtype=torch.float64)
    student = {level: leaf(g[f"in.student_{level}"]) for level in ("low", "high")}
    counts, feature, relation = int(g["in.valid"].sum()), torch.zeros(()).double(), torch.zeros(()).double()
    points = (-corner / c["cell"]).expand(*g["in.valid"].shape, 9, 2).clone()  # of rows of zeros
    for b, m in g["in.valid"].nonzero().tolist():
        x, y, _, length, width, _, yaw = g["in.boxes"][b, m, :7].tolist()
        corners = []
        for a, w in ((-1, -1), (-1, 1), (1, 1), (1, -1)):
            along, across = a * length / 2, w * width / 2
            corners.append((x + along * math.cos(yaw) - across * math.sin(yaw),
                            y + along * math.sin(yaw) + across * math.cos(yaw)))  # fmt: skip
        nine = torch.tensor([*corners, (x, y)], dtype=torch.float64)
        middles = [(nine[i] + nine[j]) / 2 for i, j in ((0, 1), (1, 2), (2, 3), (0, 3))]
        nine = torch.cat((nine, torch.stack(middles)))
        points[b, m] = (nine - corner) / c["cell"]
        share = (nine - corner) / sides
        read = {
            who: torch.stack([at_share(maps[b], p.flip(0)) for p in share])
            for who, maps in (("s_low", student["low"]), ("t_low", g["in.teacher_low"]), ("s_high", student["high"]),
                              ("t_high", g["in.teacher_high"]))
        }  # fmt: skip
        feature = feature + (read["s_low"] - read["t_low"]).abs().mean()
        unit = [v / (v.norm(dim=1, keepdim=True) + 1e-4) for v in (read["s_high"], read["t_high"])]
        relation = relation + (unit[0] @ unit[0].T - unit[1] @ unit[1].T).abs().mean()
    feature, relation = feature / (counts + 1e-4), relation / (counts + 1e-4)
    return {
        "out.points": points, "out.corners": points[:, :, :4], "out.feature": feature, "out.relation": relation,
        "grad.feature.student_low": torch.autograd.grad(feature, student["low"])[0],
        "grad.relation.student_high": torch.autograd.grad(relation, student["high"])[0],
    }  # fmt: skip


def unidistill_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    height, width, cell = 8, 10, 0.75
    valid = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    centre, rest = 5 * uniform(0, 3, 3, 2) - 2.5, uniform(1, 3, 3, 5)
    boxes = torch.cat((centre, rest[..., :1], 0.5 + 2 * rest[..., 1:4], 6 * rest[..., 4:], torch.ones(3, 3, 2)), dim=-1)
    maps = {f"in.{who}_{level}": drawn(i, 3, channels, height, width)
            for i, (who, level, channels) in enumerate([("student", "low", 4), ("teacher", "low", 4),
                                                        ("student", "high", 3), ("teacher", "high", 3)])}  # fmt: skip
    x, y = width * cell / 2, height * cell / 2
    stated = c | {"height": height, "width": width, "cell": cell, "point_cloud_range": [-x, -y, -5, x, y, 3]}
    return {"in.boxes": boxes * valid[..., None], "in.valid": valid, **maps}, stated


def nine_samples(g: Tensors, c: dict[str, Any]) -> Tensors:
    """``unidistill`` with what is read, of boxes that count."""
    x0, y0, _, x1, y1, _ = c["point_cloud_range"]
    found = unidistill(g, c)
    sides = torch.tensor([(x1 - x0) / c["cell"], (y1 - y0) / c["cell"]], dtype=torch.float64)
    for who in ("student", "teacher"):
        low = torch.zeros(*found["out.points"].shape[:3], g[f"in.{who}_low"].shape[1], dtype=torch.float64)
        gram = torch.zeros(*found["out.points"].shape[:3], 9, dtype=torch.float64)
        for b, m in g["in.valid"].nonzero().tolist():
            share = (found["out.points"][b, m] / sides).flip(1)
            low[b, m] = torch.stack([at_share(g[f"in.{who}_low"][b], p) for p in share])
            high = torch.stack([at_share(g[f"in.{who}_high"][b], p) for p in share])
            unit = high / (high.norm(dim=1, keepdim=True) + 1e-4)
            gram[b, m] = unit @ unit.T
        found |= {f"out.{who}_sample": low, f"out.{who}_relation": gram}
    return found


def tig_bev(g: Tensors, c: dict[str, Any]) -> Tensors:
    near, far, step = c["dbound"]
    logits, box, depth = leaf(g["in.logits"]), g["in.foreground"].flatten(0, 1), g["in.depth"].flatten(0, 1)
    bins = near + step * torch.arange(round((far - near) / step), dtype=torch.float64)
    e = (logits.softmax(1) * bins[:, None, None]).sum(1)
    inner = torch.zeros(()).double()
    for camera, k in itertools.product(range(len(box)), range(1, int(box.max()) + 1)):
        inside = box[camera] == k
        if inside.any():
            own, z = e[camera][inside], depth[camera][inside]
            best = int((own - z).abs().argmin())
            inner = inner + ((own - own[best].detach()) - (z - z[best])).square().sum()
    inner = c["inner_depth_weight"] * inner / max(1, int((box > 0).sum()))
    hot = (torch.arange(len(bins))[:, None, None] == ((depth - near) / step).floor()[:, None]).double()
    entropy = F.binary_cross_entropy_with_logits(logits, hot, reduction="none") * (depth > 0)[:, None]
    absolute = c["depth_weight"] * entropy.mean()
    return {
        "out.inner_depth": inner, "grad.inner_depth.logits": torch.autograd.grad(inner, logits, retain_graph=True)[0],
        "out.depth": absolute.float(), "grad.depth.logits": torch.autograd.grad(absolute, logits)[0].float(),
    }  # fmt: skip


def tig_bev_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    near, far, step = 2.0, 9.0, 0.5
    box = (4 * uniform(0, 1, 3, 4, 6)).long()
    depth = near + (far - near) * uniform(1, 1, 3, 4, 6)
    depth = torch.where((uniform(2, 1, 3, 4, 6) < 0.3) & (box == 0), 0, depth)
    logits = drawn(3, 3, round((far - near) / step), 4, 6)
    return {"in.foreground": box, "in.depth": depth, "in.logits": logits}, c | {"dbound": [near, far, step]}


def bevdistill(g: Tensors, c: dict[str, Any]) -> Tensors:
    leaves = {k: leaf(v) for k, v in g.items() if k.startswith("param.") or k == "in.student"}
    rows = {}
    for who, project, encoder, maps in (
        ("student", "img_projs.0.0", "encoder_img", leaves["in.student"]),
        ("teacher", "pts_projs.0.0", "encoder_pts", g["in.teacher"]),
    ):
        x = torch.stack([at_share(maps[b], (p + 1) / 2) for b in range(len(maps)) for of_layer in g["in.points"]
                         for p in of_layer[b]])  # fmt: skip

        def linear(x: Tensor, name: str) -> Tensor:
            return x @ leaves[f"param.{name}.weight"].T + leaves[f"param.{name}.bias"]

        x = linear(linear(x, project), f"{encoder}.0")
        x = (x - x.mean(0)) / (x.var(0, correction=0) + NORM_EPS).sqrt()
        x = x * leaves[f"param.{encoder}.1.weight"] + leaves[f"param.{encoder}.1.bias"]
        x = linear(x.clamp(min=0), f"{encoder}.3")
        rows[who] = x / x.norm(dim=1, keepdim=True)
    logits = rows["teacher"] @ rows["student"].T / c["temperature"]
    loss = c["weight"] * (logits.logsumexp(1) - logits.diagonal()).mean()
    grads = gradients(loss, leaves)
    return {"out.loss": loss} | {f"grad.{k.split('.', 1)[1]}": v for k, v in grads.items()}


def bevdistill_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    layers, batch, queries, embedding = 2, 3, 4, 6
    g = {"in.student": drawn(0, batch, 3, 6, 9), "in.teacher": drawn(1, batch, 7, 8, 5),
         "in.points": 2.2 * uniform(2, layers, batch, queries, 2) - 1.1}  # fmt: skip
    for i, (name, channels) in enumerate((("img", 3), ("pts", 7))):
        square, parts = (embedding, embedding), (f"{name}_projs.0.0", *(f"encoder_{name}.{k}" for k in (0, 1, 3)))
        for part, shape in zip(parts, ((embedding, channels), square, (embedding,), square), strict=True):
            g |= {f"param.{part}.weight": 0.5 * drawn(3 + i, *shape), f"param.{part}.bias": drawn(5 + i, embedding)}
    return g, c | {"mid": embedding, "weight": 0.3, "temperature": 0.2}


def uvtr_kd(g: Tensors, c: dict[str, Any]) -> Tensors:
    low, high = torch.tensor(c["point_cloud_range"], dtype=torch.float64).view(2, 3)
    last = sum(k.startswith("in.student_voxels") for k in g) - 1
    leaves = {k: leaf(v) for k, v in g.items() if k.startswith("in.student_voxels")}
    code, found, total = g["out.codes"].double(), {}, torch.zeros(()).double()
    for layer, of_layer in enumerate(code):
        read = {}
        for who, maps in (
            ("student", leaves[f"in.student_voxels{last}"]), ("teacher", g[f"in.teacher_voxels{last}"].double()),
        ):  # fmt: skip
            places = (of_layer[..., [0, 1, 4]] - low) / (high - low)
            read[who] = torch.stack(
                [torch.stack([at_share(m, p) for p in of_sample]) for m, of_sample in zip(maps, places, strict=True)]
            )
            found[f"out.layer{layer}.{who}0"] = read[who].float()
        s, t = read["student"], read["teacher"]
        loss = c["kd"]["loss_weight"] * (((s - t) ** 2) * ((s > t) | (t > 0))).sum(2).mean()
        found[f"out.d{layer}.loss_kd"] = loss.float()
        total = total + loss
    grads = {k.replace("in.", "grad."): v.float() for k, v in gradients(total, leaves).items()}
    detection = sum(v.sum() for k, v in g.items() if k.endswith(("loss_cls", "loss_bbox")))
    return found | grads | {"out.total": (total + detection).float()[None]}


def uvtr_kd_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    layers, batch, queries, channels = 2, 3, 5, 4
    extent = [-8.0, -10.0, -2.0, 8.0, 10.0, 4.0]
    g = {f"in.{who}_voxels{i}": drawn(2 * i + j, batch, channels, 2, 5, 7, dtype=torch.float32)
         for i in range(3) for j, who in enumerate(("student", "teacher"))}  # fmt: skip
    codes = drawn(9, layers, batch, queries, 10, dtype=torch.float32)
    codes[..., [0, 1, 4]] *= torch.tensor([5.0, 6.0, 1.5])
    more = {"out.codes": codes, "out.loss_cls": torch.tensor([0.5]), "out.loss_bbox": torch.tensor(0.25)}
    return g | more, c | {"layers": layers, "point_cloud_range": extent}


def vcd(g: Tensors, c: dict[str, Any]) -> Tensors:
    student, teacher, tau = leaf(g["in.student"]), g["in.teacher"].double(), c["tau"]
    s, t = (m / m.abs().amax(1, keepdim=True) for m in (student, teacher))
    cells = [(m / tau).flatten(2) for m in (student, teacher)]
    kinds = [(m / tau).softmax(1) for m in (student, teacher)]
    losses = {
        "L2Loss": ((student - teacher) ** 2).sum(), "L1Loss": (student - teacher).abs().sum(),
        "NormL2Loss": ((s - t) ** 2).sum(),
        "ChannelWiseDivergence": -(cells[1].softmax(2) * cells[0].softmax(2).log()).sum() * tau**2
        / (student.shape[0] * student.shape[1]),
        "KLLoss": (kinds[1] * (kinds[1] / kinds[0]).log()).sum() * tau**2,
    }  # fmt: skip
    found = {f"out.{k}": (c["weight"] * v).float() for k, v in losses.items()}
    return found | {f"grad.{k}": torch.autograd.grad(c["weight"] * v, student, retain_graph=True)[0].float()
                    for k, v in losses.items()}  # fmt: skip


def vcd_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    maps = {f"in.{who}": drawn(i, 3, 5, 4, 7, dtype=torch.float32) for i, who in enumerate(("student", "teacher"))}
    return maps, c | {"weight": 0.3, "tau": 1.5}


def simdistill(g: Tensors, c: dict[str, Any]) -> Tensors:
    near, far, step = c["dbound"]
    depth, block = g["in.depth"].flatten(0, 1).double(), c["downsample"]
    count = round((far - near) / step)
    probability = leaf(g["in.probability"])
    rows, loss, valid = [], torch.zeros(()).double(), 0
    for image, y, x in itertools.product(
        range(len(depth)), range(depth.shape[1] // block), range(depth.shape[2] // block)
    ):
        cells = depth[image, y * block : (y + 1) * block, x * block : (x + 1) * block]
        hot = torch.zeros(count, dtype=torch.float64)
        if (cells > 0).any():
            index = math.floor((float(cells[cells > 0].min()) - (near - step)) / step) - 1
            if 0 <= index < count:
                hot[index] = 1
                valid += 1
                loss = loss + F.binary_cross_entropy(probability[image, :, y, x], hot, reduction="sum")
        rows.append(hot)
    loss = c["weight"] * loss / max(1, valid)
    grad = torch.autograd.grad(loss, probability)[0]
    return {"out.onehot": torch.stack(rows).float(), "out.loss": loss.float(), "grad.probability": grad.float()}


def simdistill_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    near, far, step, block = 2.0, 10.0, 1.0, 4
    depth = (12 * uniform(0, 1, 3, 5 * block, 2 * block)).float()
    depth = torch.where(uniform(1, 1, 3, 5 * block, 2 * block) < 0.9, 0, depth)
    probability = drawn(2, 3, round((far - near) / step), 5, 2).softmax(1).float()
    stated = c | {"dbound": [near, far, step], "downsample": block, "weight": 2.0}
    return {"in.depth": depth, "in.probability": probability}, stated


KERNELS = {"1x1conv": 0, "3x3conv": 1}


def distillbev(g: Tensors, c: dict[str, Any]) -> Tensors:
    """Adaptors of one convolution or two, by shifted copies of the map."""
    found = {}
    for kind in c["adaptors"]:
        if kind not in (*KERNELS, "mlp"):
            continue
        x = leaf(g["in.x"])
        if kind == "mlp":
            y = convolved(convolved(x, g, "mlp.fc1").clamp(min=0), g, "mlp.fc2")
        else:
            y = convolved(x, g, kind)
        cotangent = g[f"in.{kind}.cotangent"]
        found |= {f"out.{kind}.eval": y, f"out.{kind}.train": y,
                  f"grad.{kind}.x": torch.autograd.grad((y * cotangent).sum(), x)[0]}  # fmt: skip
    return found


def convolved(x: Tensor, g: Tensors, name: str) -> Tensor:
    weight, bias = g[f"param.{name}.weight"], g[f"param.{name}.bias"]
    reach = weight.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4)
    rows, columns = x.shape[-2:]
    taps = itertools.product(range(weight.shape[-2]), range(weight.shape[-1]))
    y = sum(
        torch.einsum("oc,bcyx->boyx", weight[:, :, i, j], padded[..., i : i + rows, j : j + columns]) for i, j in taps
    )
    return y + bias[:, None, None]


def distillbev_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    batch, channels, wide, rows, columns = 1, 4, 5, 6, 9
    g = {"in.x": drawn(0, batch, channels, rows, columns)}
    for i, (name, c_in, c_out, side) in enumerate(
        (("1x1conv", channels, wide, 1), ("3x3conv", channels, wide, 3), ("mlp.fc1", channels, channels, 1),
         ("mlp.fc2", channels, wide, 1))
    ):  # fmt: skip
        g |= {f"param.{name}.weight": drawn(i, c_out, c_in, side, side), f"param.{name}.bias": drawn(i + 9, c_out)}
    kinds = ["1x1conv", "3x3conv", "mlp"]
    return g | {f"in.{k}.cotangent": drawn(i, batch, wide, rows, columns) for i, k in enumerate(kinds)}, c | {
        "adaptors": kinds
    }


def of_valid_boxes(g: Tensors, key: str, value: Tensor) -> Tensor:
    return value[g["in.valid"]] if value.shape[:2] == g["in.valid"].shape else value


FILES = (
    Elsewhere("unidistill/keypoint_terms_a", test_unidistill_golden.test_key_points, nine_samples, unidistill_inputs,
              EXACT, of_valid_boxes),
    Elsewhere("tig_bev/inner_depth_a", test_tig_bev_golden.test_depths, tig_bev, tig_bev_inputs, SINGLE),
    Elsewhere("bevdistill/contrastive_a", test_bevdistill_golden.test_contrastive, bevdistill, bevdistill_inputs,
              EXACT),
    Elsewhere("uvtr_kd/kd_released", test_uvtr_kd_golden.test_points, uvtr_kd, uvtr_kd_inputs, SINGLE),
    Elsewhere("vcd/loss_classes", test_vcd_golden.test_distances, vcd, vcd_inputs, SINGLE),
    Elsewhere("simdistill/depth_loss", test_simdistill_golden.test_depth_loss, simdistill, simdistill_inputs, SINGLE),
    Elsewhere("distillbev/adaptors", test_distillbev_golden.test_adaptors, distillbev, distillbev_inputs, EXACT),
)  # fmt: skip


@pytest.mark.parametrize("of", FILES, ids=lambda of: of.name)
def test_the_same_file_of_other_shapes(of: Elsewhere, tmp_path: Path) -> None:
    assert asks_for(of)
    check_elsewhere(of, tmp_path)


def test_the_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vcd").mkdir()
    np.savez(tmp_path / "vcd" / "loss_classes.npz", x=np.zeros(3))
    monkeypatch.setenv("DISTILL3D_GOLDEN", str(tmp_path))
    assert golden_root() == tmp_path
    assert [stem(path) for path in golden_files("vcd")] == ["loss_classes"]
    assert golden_files("unidistill") == []
