"""UVTR's transfer, BEVDistill and SimDistill on made-up surround views: who is asked, who learns, what is refused."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_surround_methods import CLASSES, HEAD, LIDAR, REACH, STUDENT, scene
from torch import Tensor

from distill3d.boxes import Boxes3D
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import BevGeometry, Detector, FeatureMap, Outputs
from distill3d.detectors.bevdepth import BEVDepth
from distill3d.detectors.centerpoint import CenterPoint
from distill3d.distill.centre_points import class_order, of_peaks, of_queries
from distill3d.distill.context import Context, detached
from distill3d.distill.map_reading import cells_of, read_at
from distill3d.distill.methods import build_terms, method_name
from distill3d.distill.methods.bevdistill import (
    BEVDistillConfig,
    best_boxes,
    contrastive_loss,
    dense_loss,
    instance_losses,
    matched_queries,
    matching_costs,
)
from distill3d.distill.methods.simdistill import (
    SimDistillConfig,
    object_mask,
    response_box_loss,
    response_class_loss,
)
from distill3d.distill.methods.uvtr_kd import UVTRKDConfig, point_losses
from distill3d.distill.style import StyledConfig
from distill3d.distill.term import Term
from distill3d.errors import UserError
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig
from distill3d.layers.heads.centre_head import CentreTargets, centre_targets, codes_at, task_candidates
from distill3d.layers.heads.matching import UNMATCHED

LAYERS, QUERIES, MAP_CHANNELS = 3, 7, 6
FUSED_CHANNELS = 5
#: SimDistill's student.
BRANCHES = replace(STUDENT, simulated=SimulatedBranchConfig(heads=2, points=3, fused_channels=FUSED_CHANNELS))
GROUND = BevGeometry((-REACH, -REACH, REACH, REACH), 1.6, "ego")
NETWORK = {"backbone", "trunk", "neck", "head"}
SCENES: dict[str, tuple[int, ...]] = {"one": (1,), "no objects": (0,), "one without objects": (0, 5), "crowd": (60,)}

UVTR = UVTRKDConfig(teacher_taps=("bev_0",), peaks=9)
BEV_FIELDS: dict[str, Any] = {
    "teacher_tap": "bev_0", "classes": CLASSES, "top_k": 5, "embedding": 8, "heat_channels": 8, "peaks": 9,
}  # fmt: skip
BEV = BEVDistillConfig(**BEV_FIELDS)
#: Of a student with one branch and a teacher with LiDAR alone.
ONE_BRANCH: dict[str, Any] = {
    "imd_weight": 0.0, "mmd_f_weight": 0.0, "simulated_tap": "bev", "teacher_lidar_tap": "bev_0",
    "teacher_head_tap": "bev_0",
}  # fmt: skip
SIM = SimDistillConfig(teacher_head_tap="bev_0")


class Queries(Detector[SurroundBatch]):
    """As much of a DETR-like detector as the methods look at."""

    name = "queries"
    parameters_of: dict[str, torch.nn.Parameter]

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(classes=CLASSES)
        self.tap_channels = {"bev_neck": MAP_CHANNELS}
        self.map = torch.nn.Parameter(torch.randn(MAP_CHANNELS, 12, 12))
        self.logits = torch.nn.Parameter(torch.randn(LAYERS, QUERIES, len(CLASSES)))
        self.codes = torch.nn.Parameter(torch.randn(LAYERS, QUERIES, 10))

    def forward(self, batch: SurroundBatch) -> Outputs:
        """Centres reach beyond the map."""
        count = len(batch)
        ground = FeatureMap(self.map.expand(count, -1, -1, -1), replace(GROUND, cell=2 * REACH / 12))
        reach = torch.cat((torch.full((2,), REACH), torch.ones(8)))
        codes = self.codes.expand(count, -1, -1, -1) * reach
        return Outputs({"bev_neck": ground}, {"logits": self.logits.expand(count, -1, -1, -1), "codes": codes})

    def encode(self, batch: SurroundBatch) -> None:
        return None

    def loss(self, outputs: Outputs, batch: SurroundBatch, targets: Any = None) -> dict[str, Tensor]:
        raise NotImplementedError

    def decode(self, outputs: Outputs, batch: SurroundBatch) -> list[Boxes3D]:
        raise NotImplementedError


class FusingTeacher(CenterPoint):
    """A teacher with as many branches, of a LiDAR alone."""

    def __init__(self) -> None:
        super().__init__(LIDAR)
        self.tap_channels |= {"bev_camera": STUDENT.context_channels, "bev_lidar": self.tap_channels["bev_0"],
                              "bev": FUSED_CHANNELS}  # fmt: skip

    def forward(self, batch: SurroundBatch) -> Outputs:
        outputs = super().forward(batch)
        bev = outputs.features["bev_0"]
        maps = {"bev_camera": bev.tensor[:, :STUDENT.context_channels], "bev_lidar": bev.tensor,
                "bev": 0.5 * bev.tensor[:, -FUSED_CHANNELS:]}  # fmt: skip
        outputs.features |= {name: FeatureMap(tensor, bev.geometry) for name, tensor in maps.items()}
        return outputs


STUDENTS: dict[str, Any] = {"queries": Queries, "centres": lambda: BEVDepth(STUDENT),
                            "branches": lambda: BEVDepth(BRANCHES)}  # fmt: skip

#: Settings, the student, and the parts of it that the terms together teach.
METHODS: dict[str, tuple[StyledConfig, str, set[str]]] = {
    "uvtr_kd": (UVTR, "queries", {"map"}),
    "uvtr_kd of peaks": (UVTR, "centres", {"backbone", "trunk", "neck"}),
    "uvtr_kd of objects": (replace(UVTR, points="objects"), "centres", {"backbone", "trunk", "neck"}),
    "uvtr_kd of queries' objects": (replace(UVTR, points="objects", channel_norm=True), "queries", {"map"}),
    "uvtr_kd, sums": (replace(UVTR, reduction="sum", distance="squared"), "queries", {"map"}),
    "uvtr_kd, linear": (replace(UVTR, connector="linear"), "queries", {"map"}),
    "bevdistill": (BEV, "queries", {"map", "logits", "codes"}),
    "bevdistill of peaks": (BEV, "centres", NETWORK),
    "bevdistill, released": (
        BEVDistillConfig.styled("released", no_object="zero", class_weight=1.0, **BEV_FIELDS), "queries",
        {"map", "logits", "codes"},
    ),
    "bevdistill at points": (replace(BEV, weighting="points"), "queries", {"map", "logits", "codes"}),
    "bevdistill, maps alone": (
        replace(BEV, weighting="uniform", instance_weight=0.0, contrastive_weight=0.0), "queries", {"map"},
    ),
    "simdistill": (SIM, "branches", NETWORK),
    "simdistill, released": (
        SimDistillConfig.styled("released", teacher_head_tap="bev_0"), "branches", NETWORK,
    ),
    "simdistill of one branch": (SimDistillConfig(**ONE_BRANCH), "centres", NETWORK),
    "simdistill of one branch, released": (SimDistillConfig.styled("released", **ONE_BRANCH), "centres", NETWORK),
    "bevdistill, more boxes than queries": (replace(BEV, top_k=20), "queries", {"map", "logits", "codes"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> Detector:
    torch.manual_seed(1)
    return FusingTeacher().eval().requires_grad_(False)


def sample_at(maps: Tensor, place: Tensor) -> Tensor:
    """At places from 0 to 1."""
    return read_at(maps, cells_of(place, maps))


def said(method: str, batch: SurroundBatch, teacher: Detector) -> tuple[Context, list[Term]]:
    """What student and teacher say of a batch, and the method's terms."""
    config, kind, _ = METHODS[method]
    torch.manual_seed(0)
    student = STUDENTS[kind]().train()
    answers = {"teacher": detached(teacher(batch))}
    context = Context(student(batch), answers, batch, student.encode(batch), student, {"teacher": teacher})
    return context, build_terms(config, student.tap_channels, teacher.tap_channels)


# ------------------------------------------------------------------------------------------------------ every situation


@pytest.mark.parametrize("scene_name", SCENES)
@pytest.mark.parametrize("method", METHODS)
def test_losses_are_finite_and_teach_the_student_alone(method: str, scene_name: str, teacher: Detector) -> None:
    counts, expected = SCENES[scene_name], METHODS[method][2]
    context, terms = said(method, scene(*counts), teacher)
    assert terms and method.startswith(method_name(METHODS[method][0]))
    losses = {term.name: term(context) for term in terms}
    assert all(v.shape == () and v.dtype == torch.float32 and v.isfinite() and v >= 0 for v in losses.values()), losses
    torch.stack([term.weight * losses[term.name] for term in terms]).sum().backward()
    student = context.student_detector
    assert student is not None
    parameters = dict(student.named_parameters())
    reached = {name.split(".")[0] for name, p in parameters.items() if p.grad is not None and p.grad.any()}
    if sum(counts) or "objects" not in method:
        assert reached == expected
    else:
        assert all(v == 0 for v in losses.values()) and not reached
    assert all(p.grad.isfinite().all() for p in parameters.values() if p.grad is not None)
    assert all(p.grad is None for p in teacher.parameters())
    owned = {id(p) for p in parameters.values()} | {id(p) for p in teacher.parameters()}
    for term in terms:
        for name, p in term.named_parameters():
            assert id(p) not in owned and p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.parametrize("method", ["uvtr_kd", "bevdistill", "simdistill"])
def test_maps_in_half_precision(method: str, teacher: Detector) -> None:
    """Students under autocast hand over bfloat16; the losses are float32 and close to those of whole maps."""
    context, terms = said(method, scene(5), teacher)
    halves = {name: FeatureMap(m.tensor.to(torch.bfloat16), m.geometry) for name, m in context.student.features.items()}
    half = replace(context, student=replace(context.student, features=halves))
    for term in terms:
        whole, found = term(context), term(half)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, whole, rtol=0.1, atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- places


@given(st.floats(-1.2, 2.2), st.floats(-1.2, 2.2), st.integers(1, 5), st.integers(1, 5))
def test_reading_of_a_map(x: float, y: float, rows: int, columns: int) -> None:
    """Bilinear between the cells' centres; cells beyond the map are 0."""
    maps = torch.arange(rows * columns, dtype=torch.float64).view(1, 1, rows, columns) + 1
    found = float(sample_at(maps, torch.tensor([[[x, y]]], dtype=torch.float64)))
    u, v = x * columns - 0.5, y * rows - 0.5
    expected = sum(
        max(0.0, 1 - abs(u - i)) * max(0.0, 1 - abs(v - j)) * float(maps[0, 0, j, i])
        for i in range(columns) for j in range(rows)
    )  # fmt: skip
    assert found == pytest.approx(expected, abs=1e-9)
    volume = maps[:, :, None].expand(-1, -1, 3, -1, -1)
    middle = torch.tensor([[[x, y, 0.5]]], dtype=torch.float64)
    assert float(sample_at(volume, middle)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("far", [1e30, -1e30, math.inf])
def test_nothing_is_read_far_outside(far: float) -> None:
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    found = sample_at(maps, torch.tensor([[[far, 0.5], [0.5, far], [0.5, 0.5]]]))
    assert found[0].tolist() == [[0, 0], [0, 0], [1, 1]]
    found.sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all()


def test_places_get_no_gradient() -> None:
    place = torch.rand(1, 3, 2, requires_grad=True)
    maps = torch.rand(1, 2, 4, 4, requires_grad=True)
    sample_at(maps, place).sum().backward()
    assert place.grad is None and maps.grad is not None


def heads(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = HEAD.cells
    heatmap = 2 * torch.randn(2, 3, rows, columns, generator=generator) - 2
    return {"heatmap": heatmap, "box": torch.randn(2, 2, 10, rows, columns, generator=generator)}


def test_peaks_are_the_boxes_of_the_best_task() -> None:
    """Each peak has the box that the head itself decodes there, and the scores of all classes of its cell."""
    said = heads(0)
    found = of_peaks(said, HEAD, 6)
    assert found.code.shape == (2, 1, 6, 10) and found.classes == HEAD.classes
    probability = said["heatmap"].sigmoid()
    best = found.logits.sigmoid().amax(-1)[:, 0]
    assert (best.diff() <= 0).all()
    torch.testing.assert_close(best[:, 0], probability.amax((1, 2, 3)))
    kinds = torch.tensor(HEAD.task_of_class)
    whole = replace(HEAD, candidates=HEAD.cells[0] * HEAD.cells[1] * 3)
    for b in range(2):
        for i in range(6):
            kind = int(found.logits[b, 0, i].argmax())
            task = int(kinds[kind])
            of_task = [k for k in range(3) if kinds[k] == task]
            candidates = task_candidates(probability[:, of_task], said["box"][:, task], whole)
            nearest = int((candidates.score[b] - best[b, i]).abs().argmin())
            row, code = candidates.rows[b, nearest], found.code[b, 0, i]
            decoded = torch.cat((code[:3], code[3:6].exp(), torch.atan2(code[6:7], code[7:8]), code[8:]))
            torch.testing.assert_close(decoded, row)


def test_codes_of_queries_are_put_in_order() -> None:
    """x, y, log width, log length, z, log height, sine, cosine, velocity, as a DETR-like detector writes them."""
    codes = torch.arange(10.0).expand(1, LAYERS, QUERIES, 10)
    found = of_queries(Outputs({}, {"logits": torch.zeros(1, LAYERS, QUERIES, 3), "codes": codes}), Queries())
    assert found is not None and found.classes == CLASSES
    assert found.code[0, 0, 0].tolist() == [0, 1, 4, 3, 2, 5, 6, 7, 8, 9]
    assert of_queries(Outputs({}, {"codes": codes}), Queries()) is None


def test_more_peaks_than_cells() -> None:
    said = {k: v[..., :2, :2] for k, v in heads(0).items()}
    assert of_peaks(said, HEAD, 100).code.shape == (2, 1, 4, 10)


def test_classes_are_found_by_name() -> None:
    assert class_order(("b", "a"), ("a", "c", "b"), "teacher") == [2, 0]
    with pytest.raises(UserError, match="the student knows the class 'd', the teacher only a, c, b"):
        class_order(("d",), ("a", "c", "b"), "teacher")


# ------------------------------------------------------------------------------------------------------------- uvtr_kd


@pytest.mark.parametrize(("form", "norm"), [("partial", False), ("squared", False), ("partial", True)])
def test_point_losses_number_by_number(form: Any, norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    stages = [tuple(torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2)) for _ in range(2)]
    counted = torch.rand(2, 4, generator=generator) < 0.6
    config = replace(UVTR, distance=form, channel_norm=norm)
    for layer, loss in enumerate(point_losses(stages, config, counted)):
        total = 0.0
        for s, t in stages:
            for b in range(2):
                for n in range(4):
                    if not counted[b, n]:
                        continue
                    said, taught = s[b, layer, n].tolist(), t[b, layer, n].tolist()
                    if norm:
                        said = [v / (sum(map(abs, said)) / 5) for v in said]
                        taught = [v / (sum(map(abs, taught)) / 5) for v in taught]
                    for x, y in zip(said, taught, strict=True):
                        total += (x - y) ** 2 if form == "squared" or x > y or y > 0 else 0
        assert float(loss) == pytest.approx(total / len(stages) / int(counted.sum()), rel=1e-5)
    nobody = point_losses(stages, config, torch.zeros_like(counted))
    assert nobody.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"taps": ("bev_neck", "bev_neck")}, "pair by pair"),
        ({"taps": ("voxels",)}, "the student has no tap 'voxels'; it offers bev_neck"),
        ({"teacher_taps": ("voxels",)}, "the teacher has no tap 'voxels'; it offers bev_low"),
        ({"connector": "none"}, r"\(6,\) channels and the teacher's \(10,\)"),
    ],
)
def test_what_uvtr_kd_refuses_before_it_begins(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_terms(replace(UVTR, **change), {"bev_neck": 6}, {"bev_low": 4, "bev_0": 10})


def test_uvtr_kd_of_who_predicts_no_boxes(teacher: Detector) -> None:
    context, (term,) = said("uvtr_kd", scene(1), teacher)
    mute = replace(context, student=Outputs(context.student.features, {"depth": torch.zeros(1)}), student_detector=None)
    with pytest.raises(UserError, match="the student must predict boxes .* it predicts depth"):
        term(mute)
    (term,) = build_terms(replace(UVTR, points="objects"), {"bev_neck": 6}, {"bev_0": 10})
    with pytest.raises(UserError, match="needs annotations"):
        term(replace(context, batch=replace(context.batch, objects=None)))
    with pytest.raises(UserError, match="the student has no tap 'bev_neck'; it offers bev"):
        term(replace(context, student=Outputs({"bev": context.student.features["bev_neck"]}, {})))


def test_uvtr_kd_styles() -> None:
    assert UVTRKDConfig.styled("released").connector == "none" and UVTRKDConfig().style == "intended"
    assert build_terms(UVTRKDConfig(weight=0.0), {}, {}) == []


# ---------------------------------------------------------------------------------------------------------- bevdistill


def test_dense_loss_of_a_batch_is_that_of_its_cells() -> None:
    """Each sample under its own weights, whatever the number of channels."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    weight = torch.rand(2, 1, 4, 5, generator=generator)
    expected = sum(
        float(weight[b, 0, y, x] * ((student - teacher)[b, :, y, x] ** 2).sum())
        for b in range(2) for y in range(4) for x in range(5)
    ) / float(weight.sum())  # fmt: skip
    assert float(dense_loss(student, teacher, weight)) == pytest.approx(expected, rel=1e-5)
    nothing = torch.zeros_like(weight)
    assert dense_loss(student, teacher, nothing) == 0 and dense_loss(student, teacher, nothing, "nan").isnan()


def boxes_said(queries: int, boxes: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, code = (torch.randn(2, 2, queries, n, generator=generator).requires_grad_() for n in (3, 10))
    scores, taught = best_boxes(*(torch.randn(2, boxes + 2, n, generator=generator) for n in (3, 10)), boxes)
    return logits, code, scores, taught


@pytest.mark.parametrize(("queries", "boxes"), [(5, 3), (3, 5), (1, 1)])
@pytest.mark.parametrize("quality", ["squared", "once", "none"])
def test_instance_losses_box_by_box(queries: int, boxes: int, quality: Any) -> None:
    config = replace(BEV, quality=quality, code_weights=tuple(0.1 * (i + 1) for i in range(10)))
    said = boxes_said(queries, boxes)
    logits, code, scores, taught = said
    matched = matched_queries(*said, config)
    losses = instance_losses(*said, config)
    for layer in range(2):
        errors, qualities, classes, count = 0.0, 0.0, 0.0, 0
        for b in range(2):
            partners = [q for q in matched[b, layer].tolist() if q != UNMATCHED]
            assert len(partners) == len(set(partners))
            for k, query in enumerate(matched[b, layer].tolist()):
                if query == UNMATCHED:
                    continue
                q = float(scores[b, k].max())
                apart = (code[b, layer, query] - taught[b, k]).abs().detach()
                distance = float((apart * torch.tensor(config.code_weights)).sum())
                errors += distance * {"squared": q * q, "once": q, "none": 1.0}[quality]
                qualities += 1.0 if quality == "none" else q
                for p, t in zip(logits[b, layer, query].sigmoid().tolist(), scores[b, k].tolist(), strict=True):
                    classes += t * math.log(t / p) + (1 - t) * math.log((1 - t) / (1 - p))
                count += 1
        assert count == 2 * min(queries, boxes)
        assert float(losses["box"][layer].detach()) == pytest.approx(errors / qualities, rel=1e-4)
        assert float(losses["class"][layer].detach()) == pytest.approx(classes / count, rel=1e-4)
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None and code.grad is not None
    for b in range(2):  # only matched queries learn
        for layer in range(2):
            alone = set(range(queries)) - set(matched[b, layer].tolist())
            assert not logits.grad[b, layer, list(alone)].any() and not code.grad[b, layer, list(alone)].any()


def test_the_matching_is_the_cheapest() -> None:
    from itertools import permutations

    said = boxes_said(4, 3)
    cost = torch.stack(matching_costs(*said, BEV)).sum(0)
    matched = matched_queries(*said, BEV)
    for b in range(2):
        for layer in range(2):
            table = cost[b, layer]
            best = min(sum(float(table[q, k]) for k, q in enumerate(order)) for order in permutations(range(4), 3))
            assert sum(float(table[q, k]) for k, q in enumerate(matched[b, layer])) == pytest.approx(best, rel=1e-5)
    heavier = matching_costs(*said, replace(BEV, cost_class=2.0, cost_box=0.0))
    torch.testing.assert_close(heavier[0], 2 * matching_costs(*said, BEV)[0])
    assert not heavier[1].any()


def test_released_classes_push_up_who_has_no_box() -> None:
    said = boxes_said(4, 1)
    instance_losses(*said, BEVDistillConfig.styled("released"))["class"].sum().backward()
    matched, gradient = matched_queries(*said, BEV), said[0].grad
    assert gradient is not None
    for b in range(2):
        for layer in range(2):
            alone = [q for q in range(4) if q not in matched[b, layer].tolist()]
            assert (gradient[b, layer, alone] < 0).all()


def test_codes_of_the_teachers_boxes_are_those_of_its_angles() -> None:
    _, _, _, taught = boxes_said(2, 4)
    torch.testing.assert_close(taught[..., 6:8].norm(dim=-1), torch.ones(2, 4))


def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.mark.parametrize("directions", ["one", "both"])
@pytest.mark.parametrize("same_query", ["negative", "left_out"])
def test_contrastive_loss_row_by_row(directions: Any, same_query: Any) -> None:
    samples, layers, queries = 2, 3, 2
    count = samples * layers * queries
    config = replace(BEV, directions=directions, same_query=same_query)
    student, teacher = unit_rows(count, 0), unit_rows(count, 1)
    names = [(b, q) for b in range(samples) for _ in range(layers) for q in range(queries)]

    def found(one: Tensor, other: Tensor) -> float:
        total = 0.0
        for i in range(count):
            against = [j for j in range(count) if same_query == "negative" or i == j or names[i] != names[j]]
            values = {j: math.exp(float(one[i] @ other[j]) / config.temperature) for j in against}
            total -= math.log(values[i] / sum(values.values()))
        return total / count

    expected = found(teacher, student)
    if directions == "both":
        expected = (expected + found(student, teacher)) / 2
    assert float(contrastive_loss(student, teacher, layers, samples, config)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tap": "voxels"}, "the student has no tap 'voxels'; it offers bev_neck"),
        ({"teacher_tap": "voxels"}, "the teacher has no tap 'voxels'; it offers bev_0"),
        ({"code_weights": (1.0,)}, "a box has 10 values, got 1 code weights"),
    ],
)
def test_what_bevdistill_refuses_before_it_begins(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_terms(replace(BEV, **change), {"bev_neck": 6}, {"bev_0": 10})


def test_what_bevdistill_refuses(teacher: Detector) -> None:
    context, terms = said("bevdistill", scene(2), teacher)
    assert [t.name for t in terms] == ["auxiliary_heat", "dense", "instance", "contrastive"]
    found = {t.name: t for t in terms}
    bare = replace(context, batch=replace(context.batch, objects=None))
    for name in ("auxiliary_heat", "dense"):
        with pytest.raises(UserError, match="needs annotations"):
            found[name](bare)
    elsewhere = FeatureMap(context.student.features["bev_neck"].tensor, BevGeometry((0.0, 0.0, 9.6, 9.6), 0.8, "ego"))
    with pytest.raises(UserError, match="one part of the ground"):
        found["dense"](replace(context, student=replace(context.student, features={"bev_neck": elsewhere})))
    (heat, *_) = build_terms(replace(BEV, classes=("car", "tram")), {"bev_neck": MAP_CHANNELS}, {"bev_0": 10})
    with pytest.raises(UserError, match="no class 'tram', set classes to some of car, bicycle, pedestrian"):
        heat(context)
    with pytest.raises(UserError, match="the teacher must predict boxes"):
        found["instance"](replace(context, teacher_detectors={}))
    assert found["contrastive"](bare).isfinite() and found["instance"](bare).isfinite()


def test_the_shared_convolution_runs_once_a_step(teacher: Detector) -> None:
    context, terms = said("bevdistill", scene(3, 2), teacher)
    (norm,) = {m for t in terms if t.name == "dense" for m in t.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    for steps in (1, 2):
        again = replace(context)
        assert all(term(again).isfinite() for term in terms)
        assert int(norm.num_batches_tracked) == steps  # pyright: ignore[reportArgumentType]


def test_one_place_is_too_few_for_a_contrast(teacher: Detector) -> None:
    context, terms = said("bevdistill", scene(2), teacher)
    only = {name: value[:, :1, :1] for name, value in context.student.predictions.items()}
    few = replace(context, student=replace(context.student, predictions=only))
    assert terms[-1].name == "contrastive" and terms[-1](few) == 0


# ---------------------------------------------------------------------------------------------------------- simdistill


def test_simdistill_without_objects(teacher: Detector) -> None:
    context, terms = said("simdistill", scene(0), teacher)
    losses = {term.name: float(term(context).detach()) for term in terms}
    assert {name for name, loss in losses.items() if loss == 0} == {"cmd", "response_box"}
    assert {t.name: t.weight for t in terms} == {
        "imd": 1.0, "cmd": 100.0, "mmd_f": 1.0, "response_class": 0.25, "response_box": 0.25,
    }  # fmt: skip


def test_who_agrees_with_the_teacher_learns_nothing() -> None:
    same = heads(0)
    student = {name: value.clone().requires_grad_() for name, value in same.items()}
    targets = centre_targets(HEAD, scene(4, 2).objects, CLASSES)  # pyright: ignore[reportArgumentType]
    for style in ("released", "intended"):
        config = SimDistillConfig.styled(style)
        assert response_class_loss(student["heatmap"], same["heatmap"], HEAD, config) == 0
        assert response_box_loss(student["box"], same["box"], targets, HEAD, config) == 0


@pytest.mark.parametrize("slots", ["all", "objects"])
@pytest.mark.parametrize("sine_code", ["sine", "plain"])
def test_box_responses_slot_by_slot(slots: Any, sine_code: Any) -> None:
    head = replace(HEAD, max_objects=6, code_weights=tuple(0.2 * (i + 1) for i in range(10)))
    objects = scene(4, 7).objects
    assert objects is not None
    targets: CentreTargets = centre_targets(head, objects, CLASSES)
    student, taught = heads(0)["box"], heads(1)["box"]
    said, told = codes_at(student, targets.index), codes_at(taught, targets.index)
    expected = 0.0
    for task in range(2):
        total = 0.0
        for b in range(2):
            for m in range(6):
                if slots == "objects" and not targets.mask[b, task, m]:
                    continue
                for c in range(10):
                    x, y = (float(v[b, task, m, c]) * head.code_weights[c] for v in (said, told))
                    gap = abs(math.sin(x - y) if c == 6 and sine_code == "sine" else x - y)
                    total += 4.5 * gap * gap if gap < 1 / 9 else gap - 1 / 18
        expected += total / (6 if slots == "all" else max(1e-4, int(targets.mask[:, task].sum())))
    config = SimDistillConfig(slots=slots, sine_code=sine_code)
    assert float(response_box_loss(student, taught, targets, head, config)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sigmoids", ["once", "twice"])
def test_class_responses_cell_by_cell(sigmoids: Any) -> None:
    student, taught = heads(0)["heatmap"].double(), heads(1)["heatmap"].double()
    expected = 0.0
    for b in range(2):
        for k, classes in enumerate((1, 2, 2)):
            p, t = student[b, k].sigmoid(), taught[b, k].sigmoid()
            count = max(1, int((t > 0.1).sum()))
            if sigmoids == "twice":
                p, t = p.sigmoid(), t.sigmoid()
                count = p.numel() / classes
            entropy = -t * p.log() - (1 - t) * (1 - p).log()
            expected += float(((p - t) ** 2 * entropy).sum()) / count
    config = SimDistillConfig(sigmoids=sigmoids)
    assert float(response_class_loss(student, taught, HEAD, config)) == pytest.approx(expected, rel=1e-6)


def test_object_masks() -> None:
    heatmap = torch.tensor([0.75, 0.5]).view(1, 2, 1, 1)
    assert object_mask(heatmap, "sum").item() == 1.25 and object_mask(heatmap, "max").item() == 0.75


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"camera_tap": "voxels"}, "the student has no tap 'voxels'.*name another or set imd_weight to 0"),
        ({"teacher_lidar_tap": "voxels"}, "the teacher has no tap 'voxels'.*name another or set cmd_weight to 0"),
        ({"fused_tap": "voxels"}, "the student has no tap 'voxels'.*name another or set mmd_f_weight to 0"),
    ],
)
def test_what_simdistill_refuses_before_it_begins(change: dict[str, Any], words: str) -> None:
    channels = {"bev_camera": 2, "bev_simulated": 2, "bev_lidar": 3, "bev": 4}
    assert len(build_terms(SIM, channels, channels)) == 5
    with pytest.raises(UserError, match=words):
        build_terms(replace(SIM, **change), channels, channels)


def test_what_simdistill_refuses(teacher: Detector) -> None:
    context, terms = said("simdistill", scene(2), teacher)
    found = {t.name: t for t in terms}
    for name in ("cmd", "response_box"):
        with pytest.raises(UserError, match="simdistill looks at labelled objects"):
            found[name](replace(context, targets=None))
    for name in ("response_class", "response_box"):
        with pytest.raises(UserError, match="set class_weight and box_weight to 0"):
            found[name](replace(context, student_detector=None))
    moved = {
        name: FeatureMap(m.tensor, BevGeometry(HEAD.extent, 0.8, "ego")) for name, m in context.student.features.items()
    }
    for term in terms:
        with pytest.raises(ValueError, match="different grids"):
            term(replace(context, student=replace(context.student, features=moved)))
