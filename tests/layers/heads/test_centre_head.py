"""Centre head: targets against a loop over boxes, losses task by task, boxes back, and greedy suppression."""

import math
from dataclasses import replace
from typing import Any

import pytest
import shapely
import shapely.affinity
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from distill3d.boxes import IGNORE, NUSCENES_CLASSES, wrap_angle
from distill3d.data.surround import SurroundObjectBatch
from distill3d.errors import UserError
from distill3d.layers.heads import centre_head
from distill3d.layers.heads.centre_head import (
    BOX_BRANCHES,
    HEAT_BIAS,
    CentreHead,
    CentreHeadConfig,
    CentreTargets,
    centre_detections,
    centre_losses,
    centre_targets,
    tiny_head,
)
from distill3d.layers.heads.centre_nms import circles_near, first_kept, footprints_near, scaled_near
from distill3d.layers.image.heatmap import gaussian_radius

#: Three tasks on 12 x 16 cells; the data set has another order, and one class more.
SMALL = CentreHeadConfig(
    tasks=(("pedestrian", "car"), ("bus",), ("truck", "bicycle")), extent=(-4.0, -3.0, 4.0, 3.0), cell=0.5,
    shared_channels=8, branch_channels=4, max_objects=3,
)  # fmt: skip
CLASSES = ("car", "truck", "barrier", "pedestrian", "bicycle", "bus")


def objects_of(*samples: list[tuple[float, ...]]) -> SurroundObjectBatch:
    """Rows of label, x, y, z, l, w, h, yaw, vx, vy; padded with one row more than needed."""
    rows = torch.zeros(len(samples), max(map(len, samples)) + 1, 10)
    rows[..., 0] = IGNORE
    for i, sample in enumerate(samples):
        rows[i, : len(sample)] = torch.tensor(sample).reshape(-1, 10)
    label = rows[..., 0].long()
    present = torch.arange(rows.shape[1]) < torch.tensor([len(s) for s in samples])[:, None]
    return SurroundObjectBatch(
        rows[..., 1:4], rows[..., 4:7], rows[..., 7], rows[..., 8:], label, torch.zeros_like(label), present
    )


def at(label: int, x: float, y: float, **more: float) -> tuple[float, ...]:
    """A row of ``objects_of``."""
    box = {"z": 0.5, "length": 1.5, "width": 0.75, "height": 1.25, "yaw": 0.3, "vx": 1.0, "vy": -2.0} | more
    return (label, x, y, *box.values())


# -------------------------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("init", ["prior", "kaiming", "default"])
def test_published_size_and_first_answers(init) -> None:
    torch.manual_seed(0)
    head = CentreHead(256, CentreHeadConfig(output_init=init))
    assert sum(p.numel() for p in head.parameters()) == 1_519_686
    biases = torch.cat([task["heatmap"][-1].bias for task in head.tasks])
    assert bool((biases == HEAT_BIAS).all()) == (init != "default")
    spread = float(head.tasks[0]["reg"][-1].weight.detach().std())
    assert spread == pytest.approx(math.sqrt(2 / (2 * 9)) if init == "kaiming" else 1 / math.sqrt(3 * 64 * 9), rel=0.1)


@pytest.mark.parametrize("config", [SMALL, tiny_head()], ids=["small", "tiny"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_predictions_and_their_precision(config: CentreHeadConfig, bf16: bool) -> None:
    torch.manual_seed(0)
    head = CentreHead(6, config).eval()
    features = torch.randn(2, 6, *config.cells)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        said = head(features.bfloat16() if bf16 else features)
    assert said["heatmap"].shape == (2, len(config.classes), *config.cells)
    assert said["box"].shape == (2, len(config.tasks), 10, *config.cells)
    assert {p.dtype for p in said.values()} == {torch.float32}
    if bf16:
        exact = head(features.bfloat16().float())
        assert all(torch.equal(said[name], exact[name]) for name in said)


def test_order_of_the_numbers() -> None:
    """Each branch says its own number everywhere: heat maps by task and class, the box code as documented."""
    head = CentreHead(2, SMALL)
    with torch.no_grad():
        for t, task in enumerate(head.tasks):
            for i, branch in enumerate(task.values()):
                branch[-1].weight.zero_()
                branch[-1].bias.copy_(100 * t + 10 * i + torch.arange(len(branch[-1].bias)))
    said = head(torch.randn(1, 2, 4, 4))
    of_box = torch.tensor([10 * i + j for i, n in enumerate(BOX_BRANCHES.values()) for j in range(n)])
    assert list(BOX_BRANCHES) == ["reg", "height", "dim", "rot", "vel"]
    assert torch.equal(said["box"][0, :, :, 0, 0], 100.0 * torch.arange(3)[:, None] + of_box)
    assert said["heatmap"][0, :, 3, 3].tolist() == [50, 51, 150, 250, 251]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tasks": (("car",), ("car", "bus"))}, "one task"),
        ({"code_weights": (1.0,) * 8}, "10 values"),
        ({"nms_thresholds": (1.0, 2.0)}, "as many nms_thresholds"),
        ({"cell": 0.7}, "whole number of cells"),
        ({"tasks": (("car",), ("tram",))}, "no released threshold is known for tram"),
    ],
)
def test_settings_that_cannot_be(fields: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CentreHeadConfig(**fields)


def test_thresholds_follow_the_tasks() -> None:
    assert CentreHeadConfig().thresholds == (4, 12, 10, 1, 0.85, 0.175)
    assert tiny_head().thresholds == (4, 12, 0.85, 0.175)
    assert tiny_head(nms="size_aware").thresholds == (1, 1, 1, 1)
    assert tiny_head(tasks=(("tram",),), nms_thresholds=(3.0,)).thresholds == (3,)


# -------------------------------------------------------------------------------------------------------------- targets


def targets_by_loop(config: CentreHeadConfig, objects: SurroundObjectBatch, classes: tuple[str, ...]) -> CentreTargets:
    batch, (height, width) = len(objects.label), config.cells
    tasks, slots = len(config.tasks), config.max_objects
    heatmap = torch.zeros(batch, len(config.classes), height, width)
    box = torch.zeros(batch, tasks, slots, 10)
    index, mask = torch.zeros(batch, tasks, slots, dtype=torch.int64), torch.zeros(batch, tasks, slots).bool()
    low = torch.tensor(config.extent[:2])
    for b in range(batch):
        for t, task in enumerate(config.tasks):
            names = [classes[label] if label != IGNORE else "" for label in objects.label[b].tolist()]
            rows = [m for name in task for m, other in enumerate(names) if other == name and objects.present[b, m]]
            for slot, m in enumerate(rows[:slots]):
                place = (objects.centre[b, m, :2] - low) / torch.tensor(config.cell)
                column, row = (int(v) if config.rounding == "trunc" else math.floor(v) for v in place.tolist())
                size = objects.size[b, m]
                if not (0 <= column < width and 0 <= row < height) or bool((size <= 0).any()):
                    continue
                length, across = (size[:2] / config.cell).unbind()
                radius = max(config.min_radius, int(gaussian_radius(length, across, config.radius_overlap)))
                k = config.classes.index(names[m])
                for y in range(max(0, row - radius), min(height, row + radius + 1)):
                    for x in range(max(0, column - radius), min(width, column + radius + 1)):
                        value = math.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * ((2 * radius + 1) / 6) ** 2))
                        heatmap[b, k, y, x] = max(float(heatmap[b, k, y, x]), value)
                yaw = objects.yaw[b, m]
                inside = place - torch.tensor([column, row])
                turn = torch.stack((yaw.sin(), yaw.cos()))
                box[b, t, slot] = torch.cat(
                    (inside, objects.centre[b, m, 2:], size.log(), turn, objects.velocity[b, m])
                )
                index[b, t, slot], mask[b, t, slot] = row * width + column, True
    return CentreTargets(heatmap, box, index, mask)


coordinate = st.floats(-5, 5, width=32) | st.sampled_from([-4.0, -4.25, -4.5, -3.0, -3.5, 3.0, 4.0, 0.0])
length = st.floats(0.25, 12, width=32) | st.just(0.0)
row = st.builds(
    at, st.sampled_from([*range(len(CLASSES)), IGNORE]), coordinate, coordinate, length=length, width=length,
    vx=st.sampled_from([0.0, 3.5, math.nan]), yaw=st.floats(-4, 4, width=32),
)  # fmt: skip


@given(
    st.lists(st.lists(row, max_size=9), min_size=1, max_size=3), st.sampled_from(["trunc", "floor"]), st.integers(1, 6)
)
def test_targets_equal_the_loop(samples: list[list[tuple]], rounding, max_objects: int) -> None:
    config, objects = replace(SMALL, rounding=rounding, max_objects=max_objects), objects_of(*samples)
    ours, expected = (make(config, objects, CLASSES) for make in (centre_targets, targets_by_loop))
    assert torch.equal(ours.mask, expected.mask)
    assert torch.equal(ours.index, expected.index)
    torch.testing.assert_close(ours.box, expected.box, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(ours.heatmap, expected.heatmap, rtol=1e-5, atol=1e-6)
    assert torch.equal(ours.heatmap == 1, expected.heatmap == 1)


@pytest.mark.parametrize(
    ("x", "y", "rounding", "cell"),
    [
        (-4.0, -3.0, "trunc", 0),
        (-4.25, -3.25, "trunc", 0),  # cells (-1, 0) fold into the first
        (-4.25, -3.0, "floor", None),
        (-4.5, -3.0, "trunc", None),
        (3.75, 2.75, "trunc", 12 * 16 - 1),
        (4.0, 0.0, "trunc", None),
        (0.0, 3.0, "floor", None),
        (0.25, 0.75, "trunc", 7 * 16 + 8),
        (math.nan, 0.0, "trunc", None),
        (math.inf, 0.0, "trunc", None),
        (1e12, 0.0, "trunc", None),
    ],
)
def test_borders(x: float, y: float, rounding, cell: int | None) -> None:
    targets = centre_targets(replace(SMALL, rounding=rounding), objects_of([at(0, x, y)]), CLASSES)
    assert int(targets.mask.sum()) == (cell is not None)
    assert int((targets.heatmap == 1).sum()) == (cell is not None)
    if cell is not None:
        assert int(targets.index[0, 0, 0]) == cell
        assert float(targets.heatmap[0, 1].flatten()[cell]) == 1
        assert targets.box[0, 0, 0, :2].abs().max() < 1


def test_a_class_that_the_data_set_lacks_has_no_targets() -> None:
    targets = centre_targets(SMALL, objects_of([at(0, 1, 1), at(1, -1, -1)]), ("barrier", "bus"))
    assert targets.mask.nonzero().tolist() == [[0, 1, 0]]


# --------------------------------------------------------------------------------------------------------------- losses


def noise(config: CentreHeadConfig, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """Raw predictions in float64 that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"heatmap": (len(config.classes),), "box": (len(config.tasks), 10)}
    return {
        name: (3 * torch.randn(batch, *shape, *config.cells, generator=generator).double()).requires_grad_()
        for name, shape in shapes.items()
    }


SCENE = (
    [at(0, 1.1, 1.2), at(0, 1.2, 1.3), at(3, -2.0, 0.3), at(5, 0.4, -1.9), at(1, 3.6, 2.6, length=6.0)],
    [at(4, -3.3, -2.2, vx=math.nan, vy=math.nan), at(1, 2.2, 0.1, vx=math.nan)],
)


def test_losses_are_those_of_each_task_by_itself() -> None:
    config = replace(SMALL, code_weights=tuple(0.1 * i for i in range(1, 11)), max_objects=8)
    targets, said = centre_targets(config, objects_of(*SCENE), CLASSES), noise(config, 2)
    heat = box = 0.0
    first = 0
    for t, task in enumerate(config.tasks):
        p = said["heatmap"][:, first : first + len(task)].sigmoid().clamp(1e-4, 1 - 1e-4)
        goal = targets.heatmap[:, first : first + len(task)].double()
        peaks = goal == 1
        cost = -((1 - p) ** 2 * p.log())[peaks].sum() - ((1 - goal) ** 4 * p**2 * (1 - p).log())[~peaks].sum()
        heat += cost / max(1, int(peaks.sum()))
        distance = 0.0
        for b, slot in targets.mask[:, t].nonzero().tolist():
            at_cell = said["box"][b, t].flatten(1)[:, targets.index[b, t, slot]]
            wrong = (at_cell - targets.box[b, t, slot]).abs() * torch.tensor(config.code_weights).double()
            distance += wrong[~wrong.isnan()].sum()
        box += 0.25 * distance / max(1e-4, int(targets.mask[:, t].sum()))
        first += len(task)
    losses = centre_losses(said, targets, config)
    torch.testing.assert_close(losses["heat"], heat, rtol=1e-6, atol=0)
    torch.testing.assert_close(losses["box"], box, rtol=1e-6, atol=0)


def test_unknown_velocities_cost_and_teach_nothing() -> None:
    targets, said = centre_targets(SMALL, objects_of(*SCENE), CLASSES), noise(SMALL, 2)
    assert targets.box.isnan().any()
    sum(centre_losses(said, targets, SMALL).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in said.values())
    row, column = divmod(int(targets.index[1, 2, 1]), SMALL.cells[1])
    taught = said["box"].grad[1, 2, :, row, column] != 0
    assert taught.tolist() == [True] * 8 + [False] * 2


@pytest.mark.parametrize("samples", [1, 2])
def test_without_objects(samples: int) -> None:
    targets, said = centre_targets(SMALL, objects_of(*[[]] * samples), CLASSES), noise(SMALL, samples)
    losses = centre_losses(said, targets, SMALL)
    assert losses["heat"].isfinite() and losses["heat"] > 0
    assert losses["box"] == 0
    sum(losses.values()).backward()
    assert not said["box"].grad.any() and said["heatmap"].grad.isfinite().all()


def test_saturated_cells_get_no_gradient() -> None:
    targets, said = centre_targets(SMALL, objects_of(*SCENE), CLASSES), noise(SMALL, 2)
    with torch.no_grad():
        said["heatmap"][:, :, 0] = -30.0
        said["heatmap"][:, :, 1] = 30.0
    centre_losses(said, targets, SMALL)["heat"].backward()
    probability = said["heatmap"].detach().sigmoid()
    within = (probability > 1e-4) & (probability < 1 - 1e-4)
    assert within.float().mean() > 0.8
    assert torch.equal(said["heatmap"].grad != 0, within)


def test_two_processes_with_a_sample_each_equal_one_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    said, whole = noise(SMALL, 2), centre_targets(SMALL, objects_of(*SCENE), CLASSES)
    expected = centre_losses(said, whole, SMALL)
    counts = []
    monkeypatch.setattr(centre_head, "across_processes", lambda n: counts.append(n) or n)
    parts = [
        ({k: p[i : i + 1] for k, p in said.items()},
         CentreTargets(*(t[i : i + 1] for t in (whole.heatmap, whole.box, whole.index, whole.mask))))
        for i in range(2)
    ]  # fmt: skip
    for predictions, targets in parts:
        centre_losses(predictions, targets, SMALL)
    means = [(a + b) / 2 for a, b in zip(counts[:2], counts[2:], strict=True)]  # peaks and objects
    monkeypatch.setattr(centre_head, "world_size", lambda: 2)
    monkeypatch.setattr(centre_head, "across_processes", lambda n: means[0] if len(n) == len(means[0]) else means[1])
    shares = [centre_losses(*part, SMALL) for part in parts]
    for name, value in expected.items():
        torch.testing.assert_close((shares[0][name] + shares[1][name]) / 2, value, rtol=1e-6, atol=0)


# ---------------------------------------------------------------------------------------------------------------- boxes


def affine(angle: float = 0.0, scale: float = 1.0, flip: tuple[float, float] = (1, 1)) -> Tensor:
    """As surround data sets augment: a turn and a scale, then mirrors."""
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3] = torch.diag(torch.tensor([*flip, 1.0]).double()) @ (scale * turn)
    return out


def perfect(targets: CentreTargets, config: CentreHeadConfig) -> dict[str, Tensor]:
    """Predictions that say what the targets say, and nothing where they say nothing."""
    box = torch.zeros(*targets.box.shape[:2], 10, math.prod(config.cells))
    b, t, slot = targets.mask.nonzero(as_tuple=True)
    box[b, t, :, targets.index[b, t, slot]] = targets.box[b, t, slot]
    return {"heatmap": torch.logit(targets.heatmap.where(targets.heatmap == 1, 0), 1e-3),
            "box": box.unflatten(-1, config.cells)}  # fmt: skip


#: Far enough from one another to survive suppression.
APART = [at(0, 1.1, 1.2, yaw=3.0), at(3, -3.0, 0.3, yaw=-2.0), at(5, 0.4, -1.9), at(1, 3.4, 2.4, length=2.5)]


@pytest.mark.parametrize(
    "bev_affine",
    [affine(), affine(0.3), affine(scale=1.05), affine(flip=(-1, 1)), affine(-0.2, 0.95, (1, -1)),
     affine(0.1, 1.02, (-1, -1))],
    ids=["none", "turn", "scale", "mirror x", "turn, scale, mirror y", "all"],
)  # fmt: skip
def test_decode_undoes_encode_and_augmentation(bev_affine: Tensor) -> None:
    config = replace(SMALL, extent=(-6.0, -6.0, 6.0, 6.0))
    plain = objects_of(APART, [])
    turn = bev_affine[:2, :2].float()
    scale = float(turn.det().abs().sqrt())
    heading = torch.stack((plain.yaw.cos(), plain.yaw.sin()), -1) @ turn.T
    moved = replace(
        plain, centre=plain.centre @ bev_affine[:3, :3].float().T, size=plain.size * scale,
        yaw=torch.atan2(heading[..., 1], heading[..., 0]), velocity=plain.velocity @ turn.T,
    )  # fmt: skip
    said = perfect(centre_targets(config, moved, CLASSES), config)
    found, none = centre_detections(said, torch.stack((bev_affine, bev_affine)), CLASSES, config)
    assert len(found) == 4 and len(none) == 0
    assert found.frame == "ego" and found.score is not None and found.velocity is not None
    match = torch.cdist(plain.centre[0, :4], found.centre).argmin(1)
    torch.testing.assert_close(found.centre[match], plain.centre[0, :4], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.size[match], plain.size[0, :4], rtol=1e-5, atol=0)
    torch.testing.assert_close(found.velocity[match], plain.velocity[0, :4], rtol=0, atol=1e-5)
    assert wrap_angle(found.yaw[match] - plain.yaw[0, :4]).abs().max() < 1e-5
    assert found.label[match].tolist() == plain.label[0, :4].tolist()


def test_boxes_come_best_first_and_only_from_usable_cells() -> None:
    said = {"heatmap": torch.full((1, 5, 12, 16), -9.0), "box": torch.zeros(1, 3, 10, 12, 16)}
    said["heatmap"][0, :, 2, 3] = torch.tensor([-1.0, 0.5, 2.0, -9.0, 1.0])
    said["heatmap"][0, 0, 9, 9] = 8.0
    said["box"][0, 0, 3, 9, 9] = 200.0  # a length that overflows
    said["heatmap"][0, 0, 9, 2] = 8.0
    said["box"][0, 0, 2, 9, 2] = 50.0  # above the range
    (found,) = centre_detections(said, torch.eye(4).double()[None], CLASSES, SMALL)
    assert found.label.tolist() == [CLASSES.index(name) for name in ("bus", "bicycle", "car")]
    torch.testing.assert_close(found.score, torch.tensor([2.0, 1.0, 0.5]).sigmoid())
    # The pedestrian stands where the better car of its task does.


def test_no_more_boxes_than_allowed() -> None:
    said = {"heatmap": torch.zeros(2, 10, 128, 128), "box": torch.zeros(2, 6, 10, 128, 128)}
    config = CentreHeadConfig(nms_thresholds=(0.0,) * 6)
    found = centre_detections(said, torch.eye(4).double().repeat(2, 1, 1), NUSCENES_CLASSES, config)
    assert [len(boxes) for boxes in found] == [6 * 83, 6 * 83]


# ---------------------------------------------------------------------------------------------------------- suppression


def greedy_by_loop(near: Tensor, usable: Tensor, limit: int) -> list[int]:
    kept: list[int] = []
    for j in range(len(usable)):
        if usable[j] and not any(near[i, j] for i in kept):
            kept.append(j)
    return kept[:limit]


@given(st.integers(0, 25), st.floats(0.05, 0.95), st.integers(1, 12), st.integers(0, 10**6))
def test_greedy_suppression_equals_the_loop(n: int, density: float, limit: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.rand(2, n, n, generator=generator) < density
    pairs = pairs | pairs.mT | torch.eye(n).bool()
    usable = torch.rand(2, n, generator=generator) < 0.8
    ours = first_kept(pairs, usable, limit)
    assert [o.nonzero()[:, 0].tolist() for o in ours] == [
        greedy_by_loop(p, u, limit) for p, u in zip(pairs, usable, strict=True)
    ]


@pytest.mark.parametrize(
    ("threshold", "near"), [(4.0, True), (3.99, False), (2.0, False)], ids=["at the limit", "under", "not squared"]
)
def test_circles_compare_squares(threshold: float, near: bool) -> None:
    centre = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    assert bool(circles_near(centre, threshold)[0, 1]) == near


@pytest.mark.parametrize(
    ("other", "yaw", "scale", "near"),
    [
        ((4.0, 0.0), (0.0, 0.0), 1.0, True),
        ((4.1, 0.0), (0.0, 0.0), 1.0, False),
        ((0.0, 2.1), (0.0, 0.0), 1.0, False),
        ((0.0, 2.9), (0.0, math.pi / 2), 1.0, True),
        ((3.1, 0.0), (0.0, math.pi / 2), 1.0, False),
        ((2.1, 0.0), (0.0, 0.0), 0.5, False),
        ((3.9, 1.9), (0.0, math.pi), 1.0, True),
    ],
)
def test_footprints(other: tuple[float, float], yaw: tuple[float, float], scale: float, near: bool) -> None:
    centre, size = torch.tensor([(0.0, 0.0), other]), torch.tensor([[4.0, 2.0]] * 2)
    pairs = footprints_near(centre, size, torch.tensor(yaw), scale)
    assert bool(pairs[0, 1]) == near == bool(pairs[1, 0])


def test_scaled_suppression_pair_by_pair() -> None:
    """By shapely, of footprints whose sides are multiplied first; heights and places are not looked at."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(9, 9, generator=generator)
    rows = torch.cat((4 * values[:, :3], 0.5 + 3 * values[:, 3:6], 6 * values[:, 6:7], values[:, 7:]), dim=1)
    factor = 0.4 + 2 * torch.rand(9, generator=generator)

    def footprint(i: int) -> Any:
        length, width = (float(side * factor[i]) / 2 for side in rows[i, 3:5])
        box = shapely.box(-length, -width, length, width)
        turned = shapely.affinity.rotate(box, float(rows[i, 6]), origin=(0, 0), use_radians=True)
        return shapely.affinity.translate(turned, float(rows[i, 0]), float(rows[i, 1]))

    found = scaled_near(rows, factor, 0.2)
    shapes = [footprint(i) for i in range(len(rows))]
    overlaps = [[a.intersection(b).area / a.union(b).area for b in shapes] for a in shapes]
    assert found.tolist() == [[overlap > 0.2 for overlap in row] for row in overlaps]
    assert 9 < int(found.sum()) < 81 and not torch.equal(found, scaled_near(rows, torch.ones(9), 0.2))


def test_published_factors_of_scaled_suppression() -> None:
    config = CentreHeadConfig(nms="scaled")
    assert config.factors == (1.0, 0.7, 0.7, 0.4, 0.55, 1.1, 1.0, 1.0, 4.5, 9.0)
    assert config.thresholds == (0.2, 0.2, 0.2, 1.0, 0.2, 0.5)
    with pytest.raises(UserError, match="no released factor is known for tram: give nms_factors"):
        tiny_head(tasks=(("tram",),), nms="scaled")
    with pytest.raises(UserError, match="4 classes need as many nms_factors, got 1"):
        tiny_head(nms="scaled", nms_factors=(1.0,))


@pytest.mark.parametrize(("kind", "apart", "kept"), [("pedestrian", 1.0, 1), ("pedestrian", 3.5, 2), ("truck", 1.8, 2)])
def test_scaled_suppression_drops_small_objects_that_stand_close(kind: str, apart: float, kept: int) -> None:
    """Two footprints of 0.8 m (pedestrian) or 2 m beside each other: people's are enlarged, those of trucks shrunk."""
    head = tiny_head(tasks=(("truck",), ("pedestrian",)), nms="scaled", cell=0.8)
    side = 0.8 if kind == "pedestrian" else 2.0
    rows, columns = head.cells
    task = head.classes.index(kind)
    heatmap = torch.full((1, 2, rows, columns), -9.0)
    box = torch.zeros(1, 2, 10, rows, columns)
    box[:, :, 3:6], box[:, :, 7] = math.log(side), 1.0
    heatmap[0, task, 10, 10], heatmap[0, task, 10, 20] = 2.0, 1.0
    box[0, task, 0, 10, 20] = apart / head.cell - 10  # of the second, moved beside the first
    found = centre_detections({"heatmap": heatmap, "box": box}, torch.eye(4).double()[None], head.classes, head)[0]
    assert len(found) == kept
