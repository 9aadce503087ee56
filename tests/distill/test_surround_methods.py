"""CMKD, MonoTAKD and MonoSTL on surround views: centre responses, footprints, who is asked and who learns."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.camera import DepthBins
from distill3d.data.surround import (
    SurroundBatch,
    SurroundObjectBatch,
    SurroundObjects,
    SurroundSample,
    collate_surround,
)
from distill3d.detectors import bevdepth, centerpoint
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, ImageGeometry, Outputs
from distill3d.detectors.bevdepth import UNSEEN, BEVDepth, BEVDepthConfig
from distill3d.detectors.centerpoint import CenterPoint, PillarEncoderConfig
from distill3d.distill.centre_responses import (
    COMPARED,
    centre_box_loss,
    centre_class_loss,
    of_tasks,
    surround_box_loss,
    surround_class_loss,
)
from distill3d.distill.context import Context, detached
from distill3d.distill.masks import footprint_boxes, ground_geometry, whole_cells
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.cmkd import CENTRE_RESPONSE, SURROUND_RESPONSE, CMKDConfig
from distill3d.distill.methods.monostl import GROUND, MonoSTLConfig, paint_weights, regions
from distill3d.distill.methods.monotakd import MonoTAKDConfig, cmrd_loss, frames_with_depth, imd_loss
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.ground.bev_second import SECONDBlocksConfig, SECONDFPNConfig
from distill3d.layers.heads.centre_head import tiny_head
from distill3d.layers.image.resnet import ResNetConfig
from distill3d.layers.points.voxels import VoxelGrid

#: Two tasks, one of two classes; 16 x 16 cells of 1.6 m.
REACH, CELL = 12.8, 1.6
HEAD = tiny_head(
    tasks=(("car",), ("bicycle", "pedestrian")), extent=(-REACH, -REACH, REACH, REACH), cell=CELL, shared_channels=8,
    branch_channels=8, nms_thresholds=(4.0, 1.0),
)  # fmt: skip
CLASSES = ("car", "bicycle", "pedestrian")
CANVAS = (64, 32)
#: Channels of the teacher's map that is imitated.
WIDE = 10
STUDENT = bevdepth.tiny(
    classes=CLASSES, head=HEAD, trunk=ResNetConfig("basic", (1, 1, 1, 1), (8, 8, 8, 8), finest=4), neck_channels=8,
    bins=DepthBins(2.0, 26.0, 12, "UD"), depth_channels=8, context_channels=6,
    grid=VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (CELL, CELL, 8.0)), bev_base=8, bev_neck_channels=8,
)  # fmt: skip
ALIGNED = replace(STUDENT, bev_channels=WIDE, spatial_alignment=True, fusion="ffm")
ASSISTANT = replace(STUDENT, input="rgb+gt_depth", bev_channels=WIDE)
LIDAR = centerpoint.tiny(
    classes=CLASSES, head=HEAD, neck=SECONDFPNConfig(channels=(8, 8)),
    pillars=PillarEncoderConfig(
        VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (0.8, 0.8, 8.0)), max_points=4, features=8, channels=(8,)
    ),
    backbone=SECONDBlocksConfig(layers=(1, 1), channels=(WIDE, 8)),
)  # fmt: skip

CMKD = CMKDConfig(teacher="teacher", teacher_tap="bev_0", **CENTRE_RESPONSE)
SEVERAL_FIELDS = {"teacher": "teacher", "teacher_tap": "bev_0", "feature_weight": 50.0, **SURROUND_RESPONSE}
SEVERAL = CMKDConfig(**SEVERAL_FIELDS)
MONOTAKD = MonoTAKDConfig(teacher_tap="bev_0", **CENTRE_RESPONSE)
MONOSTL = MonoSTLConfig(fusion_channels=8, **GROUND)
#: Settings, the student's network, and its teachers.
METHODS: dict[str, tuple[StyledConfig, BEVDepthConfig, tuple[str, ...]]] = {
    "cmkd": (CMKD, replace(STUDENT, bev_channels=WIDE), ("teacher",)),
    "cmkd of the assistant": (CMKD, ASSISTANT, ("teacher",)),
    "several": (SEVERAL, replace(STUDENT, bev_channels=WIDE), ("teacher",)),
    "several, released": (
        CMKDConfig.styled("released", **SEVERAL_FIELDS), replace(STUDENT, bev_channels=WIDE), ("teacher",),
    ),
    "several, intended": (
        CMKDConfig.styled("intended", **SEVERAL_FIELDS), replace(STUDENT, bev_channels=WIDE), ("teacher",),
    ),
    "monotakd": (MONOTAKD, ALIGNED, ("teacher", "assistant")),
    "monotakd intended": (
        MonoTAKDConfig.styled("intended", teacher_tap="bev_0", **CENTRE_RESPONSE), ALIGNED, ("teacher", "assistant"),
    ),
    "monostl": (MONOSTL, STUDENT, ("assistant",)),
    "monostl, every object alike": (replace(MONOSTL, fd_weight="none"), STUDENT, ("assistant",)),
    "monostl, two frames": (MONOSTL, replace(STUDENT, frames=2), ("assistant",)),
}  # fmt: skip
NAMES = {
    "cmkd": {"bev": 32.0, "response_cls": 1.0, "response_loc": 4.0},
    "several": {"bev": 50.0, "response_cls": 0.2, "response_loc": 50.0},
    "monotakd": {"imd": 1.0, "cmrd": 0.2, "response_cls": 1.0, "response_loc": 4.0},
    "monostl": {"dasfd": 10.0, "dasrd": 1.0},
}


def cameras() -> Tensor:
    """Six cameras 1.5 m above the ground, every 60 degrees."""
    ahead = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    poses = torch.eye(4, dtype=torch.float64).repeat(6, 1, 1)
    angle = torch.arange(6, dtype=torch.float64) * math.pi / 3
    poses[:, 0, 0], poses[:, 0, 1], poses[:, 1, 0], poses[:, 1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    poses[:, 2, 3] = 1.5
    return poses @ ahead


def annotated(count: int, generator: torch.Generator) -> SurroundObjects:
    values = torch.rand(count, 9, generator=generator)
    centre = (2 * values[:, :3] - 1) * torch.tensor([REACH, REACH, 0.5])
    boxes = Boxes3D(
        centre, 0.5 + 3 * values[:, 3:6], 6 * values[:, 6], torch.arange(count) % 3, "ego", velocity=values[:, 7:]
    )
    return SurroundObjects(boxes, torch.ones(count, dtype=torch.int64))


def scene(*counts: int, frames: int = 1, seed: int = 0) -> SurroundBatch:
    """Noise as pictures, depth and points, and that many objects in each sample."""
    generator = torch.Generator().manual_seed(seed)
    width, height = CANVAS
    intrinsics, eye = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    intrinsics[0, 0] = intrinsics[1, 1] = 50.0
    intrinsics[:2, 2] = torch.tensor([width / 2, height / 2])
    samples = []
    for i, count in enumerate(counts):
        depth = 30 * torch.rand(6, height, width, generator=generator)
        samples.append(
            SurroundSample(
                str(i), intrinsics.expand(frames, 6, 4, 4), cameras().expand(frames, 6, 4, 4), eye.expand(6, 4, 4), eye,
                eye, images=torch.rand(frames, 6, 3, height, width, generator=generator),
                objects=annotated(count, generator),
                depth=torch.where(torch.rand(depth.shape, generator=generator) < 0.2, depth, 0),
                points=8 * torch.randn(300, 5, generator=generator),
            )
        )  # fmt: skip
    return collate_surround(samples)


def build(kind: type[Detector], config: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    return kind(config)


@pytest.fixture(scope="module")
def teachers() -> dict[str, Detector]:
    built = {"teacher": build(CenterPoint, LIDAR, 1), "assistant": build(BEVDepth, ASSISTANT, 2)}
    return {name: detector.eval().requires_grad_(False) for name, detector in built.items()}


def said(method: str, batch: SurroundBatch, teachers: dict[str, Detector]) -> tuple[Context, list[Term]]:
    """What student and teachers say of a batch, and the method's terms."""
    config, network, names = METHODS[method]
    student = build(BEVDepth, network, 0).train()
    targets = student.encode(batch)
    answers = {name: detached(teachers[name](batch)) for name in names}
    context = Context(
        student(batch), answers, batch, targets, student, {name: teachers[name] for name in names}
    )  # fmt: skip
    torch.manual_seed(0)
    return context, build_terms(config, student.tap_channels, teachers[names[0]].tap_channels)


def frames_of(method: str) -> int:
    return METHODS[method][1].frames


# ------------------------------------------------------------------------------------------------------ every situation


def without_depth(batch: SurroundBatch) -> SurroundBatch:
    assert batch.depth is not None
    return replace(batch, depth=torch.zeros_like(batch.depth))


SCENES: dict[str, tuple[int, ...]] = {"one": (4,), "no objects": (0,), "one without objects": (0, 5), "crowd": (120,)}


@pytest.mark.parametrize("scene_name", SCENES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_finite_and_teach_the_student_alone(
    method: str, scene_name: str, teachers: dict[str, Detector]
) -> None:
    counts = SCENES[scene_name]
    context, terms = said(method, scene(*counts, frames=frames_of(method)), teachers)
    assert {t.name: t.weight for t in terms} == (NAMES[method.split()[0].rstrip(",")] | (
        {"cmrd": 1.0} if method == "monotakd intended" else {}))  # fmt: skip
    losses = {term.name: term(context) for term in terms}
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() and v >= 0 for v in losses.values()), losses
    if sum(counts) == 0:
        assert all(losses[name] == 0 for name in ("dasfd", "dasrd") if name in losses)
    torch.stack([term.weight * losses[term.name] for term in terms]).sum().backward()
    assert context.student_detector is not None
    parameters = dict(context.student_detector.named_parameters())
    reached = {name.split(".")[0] for name, p in parameters.items() if p.grad is not None}
    assert {"backbone", "trunk", "neck"} <= reached
    assert all(p.grad.isfinite().all() for p in parameters.values() if p.grad is not None)
    assert all(p.grad is None for teacher in teachers.values() for p in teacher.parameters())
    assert all(p.grad is not None for term in terms for p in term.parameters())


#: The parts of the student that each term teaches.
REACH_OF = {
    ("monotakd", "imd"): {"backbone", "collapse"},
    ("monotakd", "cmrd"): {"backbone", "spatial_collapse", "alignment"},
    ("monotakd", "response_cls"): {"backbone", "collapse", "spatial_collapse", "alignment", "fusion", "trunk", "neck",
                                   "head"},
    ("cmkd", "bev"): {"backbone", "collapse"},
    ("cmkd", "response_loc"): {"backbone", "collapse", "trunk", "neck", "head"},
    ("monostl", "dasfd"): {"backbone", "trunk", "neck"},
    ("monostl", "dasrd"): {"backbone", "trunk", "neck"},
}  # fmt: skip


@pytest.mark.parametrize(("method", "term"), REACH_OF)
def test_what_a_term_teaches(method: str, term: str, teachers: dict[str, Detector]) -> None:
    context, terms = said(method, scene(5, 3), teachers)
    (found,) = (t for t in terms if t.name == term)
    found(context).backward()
    assert context.student_detector is not None
    reached = {n.split(".")[0] for n, p in context.student_detector.named_parameters()
               if p.grad is not None and p.grad.any()}  # fmt: skip
    assert reached == REACH_OF[method, term]


@pytest.mark.parametrize("method", ["monotakd", "monostl"])
def test_the_trained_student_stands_alone(method: str, teachers: dict[str, Detector]) -> None:
    """Without assistant, LiDAR, depth and labels its answers are the same, and its weights hold nothing else."""
    batch = scene(3)
    context, terms = said(method, batch, teachers)
    student = context.student_detector
    assert student is not None
    alone = build(BEVDepth, METHODS[method][1], 7)
    alone.load_state_dict(student.state_dict())
    student.eval(), alone.eval()
    with torch.no_grad():
        whole, bare = student(batch), alone(replace(batch, depth=None, objects=None, points=None))
    assert all(torch.equal(whole.predictions[k], bare.predictions[k]) for k in whole.predictions)
    owned = {id(p) for p in student.parameters()}
    assert not any(id(p) in owned for term in terms for p in term.parameters())
    assert (method == "monostl") == any(True for term in terms for _ in term.parameters())
    if method == "monostl":
        assert student.state_dict().keys() == build(BEVDepth, STUDENT, 3).state_dict().keys()


# ------------------------------------------------------------------------------------------------------------- MonoTAKD


@pytest.mark.parametrize(("known", "expected"), [((), [False, False]), ((1,), [False, True]), ((0, 1), [True, True])])
def test_frames_with_depth(known: tuple[int, ...], expected: list[bool]) -> None:
    batch = without_depth(scene(1, 1))
    assert batch.depth is not None
    for i in known:
        batch.depth[i, 4, 3, 2] = 5.0  # of one camera
    assert frames_with_depth(batch).tolist() == expected
    assert frames_with_depth(replace(batch, depth=None)).tolist() == [False, False]


@pytest.mark.parametrize("maps", ["zeros", "none"])
def test_without_depth_the_assistant_teaches_nothing(maps: str, teachers: dict[str, Detector]) -> None:
    context, terms = said("monotakd", without_depth(scene(3, 2)), teachers)
    assert context.batch.depth is not None
    context = context if maps == "zeros" else replace(context, batch=replace(context.batch, depth=None))
    losses = {term.name: term(context) for term in terms}
    assert {name for name, loss in losses.items() if loss == 0} == {"imd", "cmrd"}
    torch.stack(list(losses.values())).sum().backward()


def test_monotakd_compares_the_maps_that_it_says(teachers: dict[str, Detector]) -> None:
    """V with A and P with the residual of T and A, over the frames that have depth."""
    batch = scene(3, 2)
    assert batch.depth is not None
    batch.depth[1] = 0
    context, terms = said("monotakd", batch, teachers)
    v, p = (context.student.features[tap].tensor[:1] for tap in ("bev", "bev_spatial"))
    a, t = (
        context.teachers["assistant"].features["bev"].tensor[:1],
        context.teachers["teacher"].features["bev_0"].tensor,
    )
    losses = {term.name: term(context) for term in terms}
    torch.testing.assert_close(losses["imd"], imd_loss(v, a))
    torch.testing.assert_close(losses["cmrd"], cmrd_loss(p, t[:1], a, MONOTAKD))


# ----------------------------------------------------------------------------------------------------- centre responses


def heads(seed: int, sure: float = -1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heatmap = 2 * torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) + sure
    box = torch.randn(2, 2, 10, 4, 5, generator=generator, dtype=torch.float64)
    return {"heatmap": heatmap.requires_grad_(), "box": box.requires_grad_()}


def cells() -> Iterator[tuple[int, int, int]]:
    return ((b, y, x) for b in range(2) for y in range(4) for x in range(5))


@pytest.mark.parametrize("sure", [-1.0, 1.0, -30.0])
def test_centre_losses_cell_by_cell(sure: float) -> None:
    student, teacher = heads(0), {k: v.detach() for k, v in heads(1, sure).items()}
    p, t = student["heatmap"].sigmoid().clamp(1e-4, 1 - 1e-4).detach(), teacher["heatmap"].sigmoid()
    heat = box = 0.0
    for task, kinds in enumerate(((0,), (1, 2))):
        errors, above, boxes = 0.0, 0, []
        for b, y, x in cells():
            for k in kinds:
                said, taught = float(p[b, k, y, x]), float(t[b, k, y, x])
                entropy = -taught * math.log(said) - (1 - taught) * math.log(1 - said)
                errors += (said - taught) ** 2 * entropy
                above += taught > 0.3
            q = sum(float(t[b, k, y, x]) for k in kinds)
            if q > 0.1:
                gap = (student["box"] - teacher["box"])[b, task, :8, y, x].detach().abs()
                boxes.append(q * float(torch.where(gap < 1, gap**2 / 2, gap - 0.5).sum()))
        heat += errors / max(above, 1)
        box += sum(boxes) / max(len(boxes), 1)
    found = centre_class_loss(student["heatmap"], teacher["heatmap"], HEAD, 0.3)
    assert float(found.detach()) == pytest.approx(heat, rel=1e-9)
    found = centre_box_loss(student["box"], teacher["box"], teacher["heatmap"], HEAD, 0.1)
    assert float(found.detach()) == pytest.approx(box, rel=1e-9)
    found.backward()
    grad = student["box"].grad
    assert grad is not None and not grad[:, :, COMPARED:].any()  # the velocity
    where = (of_tasks(t, HEAD) > 0.1)[:, :, None].expand_as(grad)
    assert not grad[~where].any() and (sure == -30.0 or bool(grad[:, :, :COMPARED][where[:, :, :COMPARED]].all()))


def test_who_says_what_the_teacher_says_learns_nothing() -> None:
    teacher = {k: v.detach().clamp(-5, 5) for k, v in heads(1).items()}
    student = {k: v.clone().requires_grad_() for k, v in teacher.items()}
    assert centre_class_loss(student["heatmap"], teacher["heatmap"], HEAD, 0.3) == 0
    assert centre_box_loss(student["box"], teacher["box"], teacher["heatmap"], HEAD, 0.1) == 0


@given(st.floats(-4, 4), st.integers(0, 1000))
def test_where_the_soft_focal_loss_of_several_cameras_ends(logit: float, seed: int) -> None:
    """Its cross-entropy between probabilities is least where both agree; as released it pulls on, and the factor in
    front of it alone lets the whole end there."""
    teacher = torch.full((1, 3, 2, 2), logit, dtype=torch.float64)
    apart = teacher + torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for form in ("probabilities", "logits"):
        same = teacher.clone().requires_grad_()
        loss = surround_class_loss(same, teacher, HEAD, 0.5, form)
        (gradient,) = torch.autograd.grad(loss, same)
        assert loss == 0 and not gradient.any()
        assert surround_class_loss(apart, teacher, HEAD, 0.5, form) > 0


def test_boxes_of_several_cameras_cell_by_cell() -> None:
    student, teacher = heads(0), {k: v.detach() for k, v in heads(1, -1.0).items()}
    parts = ((0, 2), (2, 3), (3, 6), (6, 8), (8, 10))
    every, positives = 0.0, 0.0
    for task, kinds in enumerate(((0,), (1, 2))):
        found = []
        for b, y, x in cells():
            q = max(sum(float(teacher["heatmap"].sigmoid()[b, k, y, x]) for k in kinds), 1e-4)
            gap = (student["box"] - teacher["box"])[b, task, :, y, x].detach().abs()
            error = torch.where(gap < 1, gap**2 / 2, gap - 0.5)
            found.append((q, q * sum(float(error[first:last].mean()) for first, last in parts)))
        every += sum(value for _, value in found) / len(found)
        kept = [value for q, value in found if q > 0.1]
        positives += sum(kept) / max(len(kept), 1)
    maps = (student["box"], teacher["box"], teacher["heatmap"], HEAD, 0.1)
    assert float(surround_box_loss(*maps).detach()) == pytest.approx(every, rel=1e-9)
    assert float(surround_box_loss(*maps, mean="positives").detach()) == pytest.approx(positives, rel=1e-9)
    nobody = torch.full_like(teacher["heatmap"], -30.0)
    assert surround_box_loss(*maps[:2], nobody, HEAD, 0.1, mean="positives") == 0


@pytest.mark.parametrize("kind", [CMKDConfig, MonoTAKDConfig])
def test_centre_heads_have_no_directions(kind: Any) -> None:
    with pytest.raises(UserError, match="dir_weight must be 0, not 0.4"):
        build_terms(kind(response="centres"), {}, {})
    with pytest.raises(UserError, match=r"response 'surround' dir_weight must be 0.*cls_weight 0.2 and loc_weight 50"):
        build_terms(kind(response="surround"), {}, {})


def test_responses_that_do_not_fit(teachers: dict[str, Detector]) -> None:
    context, terms = said("cmkd", scene(1), teachers)
    found = {t.name: t for t in terms}
    answer = context.teachers["teacher"]
    short = replace(answer, predictions=answer.predictions | {"heatmap": answer.predictions["heatmap"][:, 1:]})
    moved = Outputs(
        {"bev_0": replace(answer.features["bev_0"], geometry=BevGeometry(HEAD.extent, 0.8, "ego"))}, answer.predictions
    )
    for name in ("response_cls", "response_loc"):
        with pytest.raises(UserError, match="set response to 'anchors'"):
            found[name](replace(context, student_detector=None))
        with pytest.raises(UserError, match=r"'heatmap' is \(1, 3, 16, 16\) in the student and \(1, 2, 16, 16\)"):
            found[name](replace(context, teachers={"teacher": short}))
        with pytest.raises(ValueError, match="different grids"):
            found[name](replace(context, teachers={"teacher": moved}))
    (anchors, *_) = build_terms(replace(CMKD, response="anchors", feature_weight=0.0), {}, {})
    with pytest.raises(UserError, match="anchor maps"):
        anchors(context)


# ----------------------------------------------------------------------------------------------------------- footprints


def padded(*rows: tuple[float, float, float, float, float]) -> SurroundObjectBatch:
    """One moment's objects from x, y, length, width, yaw."""
    values = torch.tensor(rows)
    centre = torch.cat((values[:, :2], torch.zeros(len(rows), 1)), dim=1)
    size = torch.cat((values[:, 2:4], torch.ones(len(rows), 1)), dim=1)
    label = torch.zeros(len(rows), dtype=torch.int64)
    boxes = Boxes3D(centre, size, values[:, 4], label, "ego", velocity=torch.zeros(len(rows), 2))
    return SurroundObjectBatch.pad([SurroundObjects(boxes, torch.ones_like(label))])


@given(
    st.floats(-20, 20), st.floats(-20, 20), st.floats(0.1, 12), st.floats(0.1, 4), st.floats(-7, 7),
    st.sampled_from([0.8, 1.6, 3.2]),
)  # fmt: skip
def test_footprints_are_the_bounds_of_their_corners(
    x: float, y: float, length: float, width: float, yaw: float, cell: float
) -> None:
    low = torch.tensor([-10.0, -12.0])
    along, across = (torch.tensor([length, -length]) / 2)[:, None], torch.tensor([width, -width]) / 2
    corners = torch.stack((
        x + along * math.cos(yaw) - across * math.sin(yaw), y + along * math.sin(yaw) + across * math.cos(yaw)
    )).flatten(1) - low[:, None]  # fmt: skip
    box = footprint_boxes(padded((x, y, length, width, yaw)), (*low.tolist(), 10.0, 12.0))
    torch.testing.assert_close(box[0, 0], torch.cat((corners.amin(1), corners.amax(1))), rtol=1e-4, atol=1e-4)
    whole = whole_cells(box, cell)[0, 0]
    lower, upper = whole.chunk(2)
    exact = box[0, 0] / cell
    assert torch.equal(whole, whole.round()) and (upper - lower >= 1).all()
    assert (lower <= exact[:2]).all() and (upper >= exact[2:]).all()
    assert ((exact[:2] - lower) < 1).all() and ((upper - exact[2:]) < 1).all()


@pytest.mark.parametrize(
    "geometry", [ImageGeometry(8), BevGeometry(HEAD.extent, CELL, "lidar"), BevGeometry(HEAD.extent, CELL, "ego",
                                                                                       ("x", "y"))],
    ids=["image", "lidar", "axes"],
)  # fmt: skip
def test_footprints_need_the_ground_around_the_vehicle(geometry: Any) -> None:
    with pytest.raises(ValueError, match="rows along y"):
        ground_geometry(FeatureMap(torch.zeros(1, 1, 4, 4), geometry))


# -------------------------------------------------------------------------------------------------------------- MonoSTL


def test_regions_are_the_objects_that_cameras_show(teachers: dict[str, Detector]) -> None:
    context, _ = said("monostl", scene(40, 2), teachers)
    maps = [context.student.features[tap] for tap in MONOSTL.taps]
    found = regions(context, maps, MONOSTL)
    objects, seen = context.batch.objects, context.targets.seen_at
    assert torch.equal(found.known, objects.present & (seen != UNSEEN))
    assert 0 < found.known[0].sum() <= 40 and not found.known[1, 2:].any() and not found.sentinel.any()
    assert found.cells == (CELL, 2 * CELL)
    torch.testing.assert_close(found.distance, objects.centre[..., :2].square().sum(-1).sqrt())


def with_student_scales(context: Context, scales: Tensor) -> Context:
    """As if the student had said this of its depth."""
    changed = replace(context)
    vars(changed)["student_log_scale"] = scales
    return changed


def test_weights_on_the_ground_cell_by_cell(teachers: dict[str, Detector]) -> None:
    """1 - exp(-s) of the nearest object whose footprint touches the cell."""
    context, _ = said("monostl", scene(12, 3), teachers)
    scales = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)) * 2 - 0.5
    context = with_student_scales(context, scales)
    maps = [context.student.features[tap] for tap in MONOSTL.taps]
    found = regions(context, maps, MONOSTL)
    for (weight, mask), m, cell in zip(paint_weights(context, maps, MONOSTL), maps, found.cells, strict=True):
        expected, covered = torch.zeros(m.tensor[:, 0].shape), torch.zeros(m.tensor[:, 0].shape, dtype=torch.bool)
        for b in range(2):
            for i in found.distance[b].argsort(descending=True).tolist():
                if not found.known[b, i]:
                    continue
                left, top, right, bottom = found.box[b, i].tolist()
                columns = slice(max(math.floor(left / cell), 0), max(math.ceil(right / cell), 0))
                rows = slice(max(math.floor(top / cell), 0), max(math.ceil(bottom / cell), 0))
                expected[b, rows, columns] = max(0.0, 1 - math.exp(-float(scales[b, i])))
                covered[b, rows, columns] = True
        assert torch.equal(mask, covered) and covered.any() and not covered.all()
        torch.testing.assert_close(weight.detach(), expected)


def test_what_the_student_trusts_is_left_alone(teachers: dict[str, Detector]) -> None:
    context, terms = said("monostl", scene(6), teachers)
    dasfd = next(t for t in terms if t.name == "dasfd")
    sure, unsure, lost = (float(dasfd(with_student_scales(context, torch.full((1, 6), s))).detach())
                          for s in (-1.0, 0.5, 3.0))  # fmt: skip
    assert sure == 0 < unsure < lost


def test_objects_that_no_camera_shows_count_for_nothing(teachers: dict[str, Detector]) -> None:
    batch = scene(6)
    context, terms = said("monostl", batch, teachers)
    assert batch.objects is not None
    hidden = replace(batch.objects, **{
        name: torch.cat((getattr(batch.objects, name), getattr(batch.objects, name)), dim=1)
        for name in vars(batch.objects)
    })  # fmt: skip
    hidden.centre[:, 6:, 2] = 50.0  # above the cameras
    hidden.centre[:, 6:, :2] += 1.0
    assert context.student_detector is not None
    more = replace(batch, objects=hidden)
    other = replace(context, batch=more, targets=context.student_detector.encode(more))
    for term in terms:
        torch.testing.assert_close(term(other), term(context))


@pytest.mark.parametrize(
    ("change", "term"), [({"fd_weight": "teacher"}, "dasfd"), ({"rd_uncertainty": "teacher_both"}, "dasrd"),
                         ({"rd_uncertainty": "own_side"}, "dasrd")],
)  # fmt: skip
def test_a_teacher_that_is_given_depth_has_no_uncertainty(
    change: dict[str, Any], term: str, teachers: dict[str, Detector]
) -> None:
    context, _ = said("monostl", scene(3), teachers)
    channels = STUDENT_CHANNELS
    found = {t.name: t for t in build_terms(replace(MONOSTL, **change), channels, channels)}
    with pytest.raises(UserError, match="bevdepth predicts no uncertainty of depth"):
        found.pop(term)(context)
    assert all(other(context).isfinite() for other in found.values())


STUDENT_CHANNELS = {"bev_neck": 4 * STUDENT.bev_neck_channels, "bev_stage1": 8}


@pytest.mark.parametrize(
    ("change", "batch", "words"),
    [
        ({"response_weight": 1.0}, {}, "set response_weight to 0"),
        ({"valid_rows": "sentinel"}, {}, "no meaning on the ground"),
        ({"box_slice": "python"}, {}, "no meaning on the ground"),
        ({}, {"objects": None}, "needs annotations"),
    ],
)
def test_what_is_refused_on_the_ground(
    change: dict[str, Any], batch: dict[str, Any], words: str, teachers: dict[str, Detector]
) -> None:
    context, _ = said("monostl", scene(3), teachers)
    context = replace(context, batch=replace(context.batch, **batch))
    for term in build_terms(replace(MONOSTL, **change), STUDENT_CHANNELS, STUDENT_CHANNELS)[:2]:
        with pytest.raises(UserError, match=words):
            term(context)


# -------------------------------------------------------------------------------------------------------------- recipes


def test_recipes_mark_what_is_inferred() -> None:
    from distill3d.recipes import get_recipe

    for name in ("monotakd_bevdepth", "monostl_bevdepth", "tiny_surround"):
        assert "inferred" in get_recipe(name).note
    takd = get_recipe("monotakd_bevdepth")
    assert "43.0 mAP / 53.7 NDS" in takd.note
    assert [s.name for s in takd.stages] == ["teacher", "baseline", "assistant_bev", "assistant", "student"]
    halves = sum(takd.stage(name).schedule.epochs for name in ("assistant_bev", "assistant"))
    assert halves == takd.stage("student").schedule.epochs == takd.stage("baseline").schedule.epochs
    tiny, other = get_recipe("tiny_surround"), get_recipe("tiny_labeldistill")
    for name in ("teacher", "baseline"):
        assert tiny.stage_fingerprint(tiny.stage(name)) == other.stage_fingerprint(other.stage(name))


@pytest.mark.parametrize("name", ["monotakd_bevdepth", "monostl_bevdepth", "tiny_surround"])
def test_taps_of_the_recipes_fit(name: str) -> None:
    """The terms of every stage are built, and what is imitated has the imitator's channels and cells."""
    from distill3d.detectors import build_detector
    from distill3d.recipes import get_recipe

    recipe = get_recipe(name)
    with torch.device("meta"):
        built = {}
        for stage in recipe.stages:
            config = stage.detector
            if isinstance(config, BEVDepthConfig):
                config = replace(config, trunk=replace(config.trunk, pretrained=False))
            built[stage.name] = build_detector(config)
        for stage in recipe.stages:
            if stage.method is None:
                continue
            student, first = built[stage.name], built[stage.teachers[0]]
            assert build_terms(stage.method, student.tap_channels, first.tap_channels)
            if isinstance(stage.method, CMKDConfig | MonoTAKDConfig):
                assert stage.method.teacher_tap == "bev_0"
                assert student.tap_channels["bev"] == first.tap_channels["bev_0"]
                assert student.config.geometry == first.geometries["bev_0"]
