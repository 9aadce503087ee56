"""UniDistill and TiG-BEV on made-up surround scenes: points in boxes, who learns, empty scenes, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_surround_methods import CELL, HEAD, LIDAR, REACH, STUDENT, WIDE, build, scene
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.surround import SurroundBatch, SurroundObjectBatch, SurroundObjects
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Outputs
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.centerpoint import CenterPoint
from distill3d.distill.box_points import (
    NINE_POINTS,
    Footprints,
    Reading,
    box_points,
    gram,
    grid_shares,
    labelled_footprints,
    on_map,
    positions,
)
from distill3d.distill.context import Context, detached
from distill3d.distill.map_reading import read_at
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.tig_bev import (
    TiGBEVConfig,
    box_numbers,
    depth_at_points,
    inner_depth_loss,
    nearest_points,
    one_of,
    relation_loss,
)
from distill3d.distill.methods.unidistill import EPS, PAIRS, PairSettings, UniDistillConfig, gaussian_mask
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.image.heatmap import gaussian_radius

GROUND = BevGeometry(HEAD.extent, HEAD.cell, "ego")
#: The small teacher's maps that lie on the student's grid.
UNI: dict[str, Any] = {"adapter": "pointwise", "teacher_high_tap": "bev_0"}
TIG: dict[str, Any] = {"teacher_tap": "bev_0", "samples": 5}
METHODS: dict[str, StyledConfig] = {
    "unidistill": UniDistillConfig(**UNI),
    "unidistill, released": UniDistillConfig.styled("released", **UNI),
    "unidistill, intended": UniDistillConfig.styled("intended", **UNI),
    "unidistill, both softened": UniDistillConfig(temperature="both", pair="lidar_from_fusion", **UNI),
    "tig_bev": TiGBEVConfig(**TIG),
    "tig_bev, released": TiGBEVConfig.styled("released", **TIG),
    "tig_bev, intended": TiGBEVConfig.styled("intended", **TIG),
}
NAMES = {
    "unidistill": {"feature": 100.0, "relation": 40.0, "response": 10.0},
    "unidistill, both softened": {"feature": 10.0, "relation": 1.0, "response": 10.0},
    "tig_bev": {"inner_depth": 1.0, "inter_keypoint": 100.0, "inter_channel": 10.0},
    "tig_bev, released": {"inner_depth": 1.0, "inter_keypoint": 100.0, "inter_channel": 10.0, "depth_all_cells": 100.0},
}
SCENES: dict[str, tuple[int, ...]] = {
    "no objects": (0,), "one object": (1,), "two moments without": (0, 0), "one without": (0, 5), "crowd": (90, 3),
}  # fmt: skip
#: LiDAR points that are put into each object, of the key scan.
INSIDE = 40


def with_points_inside(batch: SurroundBatch, seed: int = 0) -> SurroundBatch:
    """The batch with points of the key scan in every object, beside older ones everywhere."""
    generator, objects = torch.Generator().manual_seed(seed), batch.objects
    assert objects is not None and batch.points is not None
    scans = []
    for i, noise in enumerate(batch.points):
        rows = objects.present[i].nonzero()[:, 0]
        local = (torch.rand(len(rows), INSIDE, 3, generator=generator) - 0.5) * objects.size[i, rows, None]
        cos, sin = (f(objects.yaw[i, rows, None]) for f in (torch.cos, torch.sin))
        x, y, z = local.unbind(-1)
        turned = torch.stack((x * cos - y * sin, x * sin + y * cos, z), dim=-1) + objects.centre[i, rows, None]
        older = torch.cat((noise[:, :4], noise[:, 4:].abs() + 0.05), dim=1)
        scans.append(torch.cat((torch.nn.functional.pad(turned.flatten(0, 1), (0, 2)), older)))
    return replace(batch, points=scans)


@pytest.fixture(scope="module")
def teacher() -> Detector:
    return build(CenterPoint, LIDAR, 1).eval().requires_grad_(False)


def said(
    config: StyledConfig, batch: SurroundBatch, teacher: Detector
) -> tuple[Context, dict[str, Term]]:  # fmt: skip
    """What student and teacher say of a batch, and the method's terms."""
    student = build(BEVDepth, STUDENT, 0).train()
    context = Context(
        student(batch), {"teacher": detached(teacher(batch))}, batch, student.encode(batch), student,
        {"teacher": teacher},
    )  # fmt: skip
    torch.manual_seed(0)
    return context, {t.name: t for t in build_terms(config, student.tap_channels, teacher.tap_channels)}


def summed(context: Context, terms: dict[str, Term]) -> Tensor:
    return torch.stack([term.weight * term(context) for term in terms.values()]).sum()


# ------------------------------------------------------------------------------------------------------ every situation


@pytest.mark.parametrize("scene_name", SCENES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_finite_and_teach_the_student_alone(method: str, scene_name: str, teacher: Detector) -> None:
    counts = SCENES[scene_name]
    context, terms = said(METHODS[method], with_points_inside(scene(*counts)), teacher)
    assert {t.name: t.weight for t in terms.values()} == NAMES.get(method, NAMES[method.split(",")[0]])
    losses = {name: term(context) for name, term in terms.items()}
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() and v >= 0 for v in losses.values()), losses
    if sum(counts) == 0:
        # The released code makes up an object for UniDistill; absolute depth asks for none.
        idle = set(losses) - {"depth_all_cells"} if method != "unidistill, released" else set()
        assert all(losses[name] == 0 for name in idle)
    elif sum(counts) > 1:
        assert all(v > 0 for v in losses.values()), losses
    torch.stack(list(losses.values())).sum().backward()
    assert context.student_detector is not None
    grads = [p.grad for p in context.student_detector.parameters()]
    assert any(g is not None for g in grads) and all(g.isfinite().all() for g in grads if g is not None)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for t in terms.values() for p in t.parameters())


#: The parts of the student that each term teaches.
REACH_OF = {
    ("unidistill", "feature"): {"backbone"},
    ("unidistill", "relation"): {"backbone", "trunk", "neck"},
    ("unidistill", "response"): {"backbone", "trunk", "neck", "head"},
    ("tig_bev, released", "inner_depth"): {"backbone"},
    ("tig_bev, released", "depth_all_cells"): {"backbone"},
    ("tig_bev, released", "inter_keypoint"): {"backbone", "trunk", "neck"},
    ("tig_bev, released", "inter_channel"): {"backbone", "trunk", "neck"},
}


@pytest.mark.parametrize(("method", "term"), REACH_OF)
def test_what_a_term_teaches(method: str, term: str, teacher: Detector) -> None:
    context, terms = said(METHODS[method], with_points_inside(scene(6, 3)), teacher)
    terms[term](context).backward()
    assert context.student_detector is not None
    reached = {n.split(".")[0] for n, p in context.student_detector.named_parameters()
               if p.grad is not None and p.grad.any()}  # fmt: skip
    assert reached == REACH_OF[method, term]


@pytest.mark.parametrize("method", ["unidistill", "tig_bev"])
def test_what_trains_beside_the_student_is_the_terms_own(method: str, teacher: Detector) -> None:
    context, terms = said(METHODS[method], with_points_inside(scene(3)), teacher)
    student = context.student_detector
    assert student is not None and student.state_dict().keys() == build(BEVDepth, STUDENT, 3).state_dict().keys()
    owned = {id(p) for p in student.parameters()}
    extra = {name: [tuple(p.shape) for p in term.parameters()] for name, term in terms.items()}
    assert not any(id(p) in owned for term in terms.values() for p in term.parameters())
    low, high = (teacher.tap_channels[tap] for tap in ("bev_low", "bev_0"))
    if method == "unidistill":
        assert extra == {"feature": [(low, STUDENT.context_channels, 1, 1), (low,)], "relation": [], "response": []}
    else:
        neck = student.tap_channels["bev_neck"]
        assert extra == {"inner_depth": [], "inter_keypoint": [], "inter_channel": [(high, neck, 1, 1), (high,)]}


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method: str, teacher: Detector) -> None:
    """Under autocast, and of maps that come in half precision, losses are float32 and close to those in full."""
    context, terms = said(METHODS[method], with_points_inside(scene(5, 2)), teacher)

    def halved(outputs: Outputs) -> Outputs:
        maps = {tap: FeatureMap(f.tensor.bfloat16(), f.geometry) for tap, f in outputs.features.items()}
        return Outputs(maps, outputs.predictions)

    half = replace(context, student=halved(context.student), teachers={"teacher": halved(context.teacher)})
    with torch.autocast("cpu", torch.bfloat16):
        losses = {name: term(half) for name, term in terms.items()}
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, terms[name](context), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_zeros(method: str, teacher: Detector) -> None:
    """Features without a direction: gradients stay finite."""
    context, terms = said(METHODS[method], with_points_inside(scene(4)), teacher)
    blank = {tap: FeatureMap(torch.zeros_like(f.tensor).requires_grad_(), f.geometry)
             for tap, f in context.student.features.items()}  # fmt: skip
    context = replace(context, student=Outputs(blank, context.student.predictions))
    loss = summed(context, terms)
    loss.backward()
    assert loss.isfinite()
    assert all(f.tensor.grad is None or f.tensor.grad.isfinite().all() for f in blank.values())


# -------------------------------------------------------------------------------------------------- which objects count


def more_rows(objects: SurroundObjectBatch, count: int, **fields: Any) -> SurroundObjectBatch:
    """The table with ``count`` rows more: empty ones, or with ``fields`` in them."""
    longer = {}
    for name, value in vars(objects).items():
        row = value.new_full((len(value), count, *value.shape[2:]), -1 if name == "label" else 0)
        if name in fields:
            row[:] = torch.as_tensor(fields[name])
        longer[name] = torch.cat((value, row), dim=1)
    return SurroundObjectBatch(**longer)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_pad_a_table_and_objects_off_the_ground(method: str, teacher: Detector) -> None:
    """Neither changes anything, but that as released the former paint the vehicle's cell."""
    context, terms = said(METHODS[method], with_points_inside(scene(4, 2)), teacher)
    objects = context.batch.objects
    off = {"centre": [REACH + 5.0, 0.0, 0.0], "size": [1.0, 1.0, 1.0], "label": 0, "present": True}
    for other in (more_rows(objects, 3), more_rows(objects, 2, **off)):
        changed = replace(context, batch=replace(context.batch, objects=other))
        for name, term in terms.items():
            if name == "response" and method == "unidistill, released":
                # The second sample has had padding already, the first has not.
                assert term(changed) != term(context)
            else:
                torch.testing.assert_close(term(changed), term(context), rtol=1e-5, atol=1e-7)


def test_a_sample_without_boxes_as_released(teacher: Detector) -> None:
    """It counts as one with a box without extent at the vehicle."""
    context, _ = said(METHODS["unidistill, released"], with_points_inside(scene(0, 3)), teacher)
    phantom = labelled_footprints(context, GROUND, "unidistill", "phantom")
    skipped = labelled_footprints(context, GROUND, "unidistill")
    assert phantom.counted.tolist() == [[True, False, False], [True, True, True]]
    assert skipped.counted.tolist() == [[False] * 3, [True] * 3]
    assert not phantom.centre[0].any() and not phantom.size[0].any() and not phantom.yaw[0].any()


# ------------------------------------------------------------------------------------------------------ points and maps


def one_box(x: float, y: float, length: float, width: float, yaw: float) -> Footprints:
    centre, size = torch.tensor([[[x, y]]]).double(), torch.tensor([[[length, width]]]).double()
    return Footprints.of(centre, size, torch.tensor([[yaw]]).double(), torch.ones(1, 1, dtype=torch.bool))


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.1, 6), st.floats(0.1, 3), st.floats(-7, 7), st.floats(0, 2))
def test_points_of_a_box(x: float, y: float, length: float, width: float, yaw: float, enlarge: float) -> None:
    """Corners in a circle about the centre, the first behind on the right; edges' middles between them."""
    points = box_points(one_box(x, y, length, width, yaw), NINE_POINTS, enlarge)[0, 0]
    along, across = (length / 2 + enlarge), (width / 2 + enlarge)
    ahead, left = torch.tensor([math.cos(yaw), math.sin(yaw)]), torch.tensor([-math.sin(yaw), math.cos(yaw)])
    middle = torch.tensor([x, y])
    torch.testing.assert_close(points[0].float(), middle - along * ahead - across * left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(points[2].float(), middle + along * ahead + across * left, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(points[4].float(), middle, rtol=1e-5, atol=1e-5)
    for at, (a, b) in zip(range(5, 9), ((0, 1), (1, 2), (2, 3), (0, 3)), strict=True):
        torch.testing.assert_close(points[at], (points[a] + points[b]) / 2)
    grid = box_points(one_box(x, y, length, width, yaw), grid_shares(3), enlarge)[0, 0]
    order = {0: 0, 2: 3, 4: 4, 6: 1, 8: 2}  # of the grid's corners and centre among the nine
    for ours, nine in order.items():
        torch.testing.assert_close(grid[ours], points[nine])


#: A map of 5 x 8 cells of 0.5 m that says where its cells' middles are: x in channel 0, y in channel 1.
PLACE = BevGeometry((-1.0, -2.0, 3.0, 0.5), 0.5, "ego")
COLUMNS, ROWS = torch.arange(-0.75, 3.0, 0.5), torch.arange(-1.75, 0.5, 0.5)
SAYS = torch.stack(torch.meshgrid(COLUMNS, ROWS, indexing="xy"))[None]


@given(st.floats(-0.75, 2.75), st.floats(-1.75, 0.25))
def test_where_maps_are_read(x: float, y: float) -> None:
    def read(reading: Reading) -> Tensor:
        return read_at(SAYS, positions(torch.tensor([[[[x, y]]]]), PLACE, reading))[0, 0, 0]

    torch.testing.assert_close(read("centred"), torch.tensor([x, y]), rtol=0, atol=1e-5)
    # Exchanged: as far along a side as the point is along the other one.
    along = ((x + 1) / 4, (y + 2) / 2.5)
    exchanged = torch.tensor([4 * along[1] - 1, 2.5 * along[0] - 2])
    if -0.75 <= exchanged[0] <= 2.75 and -1.75 <= exchanged[1] <= 0.25:
        torch.testing.assert_close(read("exchanged"), exchanged, rtol=0, atol=1e-5)
    stretched = torch.tensor([(x + 1) * 8 / 7 - 1, (y + 2) * 5 / 4 - 2])
    if stretched[0] <= 2.75 and stretched[1] <= 0.25:
        torch.testing.assert_close(read("stretched"), stretched, rtol=0, atol=1e-5)


def test_outside_a_map() -> None:
    points = torch.tensor([[[[3.6, -1.0], [-5.0, -1.0], [1.0, 0.9]]]])
    assert not on_map(points, PLACE).any() and on_map(torch.tensor([2.9, 0.4]), PLACE)
    assert not read_at(torch.ones(1, 2, 5, 8), positions(points, PLACE)).any()
    held = read_at(torch.ones(1, 2, 5, 8), positions(points, PLACE, "stretched", clamp=True))
    torch.testing.assert_close(held[0, 0, :2], torch.full((2, 2), 0.5))  # half a cell beyond the last one's middle


def test_reading_some_boxes_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 5, 8, generator=generator)
    at = 6 * torch.rand(3, 4, 7, 2, generator=generator) - 1
    counted = torch.rand(3, 4, generator=generator) < 0.5
    torch.testing.assert_close(read_at(maps, at, counted.nonzero(as_tuple=True)), read_at(maps, at)[counted])
    grid = (at + 0.5) / torch.tensor([4.0, 2.5]) - 1
    plain = torch.nn.functional.grid_sample(maps, grid, align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(read_at(maps, at), plain, rtol=1e-5, atol=1e-5)
    nothing = torch.zeros_like(counted).nonzero(as_tuple=True)
    assert read_at(maps, at, nothing).shape == (0, 7, 2)


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_relations(seed: int, scale: float) -> None:
    """Cosines and unit rows know no scale; what agrees costs nothing, and nothing costs more than 4."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(3, 4, c, generator=generator, dtype=torch.float64) for c in (5, 6))
    for form in ("rows", "cosine"):
        relations = gram(student, form)
        norm = relations.square().sum(-1) if form == "rows" else relations.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(norm, torch.ones_like(norm))
        assert relation_loss(student, scale * student, form) < 1e-20
        loss = relation_loss(student, teacher, form)
        assert 0 < loss <= 4
        expected = 0.0
        for i in range(3):
            s, t = ([row / row.norm() for row in rows[i]] if form == "cosine" else list(rows[i])
                    for rows in (student, teacher))  # fmt: skip
            of_s, of_t = (torch.stack([torch.stack([a @ b for b in rows]) for a in rows]) for rows in (s, t))
            if form == "rows":
                of_s, of_t = (m / m.norm(dim=1, keepdim=True) for m in (of_s, of_t))
            squared = (of_s - of_t).square()
            expected += float(squared.sum(1).mean() if form == "rows" else squared.mean()) / 3
        assert float(loss) == pytest.approx(expected, rel=1e-9)
    assert relation_loss(student[:0], teacher[:0]) == 0


# ----------------------------------------------------------------------------------------------------------- UniDistill


def test_weights_of_the_pairs() -> None:
    for pair, settings in PAIRS.items():
        assert UniDistillConfig(pair=pair).settings == settings
    own = UniDistillConfig(feature_weight=0.0, relation_weight=2.0, response_weight=3.0, teacher_margin=0.01)
    assert own.settings == PairSettings(0.0, 2.0, 3.0, 0.01)
    channels = {"bev": 4, "bev_low": 4, "bev_neck": 6}
    found = build_terms(own, channels, channels)
    assert [(t.name, t.weight) for t in found] == [("relation", 2.0), ("response", 3.0)]


@given(st.integers(0, 1000))
def test_mask_cell_by_cell(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, 5, 5, generator=generator)
    centre = (2 * values[..., :2] - 1) * 1.2 * REACH
    boxes = Footprints.of(centre, 1 + 20 * values[..., 2:4], values[..., 4], torch.ones(2, 5, dtype=torch.bool))
    drawn = torch.rand(2, 5, generator=generator) < 0.8
    found, expected = gaussian_mask(boxes, drawn, GROUND, HEAD.cells), torch.zeros(2, *HEAD.cells)
    for b in range(2):
        for i in drawn[b].nonzero()[:, 0].tolist():
            column, row = (math.trunc(float(c + REACH) / CELL) for c in centre[b, i])
            if not (0 <= column < 16 and 0 <= row < 16):
                continue
            radius = max(int(gaussian_radius(*(boxes.size[b, i] / CELL)[:, None], 0.7)), 0)
            for y in range(max(row - radius, 0), min(row + radius, 15) + 1):
                for x in range(max(column - radius, 0), min(column + radius, 15) + 1):
                    sigma = (2 * radius + 1) / 6
                    value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * sigma**2))
                    expected[b, y, x] = max(float(expected[b, y, x]), value)
    torch.testing.assert_close(found, expected)


def test_a_teacher_that_agrees_teaches_nothing(teacher: Detector) -> None:
    """Where neither side is softened; as released, the teacher's halved logits are another answer."""
    context, terms = said(METHODS["unidistill"], with_points_inside(scene(4)), teacher)
    heads = {name: p.detach().clamp(-5, 5) for name, p in context.teacher.predictions.items()}
    maps = {tap: f for tap, f in context.student.features.items()}
    echo = {"bev_low": maps["bev"], "bev_0": maps["bev_neck"]}
    context = replace(context, student=Outputs(maps, heads), teachers={"teacher": Outputs(echo, heads)})
    assert terms["response"](context) == 0 and terms["relation"](context) == 0
    channels = {"bev": maps["bev"].tensor.shape[1], "bev_neck": maps["bev_neck"].tensor.shape[1]}
    taught = {"bev_low": channels["bev"], "bev_0": channels["bev_neck"]}
    plain = build_terms(UniDistillConfig(teacher_high_tap="bev_0"), channels, taught)
    assert not list(plain[0].parameters()) and plain[0](context) == 0
    for config in (METHODS["unidistill, released"], replace(METHODS["unidistill"], temperature="both")):
        (*_, response) = build_terms(config, channels, taught)
        assert (response(context) == 0) == (config != METHODS["unidistill, released"])


def test_features_object_by_object(teacher: Detector) -> None:
    """|s - t| at the nine points of each box, by hand."""
    context, terms = said(METHODS["unidistill"], with_points_inside(scene(3, 1)), teacher)
    term: Any = terms["feature"]
    student = term.adapter(context.student.features["bev"].tensor)
    taught, objects = context.teacher.features["bev_low"].tensor, context.batch.objects
    total, count = 0.0, 0
    for b, i in objects.present.nonzero().tolist():
        (x, y), (length, width) = objects.centre[b, i, :2].tolist(), objects.size[b, i, :2].tolist()
        points = box_points(one_box(x, y, length, width, float(objects.yaw[b, i])), NINE_POINTS)[0].float()
        grid = (points / REACH)[None]
        read = [torch.nn.functional.grid_sample(m[b : b + 1], grid, align_corners=False) for m in (student, taught)]
        total += float((read[0] - read[1]).abs().mean().detach())
        count += 1
    assert float(term(context).detach()) == pytest.approx(total / (count + EPS), rel=1e-4)


# -------------------------------------------------------------------------------------------------------------- TiG-BEV


def test_points_in_cells_and_boxes_one_by_one(teacher: Detector) -> None:
    batch = with_points_inside(scene(12, 0, 5))
    context, _ = said(METHODS["tig_bev"], batch, teacher)
    logits, bins, found = depth_at_points(context, "key", "")
    assert bins == STUDENT.bins and batch.objects is not None and batch.points is not None
    size = (logits.shape[-2], logits.shape[-1])
    box = box_numbers(found, batch.objects, "last")
    depth, number = torch.zeros_like(found.depth), torch.zeros_like(box)
    for b, scan in enumerate(batch.points):
        for camera in range(6):
            to_camera = torch.linalg.inv(batch.camera_to_ego[b, 0, camera])
            for point in scan[scan[:, 4] == 0]:
                x, y, z, _ = (to_camera @ torch.tensor([*point[:3].double(), 1.0]).double()).tolist()
                if not bins.near <= z < bins.far:
                    continue
                u, v, _ = (batch.intrinsics[b, 0, camera, :3, :3] @ torch.tensor([x, y, z]).double() / z).tolist()
                column, row = round(u / 16), round(v / 16)
                if not (0 <= column < size[1] and 0 <= row < size[0]):
                    continue
                before = float(depth[b, camera, row, column])
                if before == 0 or z < before:
                    depth[b, camera, row, column] = z
                    number[b, camera, row, column] = last_box(point[:3], batch.objects, b)
    torch.testing.assert_close(found.depth, depth)
    assert torch.equal(box, number) and number.any() and (number[1] == 0).all()


def last_box(point: Tensor, objects: SurroundObjectBatch, sample: int) -> int:
    for i in reversed(range(objects.label.shape[1])):
        yaw = float(objects.yaw[sample, i])
        x, y, z = (point - objects.centre[sample, i]).tolist()
        local = (x * math.cos(yaw) + y * math.sin(yaw), y * math.cos(yaw) - x * math.sin(yaw), z)
        half = (objects.size[sample, i] / 2).tolist()
        if objects.present[sample, i] and all(abs(c) <= h for c, h in zip(local, half, strict=True)):
            return i + 1
    return 0


def test_which_of_several_boxes_holds_a_point() -> None:
    inside = torch.tensor([[[True, True, False], [False, True, True], [False, False, False]]])
    distance = torch.tensor([[[1.0, 2.0, 0.5], [0.1, 2.0, 3.0], [1.0, 1.0, 1.0]]])
    assert one_of(inside, distance, "last").tolist() == [[2, 3, 0]]
    assert one_of(inside, distance, "nearest").tolist() == [[1, 2, 0]]


def test_older_points_count_as_released_only(teacher: Detector) -> None:
    context, _ = said(METHODS["tig_bev"], with_points_inside(scene(2)), teacher)
    key, every = (depth_at_points(context, scans, "")[2] for scans in ("key", "all"))
    real = [int(found.points.isfinite().all(-1).sum()) for found in (key, every)]
    assert real == [2 * INSIDE, 2 * INSIDE + 300]
    assert (every.depth > 0).sum() > (key.depth > 0).sum() > 0
    bare = replace(context.batch, points=[scan[:0] for scan in context.batch.points])
    (_, _, none) = depth_at_points(replace(context, batch=bare), "all", "")
    assert not none.depth.any() and (none.index == -1).all()
    assert not box_numbers(none, bare.objects, "nearest").any()


def test_points_that_are_not_finite_are_seen_nowhere() -> None:
    batch = scene(1)
    points = torch.tensor([[[5.0, 0, 1], [math.nan, 0, 1], [math.inf, 0, 1], [0, 0, 1.5]]])
    cameras = (batch.image_affine, batch.intrinsics[:, 0], batch.camera_to_ego[:, 0], batch.bev_affine)
    found = nearest_points(points, *cameras, (2, 4), 16, STUDENT.bins)
    assert found.index[0, 0].unique().tolist() == [-1, 0] and (found.index < 1).all()


@given(st.integers(0, 1000), st.integers(1, 3))
def test_inner_depth_object_by_object(seed: int, images: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bins, boxes = STUDENT.bins, 3
    logits = torch.randn(images, bins.count, 3, 4, generator=generator, dtype=torch.float64).requires_grad_()
    depth = 2 + 20 * torch.rand(images, 3, 4, generator=generator, dtype=torch.float64)
    box = torch.randint(0, boxes + 1, depth.shape, generator=generator)
    begins = bins.near + (bins.far - bins.near) / bins.count * torch.arange(bins.count)
    e = (logits.softmax(1) * begins[:, None, None]).sum(1)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for image in range(images):
        for number in range(1, boxes + 1):
            inside = box[image] == number
            if not inside.any():
                continue
            said_depths, true = e[image][inside], depth[image][inside]
            best = int((said_depths - true).abs().argmin())
            total = total + ((said_depths - said_depths[best].detach()) - (true - true[best])).square().sum()
            count += len(true)
    found = inner_depth_loss(logits, depth, box, boxes, bins)
    torch.testing.assert_close(found, total / max(count, 1), rtol=1e-6, atol=1e-9)
    if count:
        ours, theirs = (torch.autograd.grad(v, logits, retain_graph=True)[0] for v in (found, total / count))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_a_depth_that_is_wrong_as_a_whole_costs_nothing() -> None:
    """L_inner_depth knows no absolute depth: all of a box's cells a metre too far are as good as right."""
    bins, near = STUDENT.bins, torch.tensor([[[4, 6, 7]]])
    step = (bins.far - bins.near) / bins.count
    logits = torch.full((1, bins.count, 1, 3), -100.0).scatter(1, near[:, None], 100.0)
    depth = bins.depth(near).float()
    box = torch.ones_like(near)
    assert inner_depth_loss(logits, depth + step, box, 1, bins) < 1e-6
    bent = depth + torch.tensor([0.0, step, 0.0])
    assert float(inner_depth_loss(logits, bent, box, 1, bins)) == pytest.approx(step**2 / 3, rel=1e-4)


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("config", "student", "words"),
    [
        (UniDistillConfig(), {"bev": 8}, "the teacher has no tap 'bev_low'; it offers bev_0, bev_neck"),
        (UniDistillConfig(teacher_low_tap="bev_0"), {"bev_low": 8}, "the student has no tap 'bev'; it offers bev_low"),
        (UniDistillConfig(teacher_low_tap="bev_0"), {"bev": 8, "bev_neck": 8},
         r"'bev' of the student has 8, 'bev_0' of the teacher 10; .* set adapter to 'pointwise'"),
        (UniDistillConfig(feature_weight=0.0), {"bev": 8}, "the student has no tap 'bev_neck'; it offers bev"),
        (TiGBEVConfig(), {"bev": 8}, "tig_bev: the student has no tap 'bev_neck'; it offers bev"),
        (TiGBEVConfig(teacher_tap="bev_2"), {"bev_neck": 8}, "the teacher has no tap 'bev_2'; it offers bev_0"),
        (TiGBEVConfig(teacher_tap="bev_2", keypoint_weight=0.0), {"bev_neck": 8}, "the teacher has no tap 'bev_2'"),
    ],
)  # fmt: skip
def test_taps_and_widths_that_do_not_fit(config: StyledConfig, student: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_terms(config, student, {"bev_0": WIDE, "bev_neck": 16})


@pytest.mark.parametrize("method", ["unidistill", "tig_bev"])
def test_batches_and_detectors_that_do_not_fit(method: str, teacher: Detector) -> None:
    context, terms = said(METHODS[method], with_points_inside(scene(2)), teacher)
    unlabelled = replace(context, batch=replace(context.batch, objects=None))
    for term in terms.values():
        with pytest.raises(UserError, match=f"{method} looks at labelled objects"):
            term(unlabelled)
    wide = {tap: FeatureMap(torch.cat((f.tensor, f.tensor), dim=1), f.geometry)
            for tap, f in context.teacher.features.items()}  # fmt: skip
    widened = replace(context, teachers={"teacher": Outputs(wide, context.teacher.predictions)})
    with pytest.raises(UserError, match=r"the teacher's map has \d+ channels, expected"):
        terms["feature" if method == "unidistill" else "inter_channel"](widened)
    moved = {tap: replace(f, geometry=BevGeometry(HEAD.extent, CELL / 2, "ego"))
             for tap, f in context.teacher.features.items()}  # fmt: skip
    elsewhere = replace(context, teachers={"teacher": Outputs(moved, context.teacher.predictions)})
    for name, term in terms.items():
        if name != "inner_depth":
            with pytest.raises(ValueError, match="different grids"):
                term(elsewhere)
    with pytest.raises(UserError, match="asks for a teacher named 'lidar'"):
        terms_of = build_terms(
            replace(METHODS[method], teacher="lidar"), dict.fromkeys(("bev", "bev_neck"), 4),
            dict.fromkeys(("bev_low", "bev_0"), 4),
        )  # fmt: skip
        terms_of[1](context)


def test_depths_that_are_not_there(teacher: Detector) -> None:
    context, terms = said(METHODS["tig_bev, released"], with_points_inside(scene(2)), teacher)
    dumb = replace(context, student=Outputs(context.student.features, {}))
    blind = replace(context, batch=replace(context.batch, points=None))
    for name, weight in (("inner_depth", "inner_depth_weight"), ("depth_all_cells", "depth_weight")):
        with pytest.raises(UserError, match=f"needs BEVDepth with input 'rgb', or set {weight} to 0"):
            terms[name](dumb)
        with pytest.raises(UserError, match=f"the data set gives none: set {weight} to 0"):
            terms[name](blind)


def test_one_image_is_no_surround_view(teacher: Detector) -> None:
    context, terms = said(METHODS["unidistill"], with_points_inside(scene(1)), teacher)
    with pytest.raises(UserError, match="needs a data set of surround views with annotations"):
        terms["feature"](replace(context, batch=None))


def test_a_moment_of_one_box_as_the_batch_has_it() -> None:
    """Boxes3D's own convention: length along the heading, counter-clockwise."""
    boxes = Boxes3D(
        torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[4.0, 2.0, 1.5]]), torch.tensor([math.pi / 2]),
        torch.zeros(1, dtype=torch.int64), "ego", velocity=torch.zeros(1, 2),
    )  # fmt: skip
    objects = SurroundObjectBatch.pad([SurroundObjects(boxes, torch.ones(1, dtype=torch.int64))])
    found = Footprints.of(objects.centre[..., :2], objects.size[..., :2], objects.yaw, objects.present)
    points = box_points(found, NINE_POINTS)[0, 0]
    torch.testing.assert_close(points[7], torch.tensor([1.0, 4.0]))  # the middle of its front
    torch.testing.assert_close(points[6], torch.tensor([0.0, 2.0]))  # of its left side
