"""The registered methods on made-up networks' outputs: finite, differentiable, and gradients where they belong."""

import subprocess
import sys
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from distill3d.camera import Camera, ImageAffine
from distill3d.data.sample import Batch
from distill3d.detectors import monodle
from distill3d.detectors.base import FeatureMap, ImageGeometry, Outputs
from distill3d.detectors.monodle import MonoDLE
from distill3d.distill import responses
from distill3d.distill.adapters import AdaptedTaps
from distill3d.distill.context import Context
from distill3d.distill.masks import gaussian_mask
from distill3d.distill.methods import METHODS as ALL_METHODS
from distill3d.distill.methods import build_terms, monodistill, monoskd
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monostl import MonoSTLConfig
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError

CANVAS = (96, 160)  # height, width in px; the coarsest map has 3 x 5 cells
CHANNELS = {
    "backbone_4": 4, "backbone_8": 6, "backbone_16": 8, "backbone_32": 10, "neck_4": 4, "neck_8": 6, "neck_16": 8,
}  # fmt: skip
HEADS = {"heatmap": 3, "offset_2d": 2, "size_2d": 2, "depth": 2, "offset_3d": 2, "size_3d": 3, "heading": 24}
SLOTS = 5
#: Label lines (box, eligible, centre on the map) of the first image of each scene; further images are empty.
SCENES: dict[str, list[tuple[tuple[float, float, float, float], bool, bool]]] = {
    "empty": [],
    "one": [((20.0, 20.0, 90.0, 70.0), True, True)],
    "border": [((-30.0, -20.0, 40.0, 40.0), True, True), ((120.0, 50.0, 200.0, 130.0), True, False)],
    "outside": [((300.0, 40.0, 340.0, 60.0), True, False)],
    "speck": [((50.0, 50.0, 51.0, 51.0), True, True)],
    "pair": [((10.0, 10.0, 60.0, 60.0), True, True), ((30.0, 30.0, 90.0, 90.0), True, True)],
    "ignored": [((10.0, 10.0, 60.0, 60.0), False, False), ((30.0, 30.0, 90.0, 90.0), True, True)],
}
CONFIGS: dict[str, StyledConfig] = {
    "monodistill": MonoDistillConfig(fusion_channels=8),
    "monodistill-intended": MonoDistillConfig.styled("intended", fusion_channels=8),
    "monodistill-released": MonoDistillConfig.styled("released", fusion_channels=8, empty_region="zero"),
    "monodistill-soft": MonoDistillConfig(fusion_channels=8, response_mask="soft"),
    "monodistill-without-fusion": MonoDistillConfig(fusion_taps=()),
    "monoskd": MonoSKDConfig(),
    "monoskd-intended": MonoSKDConfig.styled("intended"),
    "monoskd-released": MonoSKDConfig.styled("released"),
    "monoskd-teacher-rank": MonoSKDConfig(spearman_mode="teacher_rank"),
    "monoskd-ranked": MonoSKDConfig(spearman_mode="both_rank", rank_smoothness=0.1),
    "monoskd-per-sample": MonoSKDConfig(corr_scope="sample", strength=1e-3),
    "monostl": MonoSTLConfig(fusion_channels=8),
    "monostl-intended": MonoSTLConfig.styled("intended", fusion_channels=8),
    "monostl-released": MonoSTLConfig.styled("released", fusion_channels=8, empty_region="zero"),
    "monostl-own-side": MonoSTLConfig(fusion_channels=8, rd_uncertainty="own_side", rd_scope="image", rd_norm="cosine"),
    "monostl-without-uncertainty": MonoSTLConfig(fusion_channels=8, fd_weight="none", rd_uncertainty="none"),
}
#: The methods on image features; those on BEV maps are tested in test_bev_methods.py.
METHODS = {name: method for name, method in ALL_METHODS.items() if name in CONFIGS}
#: Whoever said the made-up outputs reads its uncertainty as MonoDLE does.
DETECTOR = MonoDLE(monodle.tiny())


@dataclass
class Targets:
    box2d: Tensor
    present: Tensor
    eligible: Tensor
    mask_2d: Tensor
    indices: Tensor
    heading_bin: Tensor
    on_map: Tensor
    centre_cell: Tensor
    distance: Tensor


def make_targets(scene: str, batch: int) -> Targets:
    box2d = torch.zeros(batch, SLOTS, 4)
    present, eligible, mask_2d = (torch.zeros(batch, SLOTS, dtype=torch.bool) for _ in range(3))
    indices, heading_bin = torch.zeros(batch, SLOTS, dtype=torch.int64), torch.zeros(batch, SLOTS, dtype=torch.int64)
    for i, (box, is_eligible, on_map) in enumerate(SCENES[scene]):
        box2d[0, i], present[0, i], eligible[0, i], mask_2d[0, i] = torch.tensor(box), True, is_eligible, on_map
        if on_map:
            indices[0, i], heading_bin[0, i] = 40 * (5 + i) + 7, 3 + i
    distance = present * torch.linspace(10, 40, SLOTS)
    return Targets(box2d, present, eligible, mask_2d, indices, heading_bin, mask_2d, indices, distance)


def make_outputs(batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, stride: int) -> Tensor:
        shape = (batch, channels, CANVAS[0] // stride, CANVAS[1] // stride)
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    strides = {tap: int(tap.rsplit("_", 1)[1]) for tap in CHANNELS}
    features = {tap: FeatureMap(maps(c, strides[tap]), ImageGeometry(strides[tap])) for tap, c in CHANNELS.items()}
    heads = {head: maps(c, 4) for head, c in HEADS.items()}
    with torch.no_grad():
        heads["depth"][:, 1].abs_().add_(0.2)  # unsure everywhere: selective terms leave out what a student is sure of
    return Outputs(features, heads)


def make_context(scene: str, batch: int, dtype: torch.dtype = torch.float32) -> Context:
    size = torch.tensor([[CANVAS[1], CANVAS[0]]] * batch, dtype=torch.float64)
    matrix = torch.eye(3, dtype=torch.float64)[:2].expand(batch, 2, 3)
    affine = ImageAffine(matrix, torch.zeros(batch, dtype=torch.bool), torch.ones(batch), size, size)
    camera = Camera(Camera.from_intrinsics(90, 90, 80, 48).projection.expand(batch, 3, 4))
    frames = Batch([str(i) for i in range(batch)], torch.zeros(batch, 3, *CANVAS), camera, affine)
    student, teacher = make_outputs(batch, 1, dtype), make_outputs(batch, 2, dtype)
    return Context(student, {"teacher": teacher}, frames, make_targets(scene, batch), DETECTOR, {"teacher": DETECTOR})


def leaves(outputs: Outputs) -> dict[str, Tensor]:
    return {tap: f.tensor for tap, f in outputs.features.items()} | outputs.predictions


def make_terms(config: StyledConfig) -> list[Term]:
    torch.manual_seed(0)
    return build_terms(config, CHANNELS, CHANNELS)


def total(terms: list[Term], context: Context) -> Tensor:
    return torch.stack([term.weight * term(context) for term in terms]).sum()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", CONFIGS)
def test_finite_and_differentiable_in_every_scene(name: str, scene: str, batch: int) -> None:
    context = make_context(scene, batch)
    terms = make_terms(CONFIGS[name])
    for term in terms:
        value = term(context)
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert bool(value.isfinite()), term.name
        assert float(value.detach()) >= 0, term.name
    total(terms, context).backward()
    gradients = {n: p.grad for n, p in leaves(context.student).items() if p.grad is not None}
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for t in terms for p in t.parameters())


#: Which of the student's outputs, and whether adapters, a term teaches.
REACH: dict[str, dict[str, set[str]]] = {
    "monodistill": {
        "object": {"backbone_8", "backbone_16", "backbone_32"},
        "scene": {"backbone_8", "backbone_16", "backbone_32"},
        "response": set(HEADS) - {"heatmap"},
    },
    "monoskd": {
        "spearman": {"neck_4", "neck_8", "neck_16", "backbone_32"},
        "affinity": {"neck_4", "neck_8", "neck_16", "backbone_32"},
        "response": set(HEADS) - {"heatmap"},
    },
    "monostl": {
        "dasfd": {"backbone_8", "backbone_16", "backbone_32"},
        "dasrd": {"backbone_8", "backbone_16", "backbone_32"},
        "response": set(HEADS) - {"heatmap"},
    },
}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_exactly_what_they_should(method: str) -> None:
    terms = make_terms(CONFIGS[method])
    assert {t.name for t in terms} == set(REACH[method])
    for term in terms:
        context = make_context("one", 2)
        term.zero_grad()
        term(context).backward()
        reached = {n for n, p in leaves(context.student).items() if p.grad is not None and bool(p.grad.any())}
        assert reached == REACH[method][term.name], term.name
        assert all(p.grad is None for p in leaves(context.teacher).values())
        for name, parameter in term.named_parameters():
            assert parameter.grad is not None, name
        assert bool(list(term.parameters())) == (term.name != "response")
        depth = context.student.predictions["depth"].grad
        if depth is not None:
            assert not depth[:, 1].any()  # the log scale is not distilled


def test_object_feature_ignores_what_the_teacher_does_not_know() -> None:
    """Entries that are NaN count as equal, cells that are 0 in every channel do not count."""
    student = torch.ones(1, 2, 1, 3, requires_grad=True)
    teacher = torch.tensor([[[[torch.nan, 0.0, 3.0]], [[2.0, 0.0, 1.0]]]])
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    loss = monodistill.object_feature_loss([(student, teacher)], [mask], 1.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx((1 / 4 + 4 / 4) / 2)  # two cells, two channels
    torch.testing.assert_close(student.grad, torch.tensor([[[[0.0, 0.0, -0.5]], [[-0.25, 0.0, 0.0]]]]))


@pytest.mark.parametrize("method", METHODS)
def test_perfect_student_without_adapters_has_no_loss(method: str) -> None:
    terms = make_terms(replace(CONFIGS[method], **({"fusion_taps": ()} if method != "monoskd" else {})))
    for module in nn.ModuleList(terms).modules():
        if isinstance(module, AdaptedTaps):
            module.adapters = nn.ModuleDict({tap: nn.Identity() for tap in module.taps})
    context = make_context("ignored", 1)
    same = replace(context, teachers={"teacher": context.student})
    for term in terms:
        assert float(term(same).detach()) == pytest.approx(0, abs=1e-5), term.name
        assert float(term(context).detach()) > 1e-3, term.name


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_networks(name: str, autocast: bool) -> None:
    """bf16 features in or outside autocast: losses in float32 and close to those of full precision."""
    terms = make_terms(CONFIGS[name])
    rounded = make_context("one", 2, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = [term(rounded) for term in terms]
    exact = [term(make_context("one", 2)) for term in make_terms(CONFIGS[name])]
    for term, value, reference in zip(terms, values, exact, strict=True):
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(reference.detach()), rel=0.1), term.name
    torch.stack(values).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in leaves(rounded.student).values() if p.grad is not None)


@pytest.mark.parametrize("method", METHODS)
def test_other_grids_are_refused(method: str) -> None:
    for change in ("stride", "cells", "missing"):
        context = make_context("one", 1)
        features = context.teacher.features
        tap = CONFIGS[method].taps[-1]  # pyright: ignore[reportAttributeAccessIssue]
        if change == "stride":
            features[tap] = FeatureMap(features[tap].tensor, ImageGeometry(7))
        elif change == "cells":
            features[tap] = FeatureMap(features[tap].tensor[..., 1:], features[tap].geometry)
        else:
            del features[tap]
        with pytest.raises(ValueError, match=tap):
            total(make_terms(CONFIGS[method]), context)


@pytest.mark.parametrize("method", METHODS)
def test_shared_adapters_are_one_and_run_once_a_step(method: str) -> None:
    terms = make_terms(CONFIGS[method])
    adapters = {id(m) for t in terms for m in t.modules() if isinstance(m, AdaptedTaps)}
    assert len(adapters) == 1
    together = nn.ModuleList(terms)
    shared = next(m for m in together.modules() if isinstance(m, AdaptedTaps))
    assert sum(p.numel() for p in together.parameters()) == sum(p.numel() for p in shared.parameters())
    calls: list[int] = []
    next(iter(shared.adapters.values())).register_forward_hook(lambda *_: calls.append(1))
    first, second = make_context("one", 1), make_context("one", 1)
    total(terms, first)
    total(terms, first)
    assert len(calls) == 1
    total(terms, second)
    assert len(calls) == 2
    del second
    assert shared._adapted == []  # the graph of a step does not outlive its context


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("style", ["released", "intended"])
def test_styles_set_every_option(method: str, style: Any) -> None:
    kind = METHODS[method].config_type
    config = kind.styled(style)
    assert config.style == style
    assert kind().style is None
    hints = get_type_hints(kind)
    options = [f for f in fields(kind) if "released" in f.metadata]
    assert options
    for option in options:
        allowed = get_args(hints[option.name])
        for value in (option.metadata["released"], option.metadata["intended"], option.default):
            assert not all(isinstance(a, str) for a in allowed) or not allowed or value in allowed, option.name
    other = {"train": "eval", "eval": "train"}[config.teacher_bn]
    assert kind.styled(style, teacher_bn=other).style is None


def test_styles_refuse_what_they_do_not_know() -> None:
    with pytest.raises((UserError, TypeError), match="style"):  # TypeError: where types are checked at run time
        MonoSKDConfig.styled("both")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="has no field 'taps2'"):
        MonoSKDConfig.styled("released", taps2=1)
    with pytest.raises(ValueError, match="no method has settings"):
        build_terms(StyledConfig(), CHANNELS, CHANNELS)


def test_published_replica_size_makes_styles_agree() -> None:
    """Constant divisors stand for the published runs: at that number of images the released losses are met."""
    for kind, batch, names in (
        (MonoDistillConfig, 6, ("object", "scene")),
        (MonoSKDConfig, 4, ("affinity", "spearman")),
    ):
        context = make_context("one", batch)
        values = []
        for config in (kind(), kind.styled("released")):
            terms = make_terms(replace(config, **({"fusion_channels": 8} if kind is MonoDistillConfig else {})))
            values.append({t.name: float(t(context).detach()) for t in terms if t.name in names})
        assert values[0] == pytest.approx(values[1], rel=1e-6)
        assert set(values[0]) == set(names)


#: An option away from its default changes the terms named, in a scene where it matters, and no other term.
OPTIONS = [
    ("monodistill", {"box_set": "all"}, "ignored", {"object"}),
    ("monodistill", {"box_slice": "python"}, "border", {"object"}),
    ("monodistill", {"response_mask": "zero_rows"}, "ignored", {"response"}),
    ("monodistill", {"response_mask": "soft"}, "one", {"response"}),
    ("monodistill", {"heading_slots": "all"}, "one", {"response"}),
    ("monodistill", {"batch_divisor": None}, "one", {"object", "scene"}),
    ("monodistill", {"affinity_norm": "cosine"}, "one", {"scene"}),
    ("monodistill", {"empty_region": "nan"}, "empty", {"response"}),
    ("monodistill", {"empty_region": "nan"}, "one", set()),
    ("monoskd", {"spearman_mode": "both_rank"}, "one", {"spearman"}),
    ("monoskd", {"spearman_mode": "teacher_rank"}, "one", {"spearman"}),
    ("monoskd", {"corr_scope": "sample"}, "one", {"spearman"}),
    ("monoskd", {"corr_group": 2}, "one", {"spearman"}),
    ("monoskd", {"strength": 1e-3}, "one", {"spearman"}),
    ("monoskd", {"affinity_div": None}, "one", {"affinity"}),
    ("monoskd", {"affinity_norm": "cosine"}, "one", {"affinity"}),
    ("monoskd", {"mask_rows": "zero_rows"}, "ignored", {"response"}),
    ("monostl", {"fd_weight": "teacher"}, "one", {"dasfd"}),
    ("monostl", {"fd_weight": "none"}, "one", {"dasfd"}),
    ("monostl", {"fd_divisor": 1.0}, "one", {"dasfd"}),
    ("monostl", {"box_slice": "python"}, "border", {"dasfd"}),
    ("monostl", {"overlap": "last"}, "pair", {"dasfd"}),
    ("monostl", {"valid_rows": "sentinel"}, "pair", set()),
    ("monostl", {"rd_uncertainty": "own_side"}, "pair", {"dasrd"}),
    ("monostl", {"rd_uncertainty": "none"}, "pair", {"dasrd"}),
    ("monostl", {"rd_norm": "mean"}, "pair", {"dasrd"}),
    ("monostl", {"rd_norm": "cosine"}, "pair", {"dasrd"}),
    ("monostl", {"rd_scope": "image"}, "pair", set()),  # the other images are empty
    ("monostl", {"response_mask": "soft"}, "one", {"response"}),
]


@pytest.mark.parametrize(("method", "change", "scene", "expected"), OPTIONS)
def test_options_change_what_they_should(method: str, change: dict[str, Any], scene: str, expected: set[str]) -> None:
    batch = 3

    def values(config: StyledConfig) -> dict[str, float]:
        context = make_context(scene, batch)
        return {t.name: float(t(context).detach()) for t in make_terms(config)}

    before, after = values(CONFIGS[method]), values(replace(CONFIGS[method], **change))
    assert {n for n in before if before[n] != pytest.approx(after[n], rel=1e-6, nan_ok=False)} == expected


@pytest.mark.parametrize("mask", ["binary", "zero_rows", "soft"])
def test_response_region(mask: Any) -> None:
    """Only eligible lines make a region; with ``zero_rows`` the others mark the first cell."""
    targets, size = make_targets("ignored", 2), (24, 40)
    region = responses.response_region(targets, 4, size, mask) > 0
    eligible = gaussian_mask(targets.box2d, targets.eligible, 4, size)
    assert eligible[0].any()
    assert not eligible[0, 0, 0]
    eligible[0, 0, 0] |= mask == "zero_rows"
    assert torch.equal(region, eligible)


def test_monoskd_leaves_out_terms_of_weight_zero() -> None:
    assert [t.name for t in make_terms(MonoSKDConfig(affinity_weight=0.0))] == ["spearman", "response"]


def test_spearman_modes_see_what_they_claim() -> None:
    """A monotone map of the teacher changes no rank; a monotone map of the student only matters where it is raw."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(mode: Any, s: Tensor, t: Tensor) -> float:
        config = MonoSKDConfig(spearman_mode=mode, rank_smoothness=1e-3)
        return float(monoskd.spearman_loss([(s, t)], config))

    for mode, teacher_ranked, student_ranked in (
        ("released", False, False), ("teacher_rank", True, False), ("both_rank", True, True),
    ):  # fmt: skip
        plain = loss(mode, student, teacher)
        assert (loss(mode, student, teacher.exp()) == pytest.approx(plain, abs=1e-9)) == teacher_ranked
        assert (loss(mode, student.exp(), teacher) == pytest.approx(plain, abs=1e-9)) == student_ranked
    assert loss("both_rank", teacher**3, teacher) == pytest.approx(0, abs=1e-6)
    assert loss("both_rank", -teacher, teacher) == pytest.approx(2, abs=1e-6)


#: Imports each module in a process of its own, which has torch alone from its parent.
IMPORT_FIRST = """
import importlib, os, sys
import numpy, torch
for module in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(module)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0, module
"""


def test_each_module_can_be_imported_first() -> None:
    modules = [
        f"distill3d.distill.{name}" for name in ("methods", "methods.mixed", "methods.monostl", "context", "responses")
    ]
    subprocess.run([sys.executable, "-c", IMPORT_FIRST, *modules], check=True)
