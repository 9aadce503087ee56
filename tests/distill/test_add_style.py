"""In the manner of ADD: what the teacher is told, what the adapter does, and that it begins as none."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import cars, make_batch
from streets import TRUNK, small_preset
from torch import Tensor

from distill3d.boxes import IGNORE
from distill3d.data.sample import Batch
from distill3d.detectors import build_detector
from distill3d.detectors.monodle import MonoDLE, MonoDLEConfig, object_depth, tiny
from distill3d.distill.context import Context
from distill3d.distill.masks import box_mask
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.add import (
    REACH,
    ADDStyleConfig,
    FeatureTerm,
    cell_positions,
    imitation_loss,
    object_positions,
)
from distill3d.errors import UserError
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import is_repeatable

SMALL = tiny(trunk=TRUNK, head_channels=8)
CONFIG = ADDStyleConfig(channels=8, heads=2)
SCENES = {"nothing": [0, 0], "one": [1], "one of two": [0, 1], "many": [3, 5]}


def frames(counts: list[int], border: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return make_batch([cars(n, generator, border) for n in counts], generator)


def networks() -> tuple[MonoDLE, MonoDLE]:
    torch.manual_seed(0)
    student, teacher = MonoDLE(SMALL), MonoDLE(replace(SMALL, input="rgb+object_depth"))
    return student, teacher.eval()


def said(batch: Batch, config: ADDStyleConfig = CONFIG) -> tuple[Context, dict[str, Tensor], list]:
    student, teacher = networks()
    targets = student.encode(batch)
    with torch.no_grad():
        of_teacher = teacher(batch)
    context = Context(student(batch), {"teacher": of_teacher}, batch, targets, student, {"teacher": teacher})
    terms = build_terms(config, student.tap_channels, teacher.tap_channels)
    return context, {term.name: term(context) for term in terms}, terms


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("scene", SCENES)
def test_finite_and_differentiable_in_every_scene(scene: str, border: bool) -> None:
    context, losses, terms = said(frames(SCENES[scene], border))
    assert set(losses) == {"feature", "response"}
    for term, value in losses.items():
        assert value.shape == () and value.dtype == torch.float32 and bool(value.isfinite()), term
        assert float(value.detach()) >= 0
    torch.stack(list(losses.values())).sum().backward()
    assert context.student_detector is not None
    for module in (context.student_detector, *terms):
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in module.parameters())
    teacher = context.teacher_detectors["teacher"]
    assert all(p.grad is None for p in teacher.parameters())


def test_the_adapter_begins_as_none_and_learns() -> None:
    """At first the term is the plain distance; the layer that keeps it out learns at once, all others after it."""
    context, losses, terms = said(frames([3, 2]))
    term = terms[0]
    assert isinstance(term, FeatureTerm)
    student, teacher = (o.features[CONFIG.tap].tensor for o in (context.student, context.teacher))
    inside = box_mask(context.targets.box2d, context.targets.eligible, 16, student.shape[-2:])[:, None]
    assert bool(inside.any()) and not bool(inside.all())
    plain = imitation_loss(student, teacher, torch.where(inside, 1.0, CONFIG.background))
    torch.testing.assert_close(losses["feature"], plain)
    losses["feature"].backward()
    learning = {name for name, p in term.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert learning == {"adapter.expand.weight", "adapter.expand.bias"}
    with torch.no_grad():
        term.adapter.expand.weight.normal_(std=0.1)
    term(replace_student(context)).backward()
    learning = {name for name, p in term.named_parameters() if p.grad is not None and bool(p.grad.any())}
    missing = {name for name, _ in term.named_parameters()} - learning
    assert not missing - {"adapter.among_cells.in_proj_bias"}, missing


def replace_student(context: Context) -> Context:
    """The same step with the student's graph anew."""
    assert context.student_detector is not None
    return replace(context, student=context.student_detector(context.batch))


def test_objects_of_other_images_do_not_matter() -> None:
    """An image's cells look at their own image's objects alone, and at nobody where there are none."""
    context, _, terms = said(frames([3, 0]))
    term = terms[0]
    with torch.no_grad():
        term.adapter.expand.weight.normal_(std=0.1)
        maps = context.student.features[CONFIG.tap].tensor
        cells = cell_positions(context, context.student.features[CONFIG.tap])
        objects, known = object_positions(context)
        index = torch.zeros_like(context.targets.indices)
        whole = term.adapter(maps, cells, index, objects, known)
        for i in range(2):
            alone = term.adapter(maps[[i]], cells[[i]], index[[i]], objects[[i]], known[[i]])
            torch.testing.assert_close(alone, whole[[i]], rtol=1e-4, atol=1e-5)
        moved = term.adapter(maps, cells, index, objects + 0.1, known)
    assert not torch.allclose(moved[0], whole[0], atol=1e-4)
    torch.testing.assert_close(moved[1], whole[1])


def test_positions() -> None:
    """Cells lie on their rays at the student's depth, objects where they are."""
    batch = frames([2, 1])
    context, _, _ = said(batch)
    feature = context.student.features[CONFIG.tap]
    cells = cell_positions(context, feature) * REACH
    height, width = feature.tensor.shape[-2:]
    assert cells.shape == (2, height * width, 3)
    uv = type(batch.camera)(batch.camera.projection.float()).project(cells)[0]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    middle = (torch.stack((column, row), -1) + 0.5).flatten(0, 1) * 16.0
    near = cells[..., 2] > 0.5
    torch.testing.assert_close(uv[near], middle.expand(2, -1, -1)[near], rtol=1e-2, atol=0.5)
    objects, known = object_positions(context)
    assert batch.objects is not None
    torch.testing.assert_close(objects[known] * REACH, batch.objects.centre[known[:, : batch.objects.label.shape[1]]])
    assert not bool(objects[~known].any())


def test_what_the_teacher_is_told() -> None:
    """The nearest object's depth in every cell that its 2D box touches; nothing of rows without a 3D box."""
    batch = frames([3, 1])
    objects = batch.objects
    assert objects is not None
    box2d = objects.box2d.clone()
    box2d[0, :3] = torch.tensor([[10.0, 10.0, 50.0, 30.0], [40.0, 20.0, 60.0, 40.0], [100.0, 10.0, 101.0, 11.0]])
    box2d[1, 0] = torch.tensor([0.0, 0.0, 30.0, 30.0])
    centre = objects.centre.clone()
    centre[0, :3, 2] = torch.tensor([20.0, 10.0, 30.0])
    label = objects.label.clone()
    label[1, 0] = IGNORE
    batch = replace(batch, objects=replace(objects, box2d=box2d, centre=centre, label=label))
    told = object_depth(batch, 4)[:, 0] / batch.affine.zoom.float()[:, None, None]
    expected = torch.zeros_like(told[0])
    expected[2:8, 2:13] = 20.0
    expected[5:10, 10:15] = 10.0
    expected[2:3, 25:26] = 30.0
    torch.testing.assert_close(told[0], expected)
    assert not bool(told[1].any())
    with pytest.raises(UserError, match="there are no labels: it is of use as a teacher alone"):
        object_depth(replace(batch, objects=None), 4)


def test_the_teacher_looks_at_what_it_is_told() -> None:
    _, teacher = networks()
    batch = frames([3])
    assert batch.objects is not None
    farther = replace(batch, objects=replace(batch.objects, centre=batch.objects.centre * 1.5))
    nobody = replace(batch, objects=replace(batch.objects, present=torch.zeros_like(batch.objects.present)))
    with torch.no_grad():
        maps = [teacher(b).features["neck_4"].tensor for b in (batch, farther, nobody)]
    assert not torch.allclose(maps[0], maps[1]) and not torch.allclose(maps[0], maps[2])
    assert set(MonoDLE(SMALL).state_dict()) < set(teacher.state_dict())
    assert not is_repeatable(None, "rgb+object_depth") and is_repeatable(None, "rgb")


def test_what_is_refused() -> None:
    channels = {"neck_8": 16}
    with pytest.raises(UserError, match="add_style: the student has no tap 'neck_16'; it offers neck_8"):
        build_terms(CONFIG, channels, channels)
    with pytest.raises(UserError, match="9 channels cannot be divided among 2 heads"):
        build_terms(replace(CONFIG, channels=9), {CONFIG.tap: 4}, {CONFIG.tap: 4})
    context, _, terms = said(frames([1]))
    with pytest.raises(UserError, match="which MonoDLE's depth map says"):
        terms[0](replace(context, targets=None))


def test_mean_by_weight() -> None:
    student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[1.0, 3.0]], [[1.0, 3.0]]]])
    weight = torch.tensor([[[[1.0, 0.1]]]])
    assert math.isclose(float(imitation_loss(student, teacher, weight)), (1 + 0.1 * 9) / 1.1, rel_tol=1e-6)


def test_the_preset_trains(streets: Path, tmp_path: Path) -> None:
    """To its end; the student has the baseline's weights, the teacher more."""
    recipe = small_preset("add_style", streets)
    options = RunOptions(out=tmp_path, progress=False, tensorboard=False, threads=1, accelerator="cpu")
    folder = run_recipe(recipe, options)
    shapes = {
        name: {k: v.shape for k, v in load_weights(folder / name)[0].items()}
        for name in ("teacher", "baseline", "add_style")
    }
    assert shapes["baseline"] == shapes["add_style"]
    assert {name.split(".")[0] for name in shapes["teacher"].keys() - shapes["baseline"].keys()} == {"told"}
    config = recipe.stage("teacher").detector
    assert isinstance(config, MonoDLEConfig) and isinstance(build_detector(config), MonoDLE)
