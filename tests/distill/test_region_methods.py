"""Methods on regions of ground maps: every scene, who learns, what several processes see, and what is refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_surround_methods import ASSISTANT, CLASSES, LIDAR, REACH, STUDENT, build, scene
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch, SurroundObjects
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Outputs
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.centerpoint import CenterPoint
from distill3d.distill.adapters import MapAdaptor
from distill3d.distill.adversary import MapDiscriminator, gradient_reversed, told_apart
from distill3d.distill.context import Context, detached
from distill3d.distill.ground_regions import (
    at_size,
    connected_parts,
    false_positive_scale,
    footprint_cells,
    footprint_regions,
)
from distill3d.distill.map_attention import channel_attention, spatial_attention
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.distillbev import BEVFORMER, DistillBEVConfig, in_axes
from distill3d.distill.methods.vcd import VCDConfig, heatmaps, motion_loss, motion_mask
from distill3d.distill.methods.x3kd import X3KDConfig, only_sure, segmentation_loss, segmentation_targets
from distill3d.distill.occupancy import object_volume, occupancy
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.instances import STEP
from distill3d.layers.points.voxels import VoxelGrid

#: Taps that both networks have, whatever others they are given: a coarser map of the student beside a finer one of the
#: teacher, and the maps that the heads see.
LEVELS: dict[str, Any] = {
    "taps": ("bev_stage1", "bev_neck"), "teacher_taps": ("bev_0", "bev_0"), "teacher_pooling": ("none", "none"),
    "adaptors": ("upsample_3layer", "1x1conv"),
}  # fmt: skip
#: Adaptors without batch norm: what a moment gives then does not depend on the others.
ALONE: dict[str, Any] = LEVELS | {"adaptors": ("upsample_1x1conv", "1x1conv")}
DISTILLBEV = {"foreground": 6e-3, "background": 4e-2, "spatial": 2.5e-3, "false_positive": 6e-2}
VOXELS = VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (0.8, 0.8, 2.0))
VCD: dict[str, Any] = {"voxels": VOXELS, "empty": "zero"}
#: Settings, and the terms' weights.
METHODS: dict[str, tuple[StyledConfig, dict[str, float]]] = {
    "distillbev": (DistillBEVConfig(**LEVELS), DISTILLBEV),
    "distillbev released": (DistillBEVConfig.styled("released", **LEVELS), DISTILLBEV),
    "distillbev intended": (DistillBEVConfig.styled("intended", **LEVELS), DISTILLBEV),
    "distillbev, every term": (
        DistillBEVConfig(**LEVELS, channel_weight=0.25, channel_attention=True, attention="teacher", margin=2,
                         false_positives="teacher_or_student_alone", false_positive_scale="component"),
        DISTILLBEV | {"channel": 0.25},
    ),
    "distillbev, walked": (
        DistillBEVConfig(**LEVELS, false_positives="student", false_positive_scale="visits"), DISTILLBEV,
    ),
    "distillbev, boxes": (DistillBEVConfig(**ALONE, false_positives="teacher_boxes", box_axes="xy"), DISTILLBEV),
    "distillbev alone": (DistillBEVConfig(**ALONE), DISTILLBEV),
    "distillbev, bevformer": (
        DistillBEVConfig(**BEVFORMER | {"teacher_taps": ("bev_0",)}),
        {"foreground": 5e-3, "background": 4e-3, "spatial": 5e-4},
    ),
    "vcd": (VCDConfig(**VCD), {"bev": 0.4}),
    "vcd released": (
        VCDConfig.styled("released", **VCD, occupancy_weight=0.4), {"bev": 0.4, "occupancy": 0.4}
    ),
    "vcd intended": (
        VCDConfig.styled("intended", **VCD, occupancy_weight=0.4), {"bev": 0.4, "occupancy": 0.4}
    ),
    "vcd, one frame": (VCDConfig(**VCD, past_frames=0, distance="relative_l2"), {"bev": 0.4}),
    "x3kd": (X3KDConfig(teacher_tap="bev_0"), {"feature": 1.0, "adversary": 1.0, "response": 1.0}),
    "x3kd, mean square": (
        X3KDConfig(teacher_tap="bev_0", distance="l2", response_weight=0.0), {"feature": 1.0, "adversary": 1.0}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def teachers() -> dict[str, Detector]:
    """By what they are shown."""
    built = {"points": build(CenterPoint, LIDAR, 1), "depth": build(BEVDepth, ASSISTANT, 2)}
    return {shown: detector.eval().requires_grad_(False) for shown, detector in built.items()}


def said(config: StyledConfig, batch: SurroundBatch, teachers: dict[str, Detector]) -> tuple[Context, list[Term]]:
    """What a student and the method's teacher say of a batch, and the method's terms; VCD's teacher is a camera's with
    the LiDAR's depth."""
    teacher = teachers["depth" if isinstance(config, VCDConfig) else "points"]
    student = build(BEVDepth, STUDENT, 0).train()
    targets = student.encode(batch)
    context = Context(
        student(batch), {"teacher": detached(teacher(batch))}, batch, targets, student, {"teacher": teacher}
    )
    torch.manual_seed(0)
    return context, build_terms(config, student.tap_channels, teacher.tap_channels)


def total(context: Context, terms: list[Term]) -> Tensor:
    return torch.stack([term.weight * term(context) for term in terms]).sum()


# ------------------------------------------------------------------------------------------------------ every situation


def moved_away(batch: SurroundBatch) -> SurroundBatch:
    """The objects are outside the ground that maps cover."""
    assert batch.objects is not None
    return replace(batch, objects=replace(batch.objects, centre=batch.objects.centre + 3 * REACH))


def without_velocity(batch: SurroundBatch) -> SurroundBatch:
    assert batch.objects is not None
    unknown = torch.full_like(batch.objects.velocity, torch.nan)
    return replace(batch, objects=replace(batch.objects, velocity=unknown))


SCENES: dict[str, Callable[[], SurroundBatch]] = {
    "one object": lambda: scene(1),
    "no object": lambda: scene(0, 0),
    "one moment without objects": lambda: scene(0, 5),
    "crowd": lambda: scene(120),
    "objects outside the ground": lambda: moved_away(scene(4, 2)),
    "unknown velocity": lambda: without_velocity(scene(4)),
}
#: Terms that teach something where there is no object at all.
WITHOUT_OBJECTS = {"background", "spatial", "channel", "false_positive", "feature", "adversary", "response"}
#: Less than this is left of a term by the voxels without an object, which count next to nothing.
NOTHING = 1e-4


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_finite_and_teach_the_student_alone(method: str, name: str, teachers: dict[str, Detector]) -> None:
    config, weights = METHODS[method]
    context, terms = said(config, SCENES[name](), teachers)
    assert {term.name: term.weight for term in terms} == weights
    losses = {term.name: term(context) for term in terms}
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() and v >= 0 for v in losses.values()), losses
    if name in ("no object", "objects outside the ground"):
        assert all(
            value <= NOTHING * (key == "occupancy") for key, value in losses.items() if key not in WITHOUT_OBJECTS
        ), losses
    torch.stack([term.weight * losses[term.name] for term in terms]).sum().backward()
    assert context.student_detector is not None
    gradients = {n: p.grad for n, p in context.student_detector.named_parameters() if p.grad is not None}
    assert {"backbone", "trunk", "neck"} <= {n.split(".")[0] for n in gradients}
    assert all(g.isfinite().all() for g in gradients.values())
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for term in terms for p in term.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str, teachers: dict[str, Detector]) -> None:
    """Under autocast the terms are those of full precision, as far as the networks' own maps are."""
    batch = scene(4, 2)
    config, _ = METHODS[method]
    context, terms = said(config, batch, teachers)
    exact = [float(term.eval()(context).detach()) for term in terms]
    half = {k: FeatureMap(f.tensor.bfloat16(), f.geometry) for k, f in context.student.features.items()}
    for autocast in (False, True):
        again = replace(context, student=Outputs(half, context.student.predictions))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = [term(again) for term in terms]
        assert all(v.dtype == torch.float32 for v in losses)
        assert [float(v.detach()) for v in losses] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_the_student_holds_nothing_of_the_method(method: str, teachers: dict[str, Detector]) -> None:
    context, terms = said(METHODS[method][0], scene(3), teachers)
    student = context.student_detector
    assert student is not None
    assert student.state_dict().keys() == build(BEVDepth, STUDENT, 3).state_dict().keys()
    owned = {id(p) for module in (student, *teachers.values()) for p in module.parameters()}
    learning = [p for term in terms for p in term.parameters()]
    assert bool(learning) != method.startswith("vcd")  # which compares maps as they are
    assert not any(id(p) in owned for p in learning)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"taps": ("bev_stage9", "bev_neck")}, "the student has no tap 'bev_stage9'; it offers bev, bev_stage1"),
        ({"teacher_taps": ("bev_9", "bev_0")}, "the teacher has no tap 'bev_9'; it offers bev_low, bev_0, bev_1"),
        ({"adaptors": ("1x1conv",)}, "2 taps, 2 teacher_taps, 1 adaptors, 2 teacher_pooling"),
        ({"false_positives": "none"}, "false_positive_weight must be 0"),
    ],
)
def test_settings_of_distillbev_that_do_not_fit(
    fields: dict[str, Any], words: str, teachers: dict[str, Detector]
) -> None:
    student = build(BEVDepth, STUDENT, 0)
    with pytest.raises(UserError, match=words):
        build_terms(DistillBEVConfig(**LEVELS | fields), student.tap_channels, teachers["points"].tap_channels)


def test_outputs_that_do_not_fit_distillbev(teachers: dict[str, Detector]) -> None:
    context, terms = said(METHODS["distillbev"][0], scene(2), teachers)
    (term, *_) = terms
    answer = context.teachers["teacher"]
    wide = BevGeometry((-2 * REACH, -REACH, REACH, REACH), 1.6, "ego")
    moved = replace(answer, features={k: FeatureMap(f.tensor, wide) for k, f in answer.features.items()})
    mute = replace(answer, predictions={})
    tapless = replace(answer, features={"bev_1": answer.features["bev_1"]})
    for other, words in (
        (moved, "give both the same range"),
        (mute, "the teacher predicts nothing: set false_positives to 'none'"),
        (tapless, "the teacher has no tap 'bev_0'; it offers bev_1"),
    ):
        with pytest.raises(UserError, match=words):
            term(replace(context, teachers={"teacher": other}))
    with pytest.raises(UserError, match="annotations"):
        term(replace(context, batch=replace(context.batch, objects=None)))
    with pytest.raises(UserError, match="annotations"):
        term(replace(context, targets=None))
    (odd, *_) = said(replace(DistillBEVConfig(), **LEVELS | {"adaptors": ("3layer", "1x1conv")}), scene(2), teachers)[1]
    with pytest.raises(UserError, match="'3layer' does not lead from a map of 8 x 8 cells to one of 16 x 16 cells"):
        odd(context)
    (boxes, *_) = said(METHODS["distillbev, boxes"][0], scene(2), teachers)[1]
    with pytest.raises(UserError, match="a teacher with a centre head"):
        boxes(replace(context, teacher_detectors={}))


def test_maps_of_other_sizes_are_not_laid_over_one_another() -> None:
    with pytest.raises(UserError, match="a map of 6 x 6 cells cannot be laid over one of 4 x 4 cells"):
        at_size(torch.zeros(1, 1, 6, 6), (4, 4))
    with pytest.raises(UserError, match="needs a square map"):
        in_axes(torch.zeros(1, 1, 4, 6, dtype=torch.bool), "xy")


@pytest.mark.parametrize(("kind", "tap"), [(VCDConfig, "tap"), (X3KDConfig, "tap"), (X3KDConfig, "teacher_tap")])
def test_missing_taps_are_told_with_those_that_there_are(kind: Any, tap: str, teachers: dict[str, Detector]) -> None:
    student, teacher = build(BEVDepth, STUDENT, 0), teachers["points"]
    who = {"tap": r"the student has no tap 'bev_9'; it offers bev, bev_stage1",
           "teacher_tap": r"the teacher has no tap 'bev_9'; it offers bev_low, bev_0, bev_1"}[tap]  # fmt: skip
    with pytest.raises(UserError, match=who):
        build_terms(kind(**{tap: "bev_9"}), student.tap_channels, teacher.tap_channels)


def test_vcd_compares_maps_of_as_many_channels(teachers: dict[str, Detector]) -> None:
    student = build(BEVDepth, STUDENT, 0)
    with pytest.raises(UserError, match="'bev_neck' has 32 channels in the student and 'bev_0' 10 in the teacher"):
        build_terms(VCDConfig(teacher_tap="bev_0"), student.tap_channels, teachers["points"].tap_channels)


@pytest.mark.parametrize("method", ["vcd", "x3kd"])
def test_other_grids_are_refused(method: str, teachers: dict[str, Detector]) -> None:
    context, terms = said(METHODS[method][0], scene(2), teachers)
    answer = context.teachers["teacher"]
    moved = BevGeometry((-REACH, -REACH, REACH, REACH), 0.8, "ego")
    other = replace(answer, features={k: FeatureMap(f.tensor, moved) for k, f in answer.features.items()})
    for term in terms:
        with pytest.raises(ValueError, match="different grids"):
            term(replace(context, teachers={"teacher": other}))


def test_outputs_that_do_not_fit_vcd(teachers: dict[str, Detector]) -> None:
    context, terms = said(METHODS["vcd intended"][0], scene(2), teachers)
    bev, occupied = terms
    with pytest.raises(UserError, match="vcd looks at labelled objects"):
        bev(replace(context, targets=None))
    for term in terms:
        with pytest.raises(UserError, match="a data set of surround views with annotations"):
            term(replace(context, batch=replace(context.batch, objects=None)))
    with pytest.raises(UserError, match="or past_frames 0"):
        bev(replace(context, student_detector=None))
    with pytest.raises(UserError, match="set occupancy_weight to 0"):
        occupied(replace(context, student_detector=teachers["points"]))
    with pytest.raises(UserError, match="the teacher lifts by none; set occupancy_weight to 0"):
        occupied(replace(context, teacher_detectors={"teacher": teachers["points"]}))
    short = replace(context.student, predictions={"depth": context.student.predictions["depth"][:, 1:]})
    with pytest.raises(UserError, match=r"depths have \(11, 2, 4\) bins and cells in the student and \(12, 2, 4\)"):
        occupied(replace(context, student=short))


# ------------------------------------------------------------------------------------------------------------------ VCD


def test_the_mask_lies_where_objects_are_and_were(teachers: dict[str, Detector]) -> None:
    """One that drives 8 m/s along x was 4 m further back half a second ago."""
    batch = scene(1)
    assert batch.objects is not None
    objects = replace(
        batch.objects, centre=torch.tensor([[[6.0, 2.0, 0.0]]]), size=torch.full((1, 1, 3), 1.5),
        velocity=torch.tensor([[[8.0, 0.0]]]),
    )  # fmt: skip
    config = VCDConfig(past_frames=2)
    context, _ = said(config, replace(batch, objects=objects), teachers)
    maps = heatmaps(context, config)
    assert len(maps) == 3
    for moment, found in enumerate(maps):
        column, row = int((6 - 4 * moment + REACH) // 1.6), int((2 + REACH) // 1.6)
        assert (found == 1).nonzero().tolist() == [[0, 0, row, column]]
    mask = motion_mask(maps)
    assert torch.equal(mask, torch.stack(maps).amax((0, 2))[:, None])
    still = replace(objects, velocity=torch.full((1, 1, 2), torch.nan))
    context, _ = said(config, replace(batch, objects=still), teachers)
    assert all(torch.equal(found, maps[0]) for found in heatmaps(context, config))


def test_the_motion_loss_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64) + 1 for _ in range(2))
    mask = torch.rand(2, 1, 4, 6, generator=generator, dtype=torch.float64) * (torch.arange(6) > 2)
    student.requires_grad_()
    normal = (teacher - teacher.mean((0, 2, 3), keepdim=True)) / (
        teacher.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    squares = (student - normal).square()
    squared = motion_loss(student, teacher, mask, VCDConfig())
    torch.testing.assert_close(squared, (squares * mask**2).sum() / mask.sum())
    once = motion_loss(student, teacher, mask, VCDConfig.styled("intended"))
    torch.testing.assert_close(once, (squares * mask).sum() / mask.sum() / 5)
    (gradient,) = torch.autograd.grad(squared, student)
    assert torch.equal(gradient.abs().sum(1, keepdim=True) > 0, mask > 0)
    few = 1e-3 * mask  # the divisor is at least 1
    torch.testing.assert_close(motion_loss(student, teacher, few, VCDConfig()), (squares * few**2).sum())


@pytest.mark.parametrize("distance", ["l2", "l1", "relative_l2", "channel_wise", "kl"])
def test_without_objects_nothing_is_taught(distance: Any) -> None:
    student, teacher = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(1, 4, 3, 3)
    nobody = torch.zeros(1, 1, 3, 3)
    loss = motion_loss(student, teacher, nobody, VCDConfig(distance=distance))
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient.any()
    if distance == "l2":
        assert loss == 0 and motion_loss(student, teacher, nobody, VCDConfig.styled("released")).isnan()


def test_occupancy_reaches_the_depth_network_alone(teachers: dict[str, Detector]) -> None:
    context, terms = said(METHODS["vcd intended"][0], scene(6), teachers)
    loss = terms[1](context)
    assert loss > 0
    loss.backward()
    assert context.student_detector is not None
    parameters = context.student_detector.named_parameters()
    assert {n.split(".")[0] for n, p in parameters if p.grad is not None and p.grad.any()} == {"backbone"}


@pytest.mark.parametrize("style", ["released", "intended"])
def test_occupancy_point_by_point(style: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    grid = VoxelGrid((-4.0, -4.0, -2.0, 4.0, 4.0, 2.0), (1.0, 1.0, 2.0))
    points = 12 * torch.rand(2, 3, 4, 2, 5, 3, generator=generator, dtype=torch.float64) - 6
    probability = torch.rand(2, 3, 4, 2, 5, generator=generator)
    expected = torch.zeros(2, *grid.shape)
    for place in (probability >= 0).nonzero().tolist():
        at = [
            (float(v) + shift) / side for v, shift, side in zip(points[tuple(place)], (4, 4, 2), grid.cell, strict=True)
        ]
        cell = [math.trunc(v) if style == "released" else math.floor(v) for v in at]
        if all(0 <= c < n for c, n in zip(cell, grid.shape, strict=True)):
            expected[place[0], *cell] += probability[tuple(place)]
    found = occupancy(probability, points, grid, style)
    torch.testing.assert_close(found, expected.sigmoid() - 0.5)


def test_objects_in_the_volume() -> None:
    """Peaks of 1 at centres, falling with each axis's own deviation; what lies outside is left out."""
    grid = VoxelGrid((-8.0, -8.0, -2.0, 8.0, 8.0, 2.0), (0.5, 0.5, 0.5))
    objects = objects_at((1.1, -2.1, 4, 2, 0), (30, 0, 4, 2, 0), (-8.2, 0.1, 4, 2, 0))
    volume = object_volume(objects, grid)
    assert volume.shape == (1, 32, 32, 8)
    assert (volume == 1).nonzero().tolist() == [[0, 18, 11, 4]]
    radius = (round(float(torch.log(volume[0, 19, 11, 4]) * -2) ** -0.5 * 6) - 1) / 2  # of sigma = (2 r + 1) / 6
    sigma = (2 * radius + 1) / 6
    assert float(volume[0, 20, 12, 4]) == pytest.approx(math.exp(-5 / (2 * sigma**2)), rel=1e-4)
    (released,) = object_volume(objects, grid, "released", (32, 32))
    assert (released == 1).nonzero().tolist() == [[11, 18, 4], [16, 0, 4]]  # y, x; and one of voxel -0.4
    assert not object_volume(objects_at(), grid).any()
    dropped = object_volume(objects, grid, "released", (16, 16))[0]
    assert (dropped == 1).nonzero().tolist() == []


# ----------------------------------------------------------------------------------------------------------------- X3KD


@given(st.floats(0, 10))
def test_gradients_are_reversed(strength: float) -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    out = gradient_reversed(x, strength)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad((out * torch.tensor([3.0, 4.0])).sum(), x)
    torch.testing.assert_close(gradient, -strength * torch.tensor([3.0, 4.0]))


def test_the_student_climbs_where_the_discriminator_goes_down() -> None:
    torch.manual_seed(0)
    discriminator = MapDiscriminator(6, 8)
    student, teacher = torch.randn(2, 6, 9, 7), torch.randn(2, 6, 9, 7) + 1
    assert discriminator(student).shape == (2, 1, 3, 2)
    blind = torch.zeros(2, 1, 3, 2)
    assert float(told_apart(blind, blind)) == pytest.approx(math.log(2))

    def step(leaf: Tensor, strength: float | None) -> tuple[Tensor, Tensor]:
        seen = leaf if strength is None else gradient_reversed(leaf, strength)
        loss = told_apart(discriminator(seen), discriminator(teacher))
        mine, its = torch.autograd.grad(loss, (leaf, discriminator.get_parameter("0.weight")))
        return mine, its

    plain, reversed_ = step(student.clone().requires_grad_(), None), step(student.clone().requires_grad_(), 0.5)
    torch.testing.assert_close(reversed_[0], -0.5 * plain[0])
    torch.testing.assert_close(reversed_[1], plain[1])
    with torch.no_grad():
        discriminator.get_parameter("0.weight").sub_(0.1 * plain[1])
        after = told_apart(discriminator(student), discriminator(teacher))
        before_weights = discriminator.get_parameter("0.weight").add(0.1 * plain[1])
        discriminator.get_parameter("0.weight").copy_(before_weights)
    assert after < told_apart(discriminator(student), discriminator(teacher))


SEGMENTS = X3KDConfig(teacher_tap="bev_0", feature_weight=0.0, adversary_weight=0.0, response_weight=0.0,
                      segmentation_weight=2.0, classes=CLASSES)  # fmt: skip
#: A pixel of the third class, and of the first, of which there are two.
PEDESTRIAN, CAR, ANOTHER = 3 * STEP + 7, STEP, STEP + 1


def masked(batch: SurroundBatch, fill: int = 0) -> SurroundBatch:
    assert batch.images is not None
    return replace(batch, instances=batch.images.new_full(batch.images[:, 0, :, 0].shape, fill, dtype=torch.int64))


def test_segmentation_targets() -> None:
    """Classes at the cells' middles, and the way from each cell to the mean of its thing's, in cells four times as
    large; things are told apart, and those of the same number in another image are others."""
    masks = torch.zeros(2, 12, 20, dtype=torch.int64)
    masks[0, :, :8], masks[0, :4, 8:16], masks[1, 4:, 16:] = CAR, ANOTHER, CAR
    masks[1, :4, :4] = 9 * STEP  # of no class that is asked for
    targets = segmentation_targets(masks, 4, 3)
    assert targets.label[0].tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert targets.label[1].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    assert torch.equal(targets.on_thing, targets.label > 0)
    assert targets.way[0, :, 0, 0].tolist() == [0.5 / 4, 1 / 4] and targets.way[0, :, 0, 3].tolist() == [-0.5 / 4, 0]
    assert targets.way[1, :, 1, 4].tolist() == [0, 0.5 / 4] and not targets.way[:, :, ~targets.on_thing.any(0)].any()


def test_what_the_segmentation_asks_for() -> None:
    """Log of the classes' number from no idea, nothing from the truth, and without things of ways nothing at all."""
    masks = torch.zeros(1, 8, 8, dtype=torch.int64)
    masks[:, :4] = PEDESTRIAN
    targets = segmentation_targets(masks, 4, 3)
    blank, lost = torch.zeros(1, 4, 2, 2), torch.ones(1, 2, 2, 2, requires_grad=True)
    found = segmentation_loss(blank, targets.way + 0.5 * lost, targets, 3.0)
    assert float(found.detach()) == pytest.approx(math.log(4) + 3 * (0.5 + 0.5))
    sure = torch.nn.functional.one_hot(targets.label, 4).permute(0, 3, 1, 2) * 40.0
    assert float(segmentation_loss(sure, targets.way, targets, 3.0)) == pytest.approx(0, abs=1e-6)
    nothing = segmentation_loss(blank, lost, segmentation_targets(0 * masks, 4, 3), 3.0)
    (gradient,) = torch.autograd.grad(nothing, lost)
    assert float(nothing.detach()) == pytest.approx(math.log(4)) and not gradient.any()


@pytest.mark.parametrize("fill", [0, PEDESTRIAN])
def test_the_segmentation_teaches_the_image_branch(fill: int, teachers: dict[str, Detector]) -> None:
    """By a head of the term's; nothing that comes behind the images' features learns from it."""
    batch, teacher = masked(scene(2, 0), fill), teachers["points"]
    student = build(BEVDepth, replace(STUDENT, image_tap=True), 0).train()
    (term,) = build_terms(SEGMENTS, student.tap_channels, teacher.tap_channels)
    assert (term.name, term.weight, term.couples_batch) == ("segmentation", 2.0, True)
    context = Context(student(batch), {"teacher": detached(teacher(batch))}, batch, student.encode(batch), student)
    loss = term(context)
    assert loss.shape == () and loss.isfinite() and loss > 0
    loss.backward()
    taught = {n.rsplit(".", 1)[0] for n, p in student.named_parameters() if p.grad is not None}
    assert taught and all(name.startswith(("backbone.img_backbone", "backbone.img_neck")) for name in taught)
    assert all(p.grad is not None for p in term.parameters())
    assert SEGMENTS.looks_at == {"instances"} and not X3KDConfig().looks_at
    with pytest.raises(UserError, match="masks of single things; the data set gives none: set segmentation_weight to"):
        term(replace(context, batch=replace(batch, instances=None)))
    with pytest.raises(UserError, match="the student has no tap 'image_neck'"):
        build_terms(SEGMENTS, build(BEVDepth, STUDENT, 0).tap_channels, teacher.tap_channels)


def test_only_sure_answers_are_imitated(teachers: dict[str, Detector]) -> None:
    config = X3KDConfig(teacher_tap="bev_0", feature_weight=0.0, adversary_weight=0.0)
    context, (term,) = said(config, scene(4), teachers)
    assert term.couples_batch
    answer = context.teachers["teacher"]
    shy = replace(
        answer, predictions=answer.predictions | {"heatmap": torch.full_like(answer.predictions["heatmap"], -9)}
    )
    logits = only_sure(torch.tensor([[[[-1.0, 0.5]]]]), 0.5)
    assert logits.tolist() == [[[[-math.inf, 0.5]]]]
    heat, boxes = context.student.predictions["heatmap"], context.student.predictions["box"]
    loss = term(replace(context, teachers={"teacher": shy}))
    of_heat, of_boxes = torch.autograd.grad(loss, (heat, boxes), allow_unused=True)
    assert of_heat is not None and (of_heat >= 0).all() and of_heat.any()  # nothing is there: down everywhere
    assert of_boxes is None or not of_boxes.any()
    sure = answer.predictions["heatmap"].clone()
    sure[0, 0, 5, 7] = 4.0
    loss = term(
        replace(context, teachers={"teacher": replace(answer, predictions=answer.predictions | {"heatmap": sure})})
    )
    of_heat, of_boxes = torch.autograd.grad(loss, (heat, boxes))
    assert of_heat[0, 0, 5, 7] < 0 and of_boxes[0, 0, :, 5, 7].any()
    with pytest.raises(UserError, match="set response_weight to 0"):
        term(replace(context, student_detector=None))


# --------------------------------------------------------------------------------------------------------------- blocks

GROUND = BevGeometry((-8.0, -4.0, 8.0, 4.0), 0.5, "ego")
CELLS = (16, 32)


def objects_at(*rows: tuple[float, float, float, float, float]) -> SurroundObjectBatch:
    """One moment's objects from x, y, length, width, yaw."""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)
    rest = torch.zeros(len(values), 1, dtype=torch.float64)
    boxes = Boxes3D(
        torch.cat((values[:, :2], rest), 1), torch.cat((values[:, 2:4], rest + 1), 1), values[:, 4],
        torch.zeros(len(values), dtype=torch.int64), "ego", velocity=values.new_zeros(len(values), 2),
    )  # fmt: skip
    return SurroundObjectBatch.pad([SurroundObjects(boxes, torch.ones(len(values), dtype=torch.int64))])


@given(
    st.floats(-10, 10), st.floats(-6, 6), st.floats(0.1, 6), st.floats(0.1, 3), st.floats(-7, 7),
    st.sampled_from(["corner", "centre"]),
)  # fmt: skip
def test_a_footprint_holds_what_lies_inside(
    x: float, y: float, length: float, width: float, yaw: float, point: Any
) -> None:
    objects = objects_at((x, y, length, width, yaw))
    found = footprint_regions(objects, GROUND, CELLS, point)
    offset = 0.5 if point == "centre" else 0.0
    count = 0
    for row in range(CELLS[0]):
        for column in range(CELLS[1]):
            dx, dy = -8 + (column + offset) * 0.5 - x, -4 + (row + offset) * 0.5 - y
            along, across = math.cos(yaw) * dx + math.sin(yaw) * dy, math.cos(yaw) * dy - math.sin(yaw) * dx
            gaps = abs(along) - length / 2, abs(across) - width / 2
            if max(abs(g) for g in gaps) > 1e-6 and min(abs(g) for g in gaps) > 1e-6:
                assert bool(found.foreground[0, 0, row, column]) == (max(gaps) < 0)
            count += bool(found.foreground[0, 0, row, column])
    inside = found.foreground > 0
    scale = torch.full_like(found.foreground_scale, 0.5 / math.sqrt(length * width))
    torch.testing.assert_close(found.foreground_scale, torch.where(inside, scale, 0))
    assert float(found.background_scale) == pytest.approx(1 / (CELLS[0] * CELLS[1] - count))


def test_the_first_of_two_objects_gives_the_scale_and_widening_reaches_further() -> None:
    objects = objects_at((0, 0, 4, 2, 0), (1, 0, 2, 2, 0))
    found = footprint_regions(objects, GROUND, CELLS)
    assert found.foreground_scale.unique().tolist() == pytest.approx([0.0, 0.5 / math.sqrt(8)])
    wide = footprint_regions(objects, GROUND, CELLS, margin=2, margin_share=0.25)
    assert set(wide.foreground.unique().tolist()) == {0.0, 0.25, 1.0}
    assert float((wide.foreground == 1).sum()) == float(found.foreground.sum())
    assert float(wide.background_scale) > float(found.background_scale)


def test_a_map_full_of_objects_has_no_background() -> None:
    found = footprint_regions(objects_at((0, 0, 99, 99, 0.3)), GROUND, CELLS)
    assert found.foreground.all() and float(found.background_scale) == 0
    nobody = footprint_regions(objects_at(), GROUND, CELLS)
    assert not nobody.foreground.any() and not nobody.foreground_scale.any()
    assert float(nobody.background_scale) == pytest.approx(1 / 512)
    cells = nobody.background
    assert float(nobody.without(cells).background_scale) == 0


def test_absent_boxes_hold_nothing() -> None:
    objects = objects_at((0, 0, 4, 2, 0), (3, 0, 4, 2, 1))
    present = torch.tensor([[True, False]])
    held = footprint_cells(objects.centre, objects.size, objects.yaw, present, GROUND, CELLS)
    assert held[0, 0].any() and not held[0, 1].any()


def parts_by_hand(mask: Tensor) -> list[set[tuple[int, int]]]:
    left = {(y, x) for y, x in mask.nonzero().tolist()}
    found = []
    while left:
        front, part = [min(left)], {min(left)}
        while front:
            y, x = front.pop()
            for cell in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if cell in left and cell not in part:
                    part.add(cell)
                    front.append(cell)
        left -= part
        found.append(part)
    return found


@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_scales_of_connected_parts(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, 6, 7, generator=generator) < share
    component = false_positive_scale(mask[:, None], "component")[:, 0]
    visits = false_positive_scale(mask[:, None], "visits")[:, 0]
    average = false_positive_scale(mask[:, None], "average")[:, 0]
    labels = connected_parts(mask)
    for i in range(2):
        parts = parts_by_hand(mask[i])
        assert labels[i][mask[i]].unique().numel() == len(parts)
        for part in parts:
            values = [float(component[i, y, x]) for y, x in part]
            assert values == pytest.approx([1 / len(part)] * len(part))
        assert not component[i][~mask[i]].any() and not visits[i][~mask[i]].any()
        assert (visits[i] <= component[i] + 1e-7).all()  # no cell is visited less than once
        assert float(average[i].sum()) == pytest.approx(float(mask[i].any()))
        assert float(component[i].sum()) == pytest.approx(len(parts), abs=1e-4)


def test_attention_is_one_on_average() -> None:
    maps = 5 * torch.randn(2, 6, 4, 7, generator=torch.Generator().manual_seed(0))
    spatial, channels = spatial_attention(maps, 0.5), channel_attention(maps, 0.5)
    torch.testing.assert_close(spatial.mean((1, 2, 3)), torch.ones(2))
    torch.testing.assert_close(channels.mean((1, 2, 3)), torch.ones(2))
    loudest = maps.abs().mean(1).flatten(1).argmax(1)
    assert torch.equal(spatial.flatten(1).argmax(1), loudest)
    assert spatial_attention(maps.requires_grad_(), 0.5).requires_grad is False


@pytest.mark.parametrize("kind", ["downsample_2layer", "avgpool_1x1conv", "upsample_2layer", "mlp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adaptors_lead_to_the_teachers_size(kind: Any, dtype: torch.dtype) -> None:
    adaptor = MapAdaptor(kind, 5, 3)
    maps = torch.randn(2, 5, 8, 12).to(dtype).requires_grad_()
    size = {"mlp": (8, 12), "upsample_2layer": (24, 36)}.get(kind, (4, 6))
    adaptor(maps, size).float().sum().backward()
    assert maps.grad is not None and maps.grad.dtype == dtype and maps.grad.isfinite().all()
    with pytest.raises(UserError, match=f"the adaptor '{kind}' does not lead from a map of 8 x 12 cells"):
        adaptor(maps, (5, 5))


def test_false_positives_leave_the_background(teachers: dict[str, Detector]) -> None:
    """A cell counts in one region at most, and in none where only its scale is 0."""
    config = DistillBEVConfig.styled("intended", **LEVELS)
    context, terms = said(config, scene(6, 3), teachers)
    (levels,) = {id(m): m for term in terms for m in term.modules() if type(m).__name__ == "Levels"}.values()
    first, last = levels(context)
    assert "false_positive" not in first.weight
    counted = torch.stack([weight > 0 for weight in last.weight.values()]).sum(0)
    assert counted.max() == 1
    assert (last.weight["false_positive"] > 0).any()
    assert last.weight["foreground"].amax() > 0
