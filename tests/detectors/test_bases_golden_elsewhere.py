"""The tests of the bases' recorded tensors pass on another folder of the same names with other shapes and values."""

import math
from pathlib import Path
from typing import Any

import pytest
import test_bevdet_golden
import test_bevformer_golden
import torch
from golden_elsewhere import EXACT, SINGLE, Elsewhere, Tensors, asks_for, check_elsewhere, drawn, leaf, read_linearly
from torch import Tensor


def bevdet(g: Tensors, c: dict[str, Any]) -> Tensors:
    """Cells stand for their corners; the first camera tells how the vehicle moved."""
    feature, low, cell = leaf(g["in.feature"]), c["lower"], c["cell"]

    def pose(b: int, of: str) -> Tensor:
        out = torch.eye(4, dtype=torch.float64)
        out[:3, :3], out[:3, 3] = g[f"in.rots{of}"][b, 0], g[f"in.trans{of}"][b, 0]
        return out

    moved = torch.zeros_like(feature)
    for b in range(len(feature)):
        motion = pose(b, "") @ pose(b, "_adjacent").inverse()
        for i in range(feature.shape[2]):
            for j in range(feature.shape[3]):
                x, y = low + cell * j, low + cell * i
                to = motion[:2, :2] @ torch.tensor([x, y], dtype=torch.float64) + motion[:2, 3]
                moved[b, :, i, j] = read_linearly(feature[b], (to - low) / cell)
    (gradient,) = torch.autograd.grad((moved * g["in.cotangent"]).sum(), feature)
    return {"out.feature": moved, "grad.feature": gradient}


def bevdet_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    batch, cameras, size = 3, 1, 7
    g = {"in.feature": drawn(0, batch, 2, size, size), "in.cotangent": drawn(1, batch, 2, size, size)}
    for i, of in enumerate(("", "_adjacent")):
        turn = 0.2 * drawn(2 + i, batch, cameras)
        rots = torch.zeros(batch, cameras, 3, 3, dtype=torch.float64)
        rots[..., 0, 0], rots[..., 0, 1], rots[..., 1, 0], rots[..., 1, 1] = (
            turn.cos(),
            -turn.sin(),
            turn.sin(),
            turn.cos(),
        )
        rots[..., 2, 2] = 1
        g |= {f"in.rots{of}": rots, f"in.trans{of}": drawn(4 + i, batch, cameras, 3)}
    return g, c | {"lower": -3.5, "cell": 1.0, "size": size}


def bevformer(g: Tensors, c: dict[str, Any]) -> Tensors:
    """Of each sample the K best (query, class) pairs of the last layer, inside the range."""
    low, high = (torch.tensor(side) for side in (c["post_center_range"][:3], c["post_center_range"][3:]))
    found = {}
    for b, (logits, codes) in enumerate(zip(g["in.logits"][-1], g["in.codes"][-1], strict=True)):
        pairs = [(float(p), q, k) for q, row in enumerate(logits.sigmoid()) for k, p in enumerate(row)]
        boxes, scores, labels = [], [], []
        for score, query, kind in sorted(pairs, key=lambda pair: -pair[0])[: c["K"]]:
            x, y, w, l, z, h, sin, cos, vx, vy = codes[query].tolist()  # noqa: E741
            centre = torch.tensor([x, y, z])
            above = c["score_threshold"] is None or score > c["score_threshold"]
            if above and bool((centre >= low).all() and (centre <= high).all()):
                boxes.append([x, y, z, math.exp(w), math.exp(l), math.exp(h), math.atan2(sin, cos), vx, vy])
                scores.append(score)
                labels.append(kind)
        found |= {f"out.sample{b}.boxes": torch.tensor(boxes), f"out.sample{b}.scores": torch.tensor(scores),
                  f"out.sample{b}.labels": torch.tensor(labels)}  # fmt: skip
    return found


def bevformer_inputs(c: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    layers, batch, queries, classes = 2, 3, 6, 4
    codes = drawn(1, layers, batch, queries, 10, dtype=torch.float32)
    codes[..., :2] *= 30
    g = {"in.logits": drawn(0, layers, batch, queries, classes, dtype=torch.float32), "in.codes": codes}
    return g, c | {"K": 9, "classes": classes, "post_center_range": [-30.0, -40.0, -2.0, 40.0, 30.0, 2.0]}


FILES = (
    Elsewhere("bevdet/shift_feature", test_bevdet_golden.test_shift, bevdet, bevdet_inputs, EXACT),
    Elsewhere("bevformer/decode", test_bevformer_golden.test_decode, bevformer, bevformer_inputs, SINGLE),
)


@pytest.mark.parametrize("of", FILES, ids=lambda of: of.name)
def test_the_same_file_of_other_shapes(of: Elsewhere, tmp_path: Path) -> None:
    assert asks_for(of)
    check_elsewhere(of, tmp_path)
