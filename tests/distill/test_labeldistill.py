"""LabelDistill on made-up maps: who teaches which channels, empty scenes, half precision, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch, SurroundObjects
from distill3d.detectors import bevdepth, centerpoint, label_encoder
from distill3d.detectors.base import BevGeometry, FeatureMap, Outputs
from distill3d.distill.context import Context, detached
from distill3d.distill.methods.labeldistill import (
    DistillAdaptor,
    LabelDistillConfig,
    channel_parts,
    feature_loss,
    object_masks,
    response_losses,
    seen_channels,
    terms,
)
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDFPNConfig
from distill3d.layers.heads.centre_head import CentreTargets, tiny_head

#: Adaptors of one target in the released 4-key configuration: 750 and 300 channels of the student.
FOUR_KEY_ADAPTORS = 1_995_648
FRAMES, CONTEXT, STAGE1 = 3, 9, 14
STUDENT = {"bev": FRAMES * CONTEXT, "bev_stage1": STAGE1}
TEACHER = {"bev_0": 8, "bev_1": 10, "bev_low": 6}
HEAD = tiny_head(extent=(-6.4, -6.4, 6.4, 6.4), shared_channels=8, branch_channels=8)
FINE = BevGeometry(HEAD.extent, HEAD.cell, "ego")
GRIDS = {"bev": FINE, "bev_0": FINE}
GRIDS |= {tap: replace(FINE, cell=2 * HEAD.cell) for tap in ("bev_stage1", "bev_1")}
#: Who predicts with ``HEAD``; only its settings are looked at.
DETECTOR = label_encoder.LabelEncoder(
    label_encoder.LabelEncoderConfig(
        classes=HEAD.classes, hidden=8, channels=(8,), neck=SECONDFPNConfig(channels=(8,), strides=(1,)), head=HEAD
    )
)  # fmt: skip
CONFIGS = {
    "default": LabelDistillConfig(),
    "released": LabelDistillConfig.styled("released"),
    "intended": LabelDistillConfig.styled("intended", frames=FRAMES),
    "without partition": LabelDistillConfig(partition="none"),
}


def annotated(*counts: int) -> SurroundObjectBatch:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for n in counts:
        values = torch.rand(n, 9, generator=generator)
        centre = (2 * values[:, :3] - 1) * torch.tensor([6.0, 6.0, 1.0])
        label = torch.randint(0, 4, (n,), generator=generator)
        boxes = Boxes3D(centre, 0.5 + 3 * values[:, 3:6], 6 * values[:, 6], label, "ego", velocity=values[:, 7:])
        samples.append(SurroundObjects(boxes, torch.ones(n, dtype=torch.int64)))
    return SurroundObjectBatch.pad(samples)


def outputs(channels: dict[str, int], batch: int, seed: int, dtype: torch.dtype = torch.float32) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    height, width = HEAD.cells

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    features = {}
    for tap, count in channels.items():
        if tap in GRIDS:
            stride = round(GRIDS[tap].cell / HEAD.cell)
            maps = noise(count, height // stride, width // stride).to(dtype).requires_grad_()
            features[tap] = FeatureMap(maps, GRIDS[tap])
    heads = {"heatmap": noise(len(HEAD.classes), height, width) - 2, "box": noise(len(HEAD.tasks), 10, height, width)}
    return Outputs(features, {k: v.requires_grad_() for k, v in heads.items()})


def make_context(*counts: int, dtype: torch.dtype = torch.float32) -> Context:
    objects = annotated(*counts)
    targets = DETECTOR.encode(moments(objects))
    student = outputs(STUDENT, len(counts), 1, dtype)
    teachers = {"teacher": outputs(TEACHER, len(counts), 2), "label_encoder": outputs(TEACHER, len(counts), 3)}
    return Context(student, teachers, None, targets, DETECTOR)


def moments(objects: SurroundObjectBatch) -> SurroundBatch:
    """Annotated moments without images or points."""
    batch = len(objects.label)
    eye = torch.eye(4, dtype=torch.float64)
    return SurroundBatch(
        [str(i) for i in range(batch)], eye.expand(batch, 1, 6, 4, 4), eye.expand(batch, 1, 6, 4, 4),
        eye.expand(batch, 6, 4, 4), eye.expand(batch, 4, 4), eye.expand(batch, 4, 4), objects=objects,
    )  # fmt: skip


def make_terms(config: LabelDistillConfig) -> dict[str, Any]:
    torch.manual_seed(0)
    return {term.name: term for term in terms(config, STUDENT, TEACHER)}


def student_maps(context: Context) -> dict[str, Tensor]:
    return {tap: f.tensor for tap, f in context.student.features.items()}


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [(0,), (1,), (0, 4), (150, 2)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_are_finite_and_teach_the_student_alone(name: str, counts: tuple[int, ...], dtype: torch.dtype) -> None:
    context, found = make_context(*counts, dtype=dtype), make_terms(CONFIGS[name])
    assert {name: term.weight for name, term in found.items()} == {"lidar": 0.3, "label": 0.3, "response": 1.0}
    losses = {name: term(context) for name, term in found.items()}
    assert all(v.dtype == torch.float32 and v.shape == () and v.isfinite() for v in losses.values()), losses
    torch.stack([*losses.values()]).sum().backward()
    taught = [*student_maps(context).values(), *context.student.predictions.values()]
    assert all(t.grad is not None and t.grad.isfinite().all() for t in taught)
    for teacher in context.teachers.values():
        assert all(t.grad is None for t in [*(f.tensor for f in teacher.features.values()),
                                            *teacher.predictions.values()])  # fmt: skip
    if sum(counts) == 0:
        assert losses["lidar"] == losses["label"] == 0
    else:
        assert all(v > 0 for v in losses.values())


def test_weights_of_zero_leave_terms_out() -> None:
    for kept in ("lidar", "label", "response"):
        weights = {f"{name}_weight": 2.0 * (name == kept) for name in ("lidar", "label", "response")}
        assert [(t.name, t.weight) for t in terms(LabelDistillConfig(**weights), STUDENT, TEACHER)] == [(kept, 2.0)]


@pytest.mark.parametrize("part", ["lidar", "label"])
def test_normalisers_are_of_the_whole_batch(part: str) -> None:
    """A frame without objects changes nothing, where batch norm does not see it."""
    context = make_context(5, 0)
    term = make_terms(LabelDistillConfig())[part].eval()

    def first(o: Outputs) -> Outputs:
        return Outputs({tap: FeatureMap(f.tensor[:1], f.geometry) for tap, f in o.features.items()})

    targets = CentreTargets(**{name: value[:1] for name, value in vars(context.targets).items()})
    alone = Context(
        first(context.student), {k: first(t) for k, t in context.teachers.items()}, None, targets, DETECTOR
    )  # fmt: skip
    torch.testing.assert_close(term(context), term(alone))


@pytest.mark.parametrize(("part", "stage", "binary"), [("lidar", "teacher", False), ("label", "label_encoder", True)])
def test_who_teaches_what_where(part: str, stage: str, binary: bool) -> None:
    """The LiDAR teacher by the soft mask, the label encoder by the binary one."""
    context, term = make_context(5, 2), make_terms(LabelDistillConfig())[part].eval()
    levels = student_maps(context).values()
    adapted = term.adaptor([maps[:, channel_parts(maps.shape[1])[part]] for maps in levels])
    taught = [f.tensor for f in context.teachers[stage].features.values()]
    masks = object_masks(context.targets.heatmap, [t.shape[-2:] for t in taught], binary)
    torch.testing.assert_close(term(context), feature_loss(adapted, taught, masks))
    soft, hard = (object_masks(context.targets.heatmap, [t.shape[-2:] for t in taught], b) for b in (False, True))
    assert not torch.equal(feature_loss(adapted, taught, soft), feature_loss(adapted, taught, hard))


def test_masks() -> None:
    heatmap = torch.zeros(1, 2, 4, 4)
    heatmap[0, :, 1, 1] = torch.tensor([1.0, 0.5])
    sizes = [torch.Size((4, 4)), torch.Size((2, 2)), torch.Size((7, 7))]
    soft, binary = (object_masks(heatmap, sizes, b) for b in (False, True))
    assert soft[0].amax() == 1.5  # a sum
    assert soft[1].sum() == 0  # corners meet corners: of 4 cells the outer ones are looked at
    assert soft[2].amax() == 1.5 and soft[2][0, 0, 2, 2] == 1.5
    for s, b in zip(soft, binary, strict=True):
        assert torch.equal(b, (s > 0).float())


# ------------------------------------------------------------------------------------------------------------ partition


@pytest.mark.parametrize(
    ("channels", "parts"),
    [(750, (250, 250, 250)), (300, (100, 100, 100)), (450, (150, 150, 150)), (31, (10, 10, 11)), (2, (0, 0, 2))],
)
def test_thirds(channels: int, parts: tuple[int, int, int]) -> None:
    found = channel_parts(channels)
    assert list(found) == ["label", "lidar", "free"]
    assert tuple(s.stop - s.start for s in found.values()) == parts
    assert [c for s in found.values() for c in range(channels)[s]] == [*range(channels)]


@pytest.mark.parametrize(
    ("partition", "level", "label", "lidar"),
    [
        ("concatenated", 0, (0, 250), (250, 500)),
        ("concatenated", 1, (0, 100), (100, 200)),
        ("per_frame", 0, (0, 50), (50, 100)),  # of the key frame's 150
        ("per_frame", 1, (0, 100), (100, 200)),
        ("none", 0, (0, 750), (0, 750)),
        ("none", 1, (0, 300), (0, 300)),
    ],
)
def test_seen_channels(partition: Any, level: int, label: tuple[int, int], lidar: tuple[int, int]) -> None:
    config = LabelDistillConfig(partition=partition, frames=5)
    for part, expected in (("label", label), ("lidar", lidar)):
        assert seen_channels(part, (750, 300)[level], config, level) == slice(*expected)


@pytest.mark.parametrize("frames", [None, 4])
def test_per_frame_needs_the_number_of_frames(frames: int | None) -> None:
    with pytest.raises(UserError, match=f"share the 27 channels of 'bev' equally; it is {frames}"):
        terms(LabelDistillConfig(partition="per_frame", frames=frames), STUDENT, TEACHER)


@pytest.mark.parametrize("partition", ["concatenated", "per_frame", "none"])
@pytest.mark.parametrize("part", ["lidar", "label"])
def test_gradient_reaches_the_seen_channels_alone(part: Any, partition: Any) -> None:
    config = LabelDistillConfig(partition=partition, frames=FRAMES)
    context = make_context(4, 3)
    make_terms(config)[part](context).backward()
    for level, (tap, maps) in enumerate(student_maps(context).items()):
        assert maps.grad is not None
        reached = maps.grad.flatten(2).abs().sum((0, 2)) > 0
        expected = torch.zeros_like(reached)
        expected[seen_channels(part, STUDENT[tap], config, level)] = True
        assert torch.equal(reached, expected)


@pytest.mark.parametrize(
    ("partition", "reached"), [("concatenated", False), ("per_frame", True), ("none", True)]
)  # fmt: skip
def test_past_frames_without_gradient_starve_the_finer_lidar_loss(partition: Any, reached: bool) -> None:
    """As released, it then trains its adaptor only."""
    context = make_context(4)
    key = torch.randn(1, CONTEXT, *HEAD.cells, requires_grad=True)
    past = torch.randn(1, (FRAMES - 1) * CONTEXT, *HEAD.cells)
    context.student.features["bev"] = FeatureMap(torch.cat((key, past), dim=1), FINE)
    term = make_terms(LabelDistillConfig(partition=partition, frames=FRAMES))["lidar"]
    term(context).backward()
    assert (key.grad is not None and bool(key.grad.any())) == reached
    assert term.adaptor.blocks[0][0].weight.grad.any()


def test_adaptors_belong_to_the_terms() -> None:
    found = make_terms(LabelDistillConfig())
    assert set(dict(found["response"].named_parameters())) == set()
    for part in ("lidar", "label"):
        assert {name.split(".")[0] for name in found[part].state_dict()} == {"adaptor"}
    assert found["lidar"].adaptor is not found["label"].adaptor
    with torch.device("meta"):
        adaptor = DistillAdaptor((250, 100), (128, 256))
    assert sum(p.numel() for p in adaptor.parameters()) == FOUR_KEY_ADAPTORS


# ------------------------------------------------------------------------------------------------------------ responses


def responses(form: Any, shift: float = 0.0) -> tuple[Tensor, Tensor, CentreTargets]:
    """Gradients of heat map and boxes where the teacher is surer of everything by ``shift``."""
    context = make_context(6, 2)
    student = context.student.predictions
    teacher = {"heatmap": student["heatmap"].detach() + shift, "box": student["box"].detach() + 1}
    losses = response_losses(student, teacher, context.targets, HEAD, form)
    return *torch.autograd.grad(losses["heat"] + losses["box"], list(student.values())), context.targets


def test_the_released_response_only_ever_pushes_down() -> None:
    heat, _, targets = responses("released", shift=3.0)
    assert (heat >= 0).all() and heat.any()
    assert (heat[targets.heatmap == 1] > 0).all()


def test_quality_focal_imitates() -> None:
    heat, _, targets = responses("qfl", shift=3.0)
    peaks = targets.heatmap == 1
    assert (heat[peaks] < 0).all()  # up, for the teacher is surer
    assert (heat[targets.heatmap == 0] > 0).all()
    alike, _, _ = responses("qfl")
    torch.testing.assert_close(alike[peaks], torch.zeros_like(alike[peaks]), rtol=0, atol=1e-6)


def test_boxes_are_imitated_at_objects_only() -> None:
    _, box, targets = responses("released")
    reached = box.abs().sum(2).flatten(2) > 0  # (B, T, cells)
    expected = torch.zeros_like(reached)
    expected.scatter_(2, targets.index, targets.mask)
    assert torch.equal(reached, expected)


def test_unknown_velocities_are_not_imitated() -> None:
    context = make_context(6)
    context.targets.box[..., 8:] = torch.nan
    student, teacher = context.student.predictions, context.teachers["teacher"].predictions
    losses = response_losses(student, {k: v.detach() for k, v in teacher.items()}, context.targets, HEAD)
    losses["box"].backward()
    grad = student["box"].grad
    assert grad is not None and grad.isfinite().all()
    assert grad[:, :, :8].any() and not grad[:, :, 8:].any()


# ------------------------------------------------------------------------------------------------------ what is refused


def test_styles() -> None:
    assert LabelDistillConfig().style is None  # the released partition and response, frozen statistics
    assert LabelDistillConfig.styled("released").teacher_bn == "train"
    assert LabelDistillConfig.styled("intended").response == "qfl"


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ({"bev": 9}, TEACHER, "student has no tap 'bev_stage1'; it offers bev"),
        (STUDENT, {"bev_0": 8}, "teacher has no tap 'bev_1'; it offers bev_0"),
    ],
)
def test_missing_taps(student: dict[str, int], teacher: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        terms(LabelDistillConfig(), student, teacher)


def test_outputs_that_do_not_fit() -> None:
    context, found = make_context(2), make_terms(LabelDistillConfig())
    wide = outputs(TEACHER | {"bev_1": 11}, 1, 2)
    with pytest.raises(UserError, match=r"maps of label_encoder have \(8, 11\) channels, expected \(8, 10\)"):
        found["label"](replace(context, teachers=context.teachers | {"label_encoder": wide}))
    with pytest.raises(UserError, match="a teacher named 'label_encoder'"):
        found["label"](replace(context, teachers={"teacher": context.teachers["teacher"]}))
    for part in ("lidar", "response"):
        moved = outputs(TEACHER, 1, 2)
        moved.features["bev_0"] = replace(moved.features["bev_0"], geometry=replace(FINE, cell=0.4))
        with pytest.raises(ValueError, match="different grids"):
            found[part](replace(context, teachers=context.teachers | {"teacher": moved}))
    for part in ("lidar", "label", "response"):
        with pytest.raises(UserError, match="annotations"):
            found[part](replace(context, targets=None))
    with pytest.raises(UserError, match="set response_weight to 0"):
        found["response"](replace(context, student_detector=None))
    other = context.teachers["teacher"]
    short = replace(other, predictions=other.predictions | {"heatmap": other.predictions["heatmap"][:, 1:]})
    with pytest.raises(UserError, match=r"'heatmap' is \(1, 4, 16, 16\) in the student and \(1, 3, 16, 16\)"):
        found["response"](replace(context, teachers=context.teachers | {"teacher": short}))


# ---------------------------------------------------------------------------------------------------- the real networks


def test_a_step_of_the_small_networks() -> None:
    """BEVDepth learns from CenterPoint and the label encoder: taps, grids and heads fit."""
    torch.manual_seed(0)
    student = bevdepth.BEVDepth(bevdepth.tiny())
    teacher = centerpoint.CenterPoint(centerpoint.tiny())
    encoder = label_encoder.LabelEncoder(label_encoder.tiny())
    batch = seen_moments(annotated(3))
    targets = student.encode(batch)
    said = student(batch)
    answers = {"teacher": detached(teacher.eval()(batch)), "label_encoder": detached(encoder.eval()(batch))}
    context = Context(said, answers, batch, targets, student)
    found = terms(LabelDistillConfig(), student.tap_channels, teacher.tap_channels)
    total = torch.stack([term.weight * term(context) for term in found]).sum()
    total.backward()
    assert total.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.trunk.parameters())
    assert all(p.grad is not None for term in found for p in term.parameters())


def seen_moments(objects: SurroundObjectBatch) -> SurroundBatch:
    """One moment with noise for images and points; the cameras look forward."""
    blind = moments(objects)
    camera = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], dtype=torch.float64)
    intrinsics = torch.diag(torch.tensor([100.0, 100, 1, 1], dtype=torch.float64))
    intrinsics[:2, 2] = torch.tensor([32.0, 16.0])
    points = 20 * torch.randn(500, 5)
    return replace(
        blind, camera_to_ego=camera.expand(1, 1, 6, 4, 4), intrinsics=intrinsics.expand(1, 1, 6, 4, 4),
        images=torch.rand(1, 1, 6, 3, 32, 64), points=[points],
    )  # fmt: skip
