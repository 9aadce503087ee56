"""Terms that listen to the teacher only where it knows better."""

from dataclasses import replace

import pytest
import torch
from made_up import cars, make_batch
from torch import Tensor

from distill3d.detectors import build_detector, gupnet, monodle
from distill3d.detectors.monodle import HEAT_CLASSES, MonoDLETargets, depth_logit
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.trusted import TrustedConfig, quality_focal, trusted_objects
from distill3d.errors import UserError
from distill3d.train.checkpoint import load_matching

STUDENT = monodle.tiny(classes=HEAT_CLASSES)


def example(counts: list[int]) -> tuple[Context, MonoDLETargets]:
    """A batch as two untrained networks see it."""
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(n, generator) for n in counts], generator)
    torch.manual_seed(0)
    student, teacher = build_detector(STUDENT), build_detector(STUDENT)
    targets = student.encode(batch)
    return Context(student(batch), {"teacher": teacher(batch)}, batch, targets, student), targets


def saying(predictions: dict[str, Tensor], targets: MonoDLETargets, off: Tensor) -> dict[str, Tensor]:
    """Head maps whose depth is off by ``off`` (b, k) metres in the objects' cells."""
    depth = predictions["depth"].detach().clone()
    image, slot = targets.mask_2d.nonzero(as_tuple=True)
    flat = depth.flatten(2)
    flat[image, 0, targets.indices[image, slot]] = depth_logit(targets.depth + off)[image, slot]
    return predictions | {"depth": flat.view_as(depth)}


@pytest.mark.parametrize("counts", [[3, 4], [1], [0, 2], [0]], ids=str)
def test_objects_that_the_teacher_knows_better(counts: list[int]) -> None:
    context, targets = example(counts)
    torch.manual_seed(1)
    off = [torch.rand(targets.depth.shape) * 3 + 0.1 for _ in range(2)]
    student, teacher = (saying(context.student.predictions, targets, metres) for metres in off)
    cells = [set(row[mask].tolist()) for row, mask in zip(targets.indices, targets.mask_2d, strict=True)]
    assert all(len(c) == int(m.sum()) for c, m in zip(cells, targets.mask_2d, strict=True)), "two objects in a cell"
    better = trusted_objects(student, teacher, targets, "better")
    assert torch.equal(better, targets.mask_2d & (off[1] < off[0]))
    assert torch.equal(trusted_objects(student, teacher, targets, "all"), targets.mask_2d)
    assert torch.equal(trusted_objects(teacher, teacher, targets, "better"), torch.zeros_like(better))


@pytest.mark.parametrize("counts", [[3, 4], [0, 0]], ids=str)
def test_a_student_that_knows_better_hears_nothing(counts: list[int]) -> None:
    context, targets = example(counts)
    perfect = saying(context.student.predictions, targets, torch.zeros_like(targets.depth))
    wise = replace(context, student=replace(context.student, predictions=perfect))
    response, heat = build_terms(TrustedConfig(), {}, {})
    assert (response.name, heat.name) == ("response", "heat")
    assert float(response(wise).detach()) == 0
    assert (float(response(context).detach()) > 0) is any(counts)
    both = build_terms(TrustedConfig(trust="all"), {}, {})[0]
    assert (float(both(wise).detach()) > 0) is any(counts)
    value = heat(context)
    value.backward()
    assert bool(value.isfinite()) and value.dtype == torch.float32


def test_quality_focal_is_least_where_student_and_teacher_agree() -> None:
    torch.manual_seed(0)
    teacher, objects = torch.randn(2, 3, 4, 5), torch.ones(2, 3, dtype=torch.bool)
    student = torch.randn(2, 3, 4, 5, requires_grad=True)
    far = quality_focal(student, teacher, objects)
    (gradient,) = torch.autograd.grad(far, student)
    nearer = quality_focal(student.detach() - 0.01 * gradient, teacher, objects)
    assert 0 == float(quality_focal(teacher, teacher, objects)) < float(nearer) < float(far.detach())
    none = quality_focal(student, teacher, torch.zeros_like(objects))
    assert float(none.detach()) == pytest.approx(6 * float(far.detach()))


@pytest.mark.parametrize("weights", [{"response_weight": 0.0}, {"heat_weight": 0.0}], ids=str)
def test_a_term_of_weight_0_is_left_out(weights: dict[str, float]) -> None:
    (term,) = build_terms(TrustedConfig(**weights), {}, {})
    assert f"{term.name}_weight" not in weights


def test_other_detectors_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(2, generator)], generator)
    student = build_detector(gupnet.tiny(classes=HEAT_CLASSES))
    targets = student.encode(batch)
    outputs = student.forward_at(batch, targets)
    for term in build_terms(TrustedConfig(), {}, {}):
        with pytest.raises(UserError, match="MonoDLE's head maps"):
            term(Context(outputs, {"teacher": outputs}, batch, targets, student))


@pytest.mark.parametrize(("parts", "moved"), [(("neck",), {"neck"}), (("depth", "heading"), {"depth", "heading"})])
def test_some_parts_are_inherited(parts: tuple[str, ...], moved: set[str]) -> None:
    torch.manual_seed(0)
    student, teacher = build_detector(STUDENT), build_detector(STUDENT)
    weights = {name: value + 1 for name, value in teacher.state_dict().items()}
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result = load_matching(student, weights, parts)
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in changed} == moved
    assert result["taken"] == len(changed) and set(result["left"]) == weights.keys() - changed
