"""Every method on every base detector, in scenes that break careless reductions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import cars, make_batch
from streets import small_preset
from torch.utils._python_dispatch import TorchDispatchMode

from distill3d.detectors import build_detector, detector_name
from distill3d.detectors.monodle import HEAT_CLASSES
from distill3d.recipes.kitti import BASES, METHODS
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.train.loop import build_step
from distill3d.train.recipe import Recipe
from distill3d.train.teachers import Teacher

#: Cars in each image, and whether they stand on the image's border.
SCENES = {
    "nothing": ([0, 0], False), "one": ([1], False), "one of two": ([0, 1], False), "many": ([3, 5], False),
    "border": ([4, 2], True), "two hundred": ([200], False),
}  # fmt: skip


@pytest.fixture(scope="module", params=sorted(BASES))
def recipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A small preset with three classes, of which the scenes hold one, and its untrained teacher under the root."""
    root = tmp_path_factory.mktemp(request.param)
    small = small_preset(request.param, root)
    stages = tuple(replace(s, detector=replace(s.detector, classes=HEAT_CLASSES)) for s in small.stages)
    config = stages[0].detector
    torch.manual_seed(1)
    card = {"detector": detector_name(config), "config": to_plain(config), "trained_on": {"frames": []}}
    save_weights(root / "teacher", build_detector(config).state_dict(), card)
    return replace(small, stages=stages)


@pytest.mark.parametrize(
    ("scene", "bf16"),
    [
        *((scene, False) for scene in SCENES if scene != "one"),
        ("one of two", True),
        pytest.param("one", False, marks=pytest.mark.thorough),
        pytest.param("two hundred", True, marks=pytest.mark.thorough),
    ],
    ids=lambda value: {False: "fp32", True: "bf16"}.get(value, value),
)
@pytest.mark.parametrize("method", METHODS)
def test_all_terms_are_finite(recipe: Recipe, method: str, scene: str, bf16: bool) -> None:
    """Also their gradients; with batches of one image, and classes that the batch lacks."""
    counts, border = SCENES[scene]
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([cars(n, generator, border) for n in counts], generator)
    assert recipe.dataset.root is not None
    teacher = Teacher(Path(recipe.dataset.root) / "teacher")
    torch.manual_seed(0)
    step = build_step(recipe.stage(method), {"teacher": teacher}).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        targets = step.student.encode(batch)
        losses = step(batch, targets, {"teacher": teacher(batch, targets)})
    assert {term.name for term in step.terms} < set(losses)
    for name, value in losses.items():
        assert value.dtype == torch.float32 and value.shape == (), name
        assert bool(value.isfinite()), name
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in step.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


class Counter(TorchDispatchMode):
    """How many operations run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_objects_are_no_loop(recipe: Recipe, method: str) -> None:
    """A step takes as many operations for twenty objects as for three; the Hungarian matching runs outside of torch."""
    assert recipe.dataset.root is not None
    teacher = Teacher(Path(recipe.dataset.root) / "teacher")
    torch.manual_seed(0)
    step = build_step(recipe.stage(method), {"teacher": teacher}).train()
    counts = []
    for objects in (3, 20):
        step.zero_grad()
        generator = torch.Generator().manual_seed(0)
        batch = make_batch([cars(objects, generator), cars(objects, generator)], generator)
        with Counter() as counter:
            targets = step.student.encode(batch)
            losses = step(batch, targets, {"teacher": teacher(batch, targets)})
            torch.stack(list(losses.values())).sum().backward()
        counts.append(counter.count)
    assert counts[0] == counts[1]
