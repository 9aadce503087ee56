"""Every hot path in every way: detectors of cameras, methods' terms, the lift, pooling and sparse convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor, nn

from distill3d import export
from distill3d.detectors import bevdepth, caddn
from distill3d.detectors.base import FeatureMap, Outputs
from distill3d.distill.context import Context, detached
from distill3d.distill.methods import build_terms
from distill3d.distill.term import Term
from distill3d.layers.points.sparse_conv import SparseResNet, SparseTensor

from .inputs import SEED, Place, Setting, described
from .networks import WAYS, Way, in_this_way, training
from .task import Task, Work, bytes_of

#: Rows have no channels that could lie elsewhere.
WAYS_OF_ROWS = tuple(way for way in WAYS if way.channels_last)
#: Where the ways from image to ground are called, as what, and by which detector.
TO_GROUND = {"lift": (caddn, "lift", "caddn"), "voxel pooling": (bevdepth, "voxel_pool", "bevdepth")}
SPARSE = ("second", "centerpoint")


def term_tasks(setting: Setting) -> Iterator[Task]:
    for name, place in setting.size.methods.items():
        yield from in_all_ways(setting, f"terms of {name}", place, partial(terms, setting, place))


def ground_tasks(setting: Setting) -> Iterator[Task]:
    """From image to ground, and from points to ground."""
    detectors = setting.size.detectors
    for name, (module, function, detector) in TO_GROUND.items():
        place = detectors[detector]
        yield from in_all_ways(setting, name, place, partial(to_ground, setting, place, module, function))
    for name in SPARSE:
        make = partial(sparse_backbone, setting, detectors[name])
        yield from in_all_ways(setting, f"sparse backbone of {name}", detectors[name], make, WAYS_OF_ROWS)


def student_tasks(setting: Setting, on_ground: bool) -> Iterator[Task]:
    """Of the students that look at the ground from above, or of the others."""
    above = [detector for *_, detector in TO_GROUND.values()]
    for name in (name for name in export.RAW if (name in above) is on_ground):
        place = setting.size.detectors[name]
        tasks = in_all_ways(setting, f"{name}, forward and backward", place, partial(training, setting, place))
        yield from (replace(task, usual=False) for task in tasks)  # recorded with all detectors


def in_all_ways(
    setting: Setting, group: str, place: Place, make: Callable[[Way], Work], ways: tuple[Way, ...] = WAYS
) -> Iterator[Task]:
    size = described(setting, place)
    for way in ways:
        usual = way.channels_last and not way.compiled
        yield Task(group, size, partial(make, way), str(way), way.precision, usual=usual, may_fail=way.compiled)


# --------------------------------------------------------------------------------------------------------------- terms


def terms(setting: Setting, place: Place, way: Way) -> Work:
    """A method's terms, and their gradients at the student's outputs and in their own adapters."""
    _, stage = setting.stage(place)
    batch = setting.training_batch(place)
    student = setting.detector(place, way.memory_format).train()
    teachers = {name: setting.detector((place[0], name), way.memory_format).eval() for name in stage.teachers}
    with torch.no_grad(), setting.autocast(way.precision):
        targets = student.encode(batch)
        said = student.forward_at(batch, targets)
        answers = {name: detached(teacher.forward_at(batch, targets)) for name, teacher in teachers.items()}
    assert stage.method is not None
    torch.manual_seed(SEED)
    built = build_terms(stage.method, student.tap_channels, teachers[stage.teachers[0]].tap_channels)
    adapters = nn.ModuleList(built).train()
    adapters.to(setting.device, memory_format=way.memory_format)  # pyright: ignore[reportCallIssue]
    outputs, leaves = with_leaves(said)

    def loss(outputs: Outputs) -> Tensor:
        context = Context(outputs, answers, batch, targets, student, dict(teachers))
        return torch.stack([weighted(term, context) for term in built]).sum()

    def run(loss: Callable[..., Tensor]) -> None:
        for tensor in (*leaves, *adapters.parameters()):
            tensor.grad = None
        with setting.autocast(way.precision):
            value = loss(outputs)
        value.backward()

    return in_this_way(setting, way, loss, run)


def weighted(term: Term, context: Context) -> Tensor:
    return term.weight * term(context)


def with_leaves(outputs: Outputs) -> tuple[Outputs, list[Tensor]]:
    """The outputs with tensors for which gradients are found, and these."""
    features = {name: FeatureMap(leaf(f.tensor), f.geometry) for name, f in outputs.features.items()}
    predictions = {name: leaf(tensor) for name, tensor in outputs.predictions.items()}
    return Outputs(features, predictions, outputs.rois), [*(f.tensor for f in features.values()), *predictions.values()]


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


# ----------------------------------------------------------------------------------------------- from image to ground


def to_ground(setting: Setting, place: Place, module: ModuleType, function: str, way: Way) -> Work:
    """Forward and backward pass of a function of two maps, called as its detector calls it first.

    Its operators' own traffic says nothing of what must be moved: every input is read in both directions, every output
    written, its gradient read, and the maps' gradients written.
    """
    original = getattr(module, function)
    detector, batch = setting.detector(place).train(), setting.training_batch(place)
    with mock.patch.object(module, function, wraps=original) as spy:
        with torch.no_grad(), setting.autocast(way.precision):
            detector(batch)
    given = spy.call_args_list[0].args
    maps = tuple(leaf(m.contiguous(memory_format=way.memory_format)) for m in given[:2])
    gradient = some_gradient(original(*maps, *given[2:]))
    inputs = [value for value in (*maps, *given[2:]) if isinstance(value, Tensor)]
    least = 2 * bytes_of(inputs) + bytes_of(maps) + 2 * bytes_of([gradient])

    def run(function: Callable[..., Tensor]) -> None:
        torch.autograd.grad(function(*maps, *given[2:]), maps, gradient)

    return in_this_way(setting, way, original, run, least)


def some_gradient(output: Tensor) -> Tensor:
    """Not the same everywhere: batch norm would leave next to nothing of it, numbers too small for fast arithmetic.
    It lies in memory as the output does, and as the next layer would give it."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.empty_like(output).copy_(torch.randn(output.shape, generator=generator))


# -------------------------------------------------------------------------------------------------- sparse convolution


def sparse_backbone(setting: Setting, place: Place, way: Way) -> Work:
    """Forward and backward pass of a detector's sparse network on its voxels, neighbours looked up anew each time."""
    detector, batch = setting.detector(place).train(), setting.training_batch(place)
    network = next(module for module in detector.modules() if isinstance(module, SparseResNet))
    seen: list[SparseTensor] = []
    handle = network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad(), setting.autocast(way.precision):
        detector(batch)
        handle.remove()
        x, weights = seen[0], list(network.parameters())
        gradient = some_gradient(network(x))

    def run(function: Callable[..., Tensor]) -> None:
        with setting.autocast(way.precision):
            out = function(SparseTensor(x.features, x.coords, x.shape, x.batch_size))
        torch.autograd.grad(out, weights, gradient)

    return in_this_way(setting, way, network, run)
