"""CMKD and MonoTAKD on made-up BEV networks' outputs: finite, frame by frame, and gradients where they belong."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import cars, make_batch
from torch import Tensor

from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.detectors.monodle import tiny
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms, method_name
from distill3d.distill.methods.cmkd import BACKGROUND_WEIGHT, CMKDConfig, anchor_weight, cell_weight, feature_loss
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.distill.methods.monodistill import MonoDistillConfig
from distill3d.distill.methods.monoskd import MonoSKDConfig
from distill3d.distill.methods.monotakd import MonoTAKDConfig, frames_with_depth, normalised, of_frames, residual
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.settings import to_plain

GRID = BevGeometry((2.0, -3.0, 6.0, 3.0), 0.5)
ROWS, COLUMNS, CHANNELS = 12, 8, 5
ANCHORS, CLASSES, BOX_CODE, DIRECTIONS = 6, 3, 7, 2
TAPS = ("bev", "bev_spatial", "bev_assistant")
HEADS = {"cls": ANCHORS * CLASSES, "box": ANCHORS * BOX_CODE, "dir": ANCHORS * DIRECTIONS}
RESPONSES = {"response_cls", "response_loc", "response_dir"}
CONFIGS: dict[str, StyledConfig] = {
    "cmkd": CMKDConfig(teacher="teacher"),
    "cmkd-intended": CMKDConfig.styled("intended", teacher="teacher"),
    "cmkd-sum": CMKDConfig(teacher="teacher", feature_form="sum"),
    "monotakd": MonoTAKDConfig(),
    "monotakd-released": MonoTAKDConfig.styled("released"),
    "monotakd-intended": MonoTAKDConfig.styled("intended"),
    "monotakd-minmax": MonoTAKDConfig(normalise="minmax", nonzero_weighting=True),
    "monotakd-signed": MonoTAKDConfig(residual="signed", residual_form="binarise"),
    "monotakd-whole": MonoTAKDConfig(residual="signed", residual_form="none"),
}


def make_outputs(batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    """Maps as after a ReLU, a third of their cells empty; few anchors are sure of anything."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    features = {tap: noise(CHANNELS, ROWS, COLUMNS).abs() * (noise(1, ROWS, COLUMNS) > -0.4) for tap in TAPS}
    heads = {head: noise(ROWS, COLUMNS, channels) for head, channels in HEADS.items()}
    heads["cls"] = 2 * heads["cls"] - 4
    return Outputs(
        {tap: FeatureMap(maps.to(dtype).requires_grad_(), GRID) for tap, maps in features.items()},
        {head: maps.to(dtype).requires_grad_() for head, maps in heads.items()},
    )


def with_map(outputs: Outputs, tap: str, maps: Tensor) -> Outputs:
    return replace(outputs, features=outputs.features | {tap: FeatureMap(maps, GRID)})


def make_context(batch: int = 2, dtype: torch.dtype = torch.float32, scene: str = "plain") -> Context:
    """What three networks say of frames with depth; ``scene`` breaks careless divisions."""
    generator = torch.Generator().manual_seed(0)
    frames = make_batch([cars(0, generator)] * batch, generator)
    student, teacher, assistant = (make_outputs(batch, seed, dtype) for seed in (1, 2, 3))
    nothing = torch.zeros(batch, CHANNELS, ROWS, COLUMNS, dtype=dtype)
    assert frames.depth is not None
    match scene:
        case "no positives":
            teacher = replace(teacher, predictions=teacher.predictions | {"cls": torch.full_like(
                teacher.predictions["cls"], -30.0)})  # fmt: skip
        case "one without positives":
            teacher.predictions["cls"].data[0] = -30
        case "empty maps":
            teacher, assistant = (with_map(o, "bev", nothing) for o in (teacher, assistant))
        case "dead student":
            for tap in TAPS:
                student = with_map(student, tap, nothing.clone().requires_grad_())
        case "assistant as good":
            shared = teacher.features["bev"].tensor.detach()
            assistant, student = with_map(assistant, "bev", shared), with_map(student, "bev_assistant", shared)
        case "one without depth":
            frames.depth[0] = 0
        case "all without depth":
            frames.depth[:] = 0
        case "no depth maps":
            frames = replace(frames, depth=None)
    return Context(student, {"teacher": teacher, "assistant": assistant}, frames, None)


SCENES = (
    "plain", "no positives", "one without positives", "empty maps", "dead student", "assistant as good",
    "one without depth", "all without depth", "no depth maps",
)  # fmt: skip


def make_terms(config: StyledConfig) -> list[Term]:
    channels: dict[str, int] = {tap: CHANNELS for tap in TAPS}
    return build_terms(config, channels, channels)


def values(config: StyledConfig, context: Context) -> dict[str, float]:
    return {term.name: float(term(context).detach()) for term in make_terms(config)}


def leaves(outputs: Outputs) -> dict[str, Tensor]:
    return {tap: f.tensor for tap, f in outputs.features.items()} | outputs.predictions


def frames(outputs: Outputs, keep: list[int]) -> Outputs:
    return Outputs(
        {tap: FeatureMap(f.tensor[keep], f.geometry) for tap, f in outputs.features.items()},
        {head: p[keep] for head, p in outputs.predictions.items()},
    )


def selected(context: Context, keep: list[int]) -> Context:
    """Some frames of a batch, with what all networks said of them."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(0, generator)] * len(keep), generator)
    depth = context.batch.depth
    batch = replace(batch, depth=None if depth is None else depth[keep])
    return Context(
        frames(context.student, keep), {name: frames(o, keep) for name, o in context.teachers.items()}, batch, None
    )


# ------------------------------------------------------------------------------------------------------ every situation


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", CONFIGS)
def test_finite_and_differentiable_in_every_scene(name: str, scene: str, batch: int) -> None:
    context = make_context(batch, scene=scene)
    terms = make_terms(CONFIGS[name])
    for term in terms:
        value = term(context)
        assert value.shape == () and value.dtype == torch.float32
        assert bool(value.isfinite()) and float(value.detach()) >= 0, term.name
        if value.requires_grad:
            value.backward()
    gradients = {n: p.grad for n, p in leaves(context.student).items() if p.grad is not None}
    assert gradients
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert all(p.grad is None for outputs in context.teachers.values() for p in leaves(outputs).values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_half_precision_networks(name: str, autocast: bool) -> None:
    rounded, exact = make_context(3, torch.bfloat16), make_context(3)
    for term in make_terms(CONFIGS[name]):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = term(rounded)
        assert value.dtype == torch.float32
        assert float(value.detach()) == pytest.approx(float(term(exact).detach()), rel=0.1), term.name
        if value.requires_grad:
            value.backward()
    assert all(bool(p.grad.isfinite().all()) for p in leaves(rounded.student).values() if p.grad is not None)


#: Which of the student's outputs each feature term teaches.
REACH: dict[str, dict[str, set[str]]] = {
    "cmkd": {"bev": {"bev"}},
    "cmkd-intended": {"bev": {"bev"}},
    "cmkd-sum": {"bev": {"bev"}},
    "monotakd": {"imd": {"bev"}, "cmrd": {"bev_spatial"}},
    "monotakd-released": {"imd": set(), "cmrd": {"bev_spatial"}},
    "monotakd-intended": {"imd": {"bev"}, "cmrd": {"bev_spatial"}},
    "monotakd-minmax": {"imd": {"bev"}, "cmrd": {"bev_spatial"}},
    "monotakd-signed": {"imd": {"bev"}, "cmrd": {"bev_spatial"}},
    "monotakd-whole": {"imd": {"bev"}, "cmrd": {"bev_spatial"}},
}
RESPONSE_REACH = {"response_cls": {"cls"}, "response_loc": {"box"}, "response_dir": {"dir"}}


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_exactly_what_they_should(name: str) -> None:
    expected = REACH[name] | RESPONSE_REACH
    terms = make_terms(CONFIGS[name])
    assert [t.name for t in terms] == list(expected)
    for term in terms:
        context = make_context()
        assert not list(term.parameters())
        value = term(context)
        if value.requires_grad:
            value.backward()
        reached = {n for n, p in leaves(context.student).items() if p.grad is not None and bool(p.grad.any())}
        assert reached == expected[term.name], term.name
        assert all(p.grad is None for outputs in context.teachers.values() for p in leaves(outputs).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_terms_that_do_not_couple_the_batch_are_means_over_frames(name: str) -> None:
    context = make_context(3)
    for term in make_terms(CONFIGS[name]):
        alone = [float(term(selected(context, [i])).detach()) for i in range(3)]
        mean = pytest.approx(sum(alone) / 3, rel=1e-5)
        assert (float(term(context).detach()) == mean) or term.couples_batch, term.name


def test_the_released_class_loss_is_a_sum_over_frames() -> None:
    twice, once = selected(make_context(1), [0, 0]), make_context(1)
    for over_batch, factor in ((False, 2), (True, 1)):
        config = CMKDConfig(teacher="teacher", cls_over_batch=over_batch)
        single, double = values(config, once), values(config, twice)
        assert double.pop("response_cls") == pytest.approx(factor * single.pop("response_cls"), rel=1e-5)
        assert double == pytest.approx(single, rel=1e-5)


# ------------------------------------------------------------------------------------------------- frames without depth


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("monotakd")])
def test_frames_without_depth_do_not_count(name: str) -> None:
    """IMD and CMRD of the others are as without them, whatever the networks say there; responses do count them."""
    context = make_context(3)
    assert context.batch.depth is not None
    context.batch.depth[1] = 0
    for outputs in (context.student, *context.teachers.values()):
        for feature in outputs.features.values():
            feature.tensor.data[1] = 1e6
    others = selected(context, [0, 2])
    for term in make_terms(CONFIGS[name]):
        value = term(context)
        alike = float(value.detach()) == pytest.approx(float(term(others).detach()), rel=1e-6)
        assert alike == (term.name not in RESPONSES), term.name
        if term.name not in RESPONSES and value.requires_grad:
            value.backward()
    gradients = [f.tensor.grad for f in context.student.features.values() if f.tensor.grad is not None]
    assert gradients
    assert all(not g[1].any() and bool(g[[0, 2]].any()) for g in gradients)


@pytest.mark.parametrize("scene", ["all without depth", "no depth maps"])
@pytest.mark.parametrize("name", ["monotakd", "monotakd-released"])
def test_without_any_depth_features_teach_nothing(name: str, scene: str) -> None:
    said = values(CONFIGS[name], make_context(scene=scene))
    assert {term for term, value in said.items() if value == 0} == {"imd", "cmrd"}


def test_maps_are_copied_only_where_a_frame_is_left_out() -> None:
    maps = torch.arange(6.0).view(3, 1, 2, 1)
    assert of_frames(torch.tensor([True] * 3), maps, maps)[1] is maps
    torch.testing.assert_close(of_frames(torch.tensor([True, False, True]), maps)[0], maps[[0, 2]])


def test_one_known_pixel_is_depth() -> None:
    batch = make_context(3).batch
    assert batch.depth is not None
    batch.depth[1:] = 0
    batch.depth[2, 0, 5, 7] = 3.5
    assert frames_with_depth(batch).tolist() == [True, False, True]


# -------------------------------------------------------------------------------------------------------------- options

#: An option away from the default changes the terms named and no other.
OPTIONS: list[tuple[str, dict[str, Any], set[str]]] = [
    ("cmkd", {"feature_form": "sum"}, {"bev"}),
    ("cmkd", {"nonzero_weighting": True}, {"bev"}),
    ("cmkd-sum", {"nonzero_weighting": True}, set()),
    ("cmkd", {"cls_over_batch": True}, {"response_cls"}),
    ("cmkd", {"positive": 0.3}, RESPONSES),
    ("cmkd", {"teacher": "assistant"}, RESPONSES | {"bev"}),
    ("cmkd", {"feature_weight": 4.0}, set()),  # the weight is not in the value
    ("monotakd", {"imd_gradient": False}, set()),
    ("monotakd", {"normalise": "minmax"}, {"imd", "cmrd"}),
    ("monotakd", {"nonzero_weighting": True}, {"imd", "cmrd"}),
    ("monotakd", {"shared_assistant": True}, {"imd", "cmrd"}),
    ("monotakd", {"residual": "signed"}, {"cmrd"}),
    ("monotakd", {"residual_form": "binarise"}, {"cmrd"}),
    ("monotakd", {"residual_form": "none"}, {"cmrd"}),
    ("monotakd", {"threshold": 0.2}, {"cmrd"}),
    ("monotakd", {"tap": "bev_assistant"}, {"imd", "cmrd"}),
    ("monotakd", {"spatial_tap": "bev"}, {"cmrd"}),
    ("monotakd", {"assistant": "teacher"}, {"imd", "cmrd"}),
]


@pytest.mark.parametrize(("name", "change", "expected"), OPTIONS)
def test_options_change_what_they_should(name: str, change: dict[str, Any], expected: set[str]) -> None:
    before, after = (values(config, make_context(3)) for config in (CONFIGS[name], replace(CONFIGS[name], **change)))
    assert {n for n in before if before[n] != pytest.approx(after[n], rel=1e-6)} == expected


#: Of responses on surround views: as released, as intended, by default.
SURROUND = {
    "soft_focal": ("logits", "probabilities", "probabilities"), "box_weight": ("of_sum", "probability", "probability"),
    "box_mean": ("cells", "positives", "cells"),
}  # fmt: skip
STYLES: dict[str, tuple[Any, dict[str, tuple[Any, ...]]]] = {  # released, intended, default
    "cmkd": (CMKDConfig, {
        "cls_over_batch": (False, True, False), "nonzero_weighting": (False, True, False),
        "teacher_bn": ("eval", "eval", "eval"), **SURROUND,
    }),
    "monotakd": (MonoTAKDConfig, {
        "imd_weight": (1.0, 1.0, 1.0), "cmrd_weight": (0.2, 1.0, 0.2), "shared_assistant": (True, False, False),
        "imd_gradient": (False, True, True), "normalise": ("minmax", "none", "none"), "residual": ("abs",) * 3,
        "residual_form": ("zero_below",) * 3, "cls_over_batch": (False, True, False), "teacher_bn": ("eval",) * 3,
        **SURROUND,
    }),
}  # fmt: skip


@pytest.mark.parametrize("method", STYLES)
def test_styles(method: str) -> None:
    kind, table = STYLES[method]
    for column, config in enumerate((kind.styled("released"), kind.styled("intended"), kind())):
        assert {name: getattr(config, name) for name in table} == {n: row[column] for n, row in table.items()}
    assert {f.name for f in fields(kind) if "released" in f.metadata} == set(table)
    assert method_name(kind()) == method
    assert kind().style is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CMKDConfig(), {"bev": 32, "response_cls": 2, "response_loc": 2, "response_dir": 0.4}),
        (CMKDConfig(cls_weight=1, dir_weight=0), {"bev": 32, "response_cls": 1, "response_loc": 2}),
        (CMKDConfig(cls_weight=0, loc_weight=0, dir_weight=0), {"bev": 32}),
        (CMKDConfig(feature_weight=0, loc_weight=0, dir_weight=0), {"response_cls": 2}),
        (MonoTAKDConfig(cls_weight=0, loc_weight=0, dir_weight=0), {"imd": 1, "cmrd": 0.2}),
        (MonoTAKDConfig(cls_weight=0, loc_weight=0, dir_weight=0, outer_weight=32), {"imd": 32, "cmrd": 6.4}),
        (MonoTAKDConfig(imd_weight=0, loc_weight=0, dir_weight=0), {"cmrd": 0.2, "response_cls": 2}),
    ],
)
def test_weights(config: StyledConfig, expected: dict[str, float]) -> None:
    assert {term.name: term.weight for term in make_terms(config)} == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------------ the maths


@pytest.mark.parametrize(
    ("mode", "form", "expected"),
    [
        ("abs", "none", [2.0, 1.0, 0.875, 0.0, 1.5]),
        ("abs", "zero_below", [2.0, 1.0, 0.0, 0.0, 1.5]),  # 1 is half of 2, and kept
        ("abs", "binarise", [1.0, 1.0, 0.0, 0.0, 1.0]),
        ("signed", "none", [2.0, 1.0, 0.875, 0.0, -1.5]),
        ("signed", "zero_below", [2.0, 1.0, 0.0, 0.0, 0.0]),
        ("signed", "binarise", [1.0, 1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_residual(mode: Any, form: Any, expected: list[float]) -> None:
    config = MonoTAKDConfig(residual=mode, residual_form=form, threshold=0.5)
    teacher = torch.tensor([3.0, 2.0, 1.875, 1.0, 0.0]).reshape(1, 1, 1, 5)
    assistant = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.5]).reshape(1, 1, 1, 5)
    assert residual(teacher, assistant, config).flatten().tolist() == expected
    if form != "none":
        assert not residual(assistant, assistant, config).any()


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_minmax_does_not_see_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = maps.clone()
    scaled = normalised(maps, "minmax")
    assert torch.equal(maps, before)
    assert float(scaled.amin()) == 0 and float(scaled.amax()) == 1
    torch.testing.assert_close(normalised(scale * maps + shift, "minmax"), scaled, rtol=0, atol=1e-9)
    assert not normalised(torch.full_like(maps, shift), "minmax").any()


def test_cells_without_features_count_less() -> None:
    teacher, student = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    teacher[0, :, 0, 1] = torch.tensor([3.0, 4.0])
    student[0, :, 0, 0] = 1.0
    assert cell_weight(teacher, False).flatten().tolist() == [1, 1]
    assert cell_weight(teacher, True).flatten().tolist() == pytest.approx([BACKGROUND_WEIGHT, 1])
    expected = (2 * BACKGROUND_WEIGHT + 9 + 16) / (2 * (1 + BACKGROUND_WEIGHT))
    assert float(feature_loss(student, teacher, weight=cell_weight(teacher, True))) == pytest.approx(expected)


def test_anchor_weight() -> None:
    """Of two anchors with an object the one with two counts more; without any all are 0."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, -30.0], [-30.0, -30.0]], [[-30.0, -30.0]] * 3])
    assert anchor_weight(logits, 0.1)[0].tolist() == pytest.approx([0.5, 0.25, 0.0])
    assert not anchor_weight(logits, 0.1)[1].any()


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    context = make_context()
    alike = replace(context, teachers={"teacher": context.student, "assistant": context.student})
    for name in ("cmkd", "cmkd-sum", "monotakd"):
        said = values(CONFIGS[name], alike)
        # CMRD asks for the residual, not for the teacher; and a hard choice of direction keeps its entropy
        assert {term for term, value in said.items() if value > 0} == set(said) & {"cmrd", "response_dir"}


# -------------------------------------------------------------------------------------------------- mixtures, refusals


def test_mixtures_build() -> None:
    skd = MonoSKDConfig(taps=("bev",), affinity_weight=0.0, response_weight=0.0)
    features = CMKDConfig(cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
    context = make_context()
    context = replace(context, teachers={"teacher": context.teachers["teacher"]})
    mixture = MixedConfig((features, skd))
    said = values(mixture, context)
    assert set(said) == {"cmkd.bev", "monoskd.spearman"}
    assert said["cmkd.bev"] == values(features, context)["bev"]
    assert method_name(mixture) == "cmkd+monoskd"
    assert (mixture.teacher_bn, mixture.depth_input) == ("eval", skd.depth_input)


def test_mixtures_of_two_teachers_name_them() -> None:
    responses = CMKDConfig(feature_weight=0.0, teacher="assistant")
    takd = MonoTAKDConfig(cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
    mixture = MixedConfig((takd, responses))
    assert set(values(mixture, make_context())) == {"monotakd.imd", "monotakd.cmrd"} | {f"cmkd.{r}" for r in RESPONSES}
    with pytest.raises(UserError, match="depth images"):
        _ = mixture.depth_input
    with pytest.raises(UserError, match="teacher_bn"):
        MixedConfig((takd, MonoDistillConfig(teacher_bn="train")))


def test_teachers_by_name() -> None:
    context = make_context()
    assert context.named("assistant") is context.teachers["assistant"]
    alone = replace(context, teachers={"lidar": context.teachers["teacher"]})
    assert alone.named(None) is alone.teacher is alone.teachers["lidar"]
    for case, name, message in (
        (context, None, "asks for a single teacher; the student's teachers are teacher, assistant"),
        (context, "second", "asks for a teacher named 'second'; the student's teachers are teacher, assistant"),
        (alone, "teacher", "asks for a teacher named 'teacher'; the student's teachers are lidar"),
    ):
        with pytest.raises(UserError, match=message):
            case.named(name)


def changed(outputs: Outputs, tap: str, change: str) -> Outputs:
    feature = outputs.features[tap]
    other = {
        "extent": FeatureMap(feature.tensor, replace(GRID, extent=(0.0, -3.0, 4.0, 3.0))),
        "cells": FeatureMap(feature.tensor[..., 1:], GRID),
        "channels": FeatureMap(feature.tensor[:, 1:], GRID),
    }
    kept = {name: f for name, f in outputs.features.items() if name != tap}
    return replace(outputs, features=kept | ({tap: other[change]} if change != "missing" else {}))


SENTENCES = {"extent": "on different grids", "cells": "cells in the", "channels": "4 in the", "missing": "has no tap"}
#: Settings, whose map is changed, and which of the terms look at it.
LOOKS = [
    ("cmkd", "teacher", "bev", {"bev"}),
    ("cmkd", "student", "bev", {"bev"}),
    ("monotakd", "teacher", "bev", {"cmrd"}),
    ("monotakd", "assistant", "bev", {"imd", "cmrd"}),
    ("monotakd", "student", "bev_spatial", {"cmrd"}),
    ("monotakd-released", "student", "bev_assistant", {"imd", "cmrd"}),
]


@pytest.mark.parametrize("change", SENTENCES)
@pytest.mark.parametrize(("name", "who", "tap", "looking"), LOOKS)
def test_other_grids_are_refused(name: str, who: str, tap: str, looking: set[str], change: str) -> None:
    context = make_context()
    everyone = {"student": context.student} | context.teachers
    everyone[who] = changed(everyone[who], tap, change)
    student = everyone.pop("student")
    context = replace(context, student=student, teachers=everyone)
    message = SENTENCES[change] if (change, who) != ("channels", "student") else "has [45] channels"
    for term in make_terms(CONFIGS[name]):
        if term.name in looking:
            with pytest.raises(ValueError, match=message):
                term(context)


@pytest.mark.parametrize("change", ["extent", "cells", "missing"])
def test_responses_of_other_grids_are_refused(change: str) -> None:
    context = make_context()
    other = changed(context.teachers["teacher"], "bev", change)
    for term in make_terms(CONFIGS["cmkd"]):
        with pytest.raises(ValueError, match=SENTENCES[change]):
            term(replace(context, teachers={"teacher": other}))


def test_responses_need_anchor_maps_of_one_shape() -> None:
    context = make_context()
    heads = context.student.predictions
    for other, message in (
        ({"heatmap": heads["cls"]}, "the student predicts heatmap: set cls_weight, loc_weight and dir_weight to 0"),
        ({}, "the student predicts nothing"),
        (heads | {"cls": heads["cls"][..., CLASSES:]}, "anchor map 'cls' is .*give both the same classes and anchors"),
    ):
        student = replace(context.student, predictions=other)
        for term in make_terms(CONFIGS["monotakd"]):
            if term.name in RESPONSES:
                with pytest.raises(UserError, match=message):
                    term(replace(context, student=student))


def test_the_first_named_teacher_tells_its_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill3d.train import loop
    from distill3d.train.checkpoint import save_weights
    from distill3d.train.recipe import StageConfig
    from distill3d.train.teachers import Teacher

    config = tiny()
    card = {"detector": detector_name(config), "config": to_plain(config), "trained_on": {"frames": []}}
    save_weights(tmp_path / "network", build_detector(config).state_dict(), card)
    teachers = {name: Teacher(tmp_path / "network") for name in ("assistant", "lidar")}
    for channels, teacher in enumerate(teachers.values()):
        teacher.detector.tap_channels = {"bev": channels}
    asked = []
    monkeypatch.setattr(loop, "build_terms", lambda method, student, teacher: asked.append(teacher) or [])
    method = MonoTAKDConfig(teacher="lidar")
    stage = StageConfig("student", "student", config, teachers=("lidar", "assistant"), method=method)
    loop.build_step(stage, teachers)
    assert asked == [{"bev": 1}]
