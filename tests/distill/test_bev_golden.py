"""CMKD's and MonoTAKD's losses against recorded tensors of the released code (sets ``cmkd``, ``monotakd``)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import golden_file
from made_up import cars, make_batch
from torch import Tensor

from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.cmkd import BACKGROUND_WEIGHT, CMKDConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig, ResidualForm, cmrd_loss, imd_loss, normalised, residual
from distill3d.distill.style import StyledConfig

pytestmark = pytest.mark.golden
#: Some recorded weights passed through float32.
TOLERANCE, FLOAT32_TOLERANCE = 1e-6, 2e-6


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, inputs as leaves of a graph, and the constants that its index states."""
    with np.load(path) as data:
        tensors = {k: torch.from_numpy(data[k]).requires_grad_(k.startswith("in.")) for k in data}
    return tensors, json.loads((path.parent / "index.json").read_text())[path.name]["constants"]


def close(actual: Tensor | None, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Within ``tolerance`` of the largest expected magnitude; no gradient is a gradient of 0."""
    actual = torch.zeros_like(expected) if actual is None else actual
    atol = tolerance * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=atol)


def outputs(features: dict[str, Tensor], predictions: dict[str, Tensor]) -> Outputs:
    rows, columns = next(iter(features.values())).shape[-2:]
    geometry = BevGeometry((0.0, 0.0, float(columns), float(rows)), 1.0)
    return Outputs({tap: FeatureMap(maps, geometry) for tap, maps in features.items()}, predictions)


def weighted_terms(config: StyledConfig, student: Outputs, **teachers: Outputs) -> dict[str, Tensor]:
    """What the terms say of the outputs, weights included; every frame has depth."""
    images = len(next(iter(student.features.values())).tensor)
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(0, generator)] * images, generator)
    context = Context(student, teachers, batch, None)
    return {term.name: term.weight * term(context) for term in build_terms(config, {}, {})}


@golden_file(
    "cmkd/bev_loss_l2_w32", "cmkd/bev_loss_l2_w32_nonzero", "cmkd/bev_loss_l2_w4", "cmkd/bev_loss_l2_w4_nonzero",
    "cmkd/bev_loss_sum_w32",
)  # fmt: skip
def test_cmkd_features(path: Path) -> None:
    g, constants = load(path)
    assert constants["background_weight"] == BACKGROUND_WEIGHT
    config = CMKDConfig.styled(
        "released", feature_weight=float(constants["w"]), feature_form="sum" if "_sum_" in path.stem else "l2",
        nonzero_weighting="nonzero" in path.stem, cls_weight=0.0, loc_weight=0.0, dir_weight=0.0,
    )  # fmt: skip
    student, teacher = outputs({"bev": g["in.student"]}, {}), outputs({"bev": g["in.teacher"]}, {})
    loss = weighted_terms(config, student, teacher=teacher)["bev"]
    close(loss, g["out.loss"])
    close(torch.autograd.grad(loss, g["in.student"])[0], g["grad.student"])


@golden_file("cmkd/response_loss")
def test_cmkd_responses(path: Path) -> None:
    g, constants = load(path)
    config = CMKDConfig.styled(
        "released", feature_weight=0.0, positive=constants["threshold"], cls_weight=constants["cls_weight"],
        loc_weight=constants["loc_weight"], dir_weight=constants["dir_weight"],
    )  # fmt: skip
    maps = {who: {name: g[f"in.{who}_{name}"] for name in ("cls", "box", "dir")} for who in ("student", "teacher")}
    bev = torch.zeros(len(maps["student"]["cls"]), 1, *maps["student"]["cls"].shape[1:3])
    losses = weighted_terms(
        config, outputs({"bev": bev}, maps["student"]), teacher=outputs({"bev": bev}, maps["teacher"])
    )
    for part in ("cls", "loc", "dir"):
        close(losses[f"response_{part}"], g[f"out.{part}"])
    box_total = losses["response_loc"] + losses["response_dir"]
    close(box_total, g["out.box_total"])
    torch.stack((losses["response_cls"], box_total)).sum().backward()
    for name, leaf in maps["student"].items():
        close(leaf.grad, g[f"grad.student_{name}"])
    assert all(leaf.grad is None for leaf in maps["teacher"].values())


def takd_maps(g: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V, P, A and T."""
    return g["in.f_vis"], g["in.f_spa_aligned"], g["in.f_ta"], g["in.teacher"]


def takd_settings(path: Path, constants: dict[str, Any]) -> dict[str, Any]:
    assert constants["background weight"] == BACKGROUND_WEIGHT
    return {
        "nonzero_weighting": "nonzero" in path.stem, "cmrd_weight": constants["residual weight"],
        "threshold": constants["threshold ratio"], "cls_weight": 0.0, "loc_weight": 0.0, "dir_weight": 0.0,
    }  # fmt: skip


@golden_file("monotakd/loss_released", "monotakd/loss_released_nonzero")
def test_monotakd_as_released(path: Path) -> None:
    """The assistant is the student's own, and neither its map nor V gets any gradient."""
    g, constants = load(path)
    visual, spatial, assistant, teacher = takd_maps(g)
    before = {k: v.detach().clone() for k, v in g.items()}
    config = MonoTAKDConfig.styled("released", **takd_settings(path, constants))
    student = outputs({"bev": visual, "bev_spatial": spatial, "bev_assistant": assistant}, {})
    losses = weighted_terms(config, student, teacher=outputs({"bev": teacher}, {}))
    loss = losses["imd"] + losses["cmrd"]
    close(losses["imd"], g["out.imd"], FLOAT32_TOLERANCE)
    close(losses["cmrd"] / config.cmrd_weight, g["out.cmrd"], FLOAT32_TOLERANCE)
    close(loss, g["out.loss"], FLOAT32_TOLERANCE)
    loss.backward()
    assert not losses["imd"].requires_grad
    for name, leaf in (("f_vis", visual), ("f_ta", assistant), ("f_spa_aligned", spatial)):
        close(leaf.grad, g[f"grad.{name}"], FLOAT32_TOLERANCE)
    scaled = normalised(assistant, config.normalise).detach()
    close(scaled, g["out.ta_normalised"], FLOAT32_TOLERANCE)
    close(normalised(visual, config.normalise), g["out.vis_normalised"], FLOAT32_TOLERANCE)
    close(residual(teacher, scaled, config), g["out.residual_target"], FLOAT32_TOLERANCE)
    assert all(torch.equal(g[k], before[k]) for k in g)  # the released code scales its inputs in place


@golden_file("monotakd/loss_with_gradient", "monotakd/loss_with_gradient_nonzero")
def test_monotakd_with_gradient(path: Path) -> None:
    """Our defaults: what the code did before its maps were scaled, with the assistant frozen."""
    g, constants = load(path)
    visual, spatial, assistant, teacher = takd_maps(g)
    config = MonoTAKDConfig(**takd_settings(path, constants))
    student = outputs({"bev": visual, "bev_spatial": spatial}, {})
    losses = weighted_terms(
        config, student, teacher=outputs({"bev": teacher}, {}), assistant=outputs({"bev": assistant}, {})
    )
    loss = losses["imd"] + losses["cmrd"]
    close(losses["imd"], g["out.imd"])
    close(losses["cmrd"] / config.cmrd_weight, g["out.cmrd"])
    close(loss, g["out.loss"])
    loss.backward()
    close(visual.grad, g["grad.f_vis"])
    close(spatial.grad, g["grad.f_spa_aligned"])
    assert assistant.grad is None

    # an assistant that is not frozen
    imd = imd_loss(visual, assistant, config.normalise, config.nonzero_weighting)
    loss = imd + config.cmrd_weight * cmrd_loss(spatial, teacher, assistant, config)
    close(torch.autograd.grad(loss, assistant)[0], g["grad.f_ta_not_stopped"])

    forms: dict[str, ResidualForm] = {"no_threshold": "none", "binary": "binarise", "target": "zero_below"}
    for suffix, form in forms.items():
        other = MonoTAKDConfig(**takd_settings(path, constants), residual_form=form)
        close(residual(teacher, assistant, other), g[f"out.residual_{suffix}"])
        if suffix != "target":
            close(cmrd_loss(spatial, teacher, assistant, other), g[f"out.cmrd_{suffix}"])
