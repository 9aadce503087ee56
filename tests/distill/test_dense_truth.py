"""The control without a teacher: labels painted around objects."""

from dataclasses import replace

import pytest
import torch
from made_up import cars, make_batch
from torch import Tensor

from distill3d.detectors import gupnet, monodle
from distill3d.detectors.monodle import STRIDE, MonoDLETargets, decode_depth, depth_logit, read_peaks
from distill3d.distill.context import Context
from distill3d.distill.methods.dense_truth import DenseTruthConfig, painted_truth
from distill3d.errors import UserError
from distill3d.train.loop import TrainingStep, build_step
from distill3d.train.recipe import StageConfig

STUDENT = monodle.tiny(classes=monodle.HEAT_CLASSES)


def example(counts: list[int]) -> tuple[TrainingStep, Context, MonoDLETargets]:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(n, generator) for n in counts], generator)
    torch.manual_seed(0)
    step = build_step(StageConfig("student", "control", STUDENT, method=DenseTruthConfig()), {})
    targets = step.student.encode(batch)
    return step, Context(step.student(batch), {}, batch, targets), targets


@pytest.mark.parametrize("counts", [[1], [3, 5], [40], [0, 2]], ids=str)
def test_painted_maps_say_the_truth_in_every_cell(counts: list[int]) -> None:
    """A detector whose maps are painted finds an object, whichever of its cells is its peak."""
    _, context, targets = example(counts)
    height, width = context.student.predictions["depth"].shape[-2:]
    truth, known = painted_truth(targets, STRIDE, (height, width))
    assert bool(known.any())
    image, row, column = known.nonzero(as_tuple=True)
    heat = torch.full((len(image), 3, height, width), -9.0)
    heat[torch.arange(len(image)), 0, row, column] = 9.0
    maps = {name: value[image] for name, value in truth.items()}
    maps["depth"] = torch.cat((maps["depth"], torch.zeros_like(maps["depth"])), dim=1)
    peaks = read_peaks(maps | {"heatmap": heat, "heading": torch.zeros(len(image), 24, height, width)}, 1)
    slots = targets.mask_3d
    cell = torch.stack((targets.indices % width, targets.indices // width), dim=-1)
    expected = torch.cat((cell + targets.offset_3d, targets.size_3d, targets.depth[..., None]), dim=-1)
    found = torch.cat((peaks.centre_3d[:, 0], peaks.size_3d[:, 0], peaks.depth), dim=-1)
    nearest = torch.stack([
        (f - expected[i][slots[i]]).abs().amax(-1).amin() for i, f in zip(image.tolist(), found, strict=True)
    ])  # fmt: skip
    assert float(nearest.max()) < 0.02  # float32, and the heads' 1e-6 in the depth


def test_the_nearer_of_two_owns_a_cell() -> None:
    _, _, targets = example([2])
    box = targets.box2d[:, :1].expand_as(targets.box2d)
    targets = replace(targets, box2d=box, indices=targets.indices[:, :1].expand_as(targets.indices))
    truth, known = painted_truth(targets, STRIDE, (24, 80))
    depth = decode_depth(truth["depth"][:, 0][known])
    assert torch.allclose(depth, targets.depth[targets.mask_3d].min(), rtol=1e-3)


@pytest.mark.parametrize("depth", [0.0, 1.0, 4.0, 40.0, 80.0])
def test_depth_logit_inverts_the_head(depth: float) -> None:
    assert float(decode_depth(depth_logit(torch.tensor(depth, dtype=torch.float64)))) == pytest.approx(depth, abs=1e-4)


@pytest.mark.parametrize("counts", [[0], [0, 0], [1], [3, 5]], ids=str)
def test_teaches_without_a_teacher(counts: list[int]) -> None:
    """The term is 0 where heads say the truth or nothing is there, else it reaches the maps that it compares."""
    step, context, targets = example(counts)
    (term,) = step.terms
    value: Tensor = term(context)
    assert (float(value.detach()) > 0) is any(counts)
    names = [n for n, p in step.student.named_parameters() if "size_3d" in n or "depth" in n]
    grads = torch.autograd.grad(value, [dict(step.student.named_parameters())[n] for n in names])
    assert all(bool(g.isfinite().all()) for g in grads)
    height, width = context.student.predictions["depth"].shape[-2:]
    truth, _ = painted_truth(targets, STRIDE, (height, width))
    perfect = replace(context, student=replace(context.student, predictions=context.student.predictions | truth))
    assert float(term(perfect)) == pytest.approx(0, abs=1e-6)


def test_refused_where_it_does_not_fit() -> None:
    step, context, _ = example([1])
    (term,) = step.terms
    other = replace(context, targets=None)
    with pytest.raises(UserError, match="MonoDLE's head maps"):
        term(other)
    with pytest.raises(UserError, match="unless it looks at none"):
        StageConfig("student", "control", gupnet.tiny(), teachers=("teacher",), method=DenseTruthConfig())
