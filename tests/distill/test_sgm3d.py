"""SGM3D on small networks: finite whatever the scene, what each term teaches, and pairs against a plain search."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up import cars, make_batch
from streets import small_bev_detector, small_bev_preset
from torch import Tensor

from distill3d.data.sample import Batch
from distill3d.detectors import build_detector, caddn, pointpillars
from distill3d.detectors.anchor_outputs import HEAD_TAP
from distill3d.detectors.base import Detector
from distill3d.distill.context import Context
from distill3d.distill.methods import build_terms
from distill3d.distill.methods.sgm3d import (
    RELEASED_FLOOR,
    SGM3DConfig,
    anchor_loss,
    feature_loss,
    matched,
    object_losses,
)
from distill3d.errors import UserError
from distill3d.layers.ground.rotated import bev_iou
from distill3d.layers.heads.anchor_head import focal_head
from distill3d.train.checkpoint import load_weights
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe

#: Everybody is sure of everything, and any overlap makes a pair.
EAGER: dict[str, Any] = {"least_score": 0.0, "least_overlap": 0.0}
CONFIGS = {
    "default": SGM3DConfig(**EAGER),
    "released": SGM3DConfig.styled("released", **EAGER),
    "classes": SGM3DConfig(score_axis="classes", **EAGER),
    "shy": SGM3DConfig(),
}
#: Cars in each image; a single one stands beyond the ground.
SCENES = {"nothing": [0, 0], "outside": [1], "one of two": [0, 4], "single": [4], "many": [3, 5]}
WITHOUT_FOREGROUND = ("nothing", "outside")


def networks(**fields: Any) -> tuple[Detector, Detector]:
    """Untrained student and teacher; both heads ask for three classes and offer their map."""
    head = focal_head(**{"offers_map": True, **fields})
    torch.manual_seed(0)
    student = build_detector(small_bev_detector(caddn.tiny(head=head)))
    return student, build_detector(small_bev_detector(pointpillars.tiny(head=head))).eval()


def frames(counts: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return make_batch([cars(n, generator) for n in counts], generator)


def said(student: Detector, teacher: Detector, batch: Batch, config: SGM3DConfig) -> tuple[Context, dict[str, Tensor]]:
    targets = student.encode(batch)
    with torch.no_grad():
        of_teacher = teacher(batch)
    context = Context(student(batch), {"teacher": of_teacher}, batch, targets, student, {"teacher": teacher})
    terms = build_terms(config, student.tap_channels, teacher.tap_channels)
    return context, {term.name: term(context) for term in terms}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("name", CONFIGS)
def test_finite_and_differentiable_in_every_scene(name: str, scene: str) -> None:
    student, teacher = networks()
    _, losses = said(student, teacher, frames(SCENES[scene]), CONFIGS[name])
    assert set(losses) == {"feature", "anchor", "object"}
    for term, value in losses.items():
        assert value.shape == () and value.dtype == torch.float32, term
        assert bool(value.isfinite()), term
        # a softmax's divergence is positive as a whole, not entry by entry
        assert float(value.detach()) >= 0 or (term == "anchor" and CONFIGS[name].score_axis != "presence"), term
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert (float(losses["feature"].detach()) == 0) == (scene in WITHOUT_FOREGROUND)
    assert (float(losses["object"].detach()) == 0) == (name == "shy")  # an untrained network is sure of nothing


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("feature", {"blocks", "deblocks"}),
        ("anchor", {"conv_cls"}),
        ("object", {"conv_cls", "conv_box", "conv_dir_cls"}),
    ],
)
def test_each_term_teaches_what_it_should(term: str, parts: set[str]) -> None:
    """All reach through the head's own 2D network down to the picture's."""
    student, teacher = networks()
    _, losses = said(student, teacher, frames([3, 2]), CONFIGS["default"])
    losses[term].backward()
    reached = {name for name, p in student.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {name.split(".")[0] for name in reached} >= {"trunk", "collapse", "head"}
    layers = {name.removeprefix("head.").removeprefix("backbone.").split(".")[0] for name in reached if "head." in name}
    assert layers == parts | {"blocks", "deblocks"}


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    student, _ = networks()
    batch = frames([3, 2])
    student.eval()
    _, losses = said(student, student, batch, CONFIGS["default"])
    assert all(float(value.detach()) == pytest.approx(0, abs=1e-6) for value in losses.values())


def test_images_are_taught_each_by_itself() -> None:
    """A batch's feature and object terms are the means over its images; its pairs stay within one."""
    student, teacher = networks()
    student.eval()
    batch = frames([3, 2])
    context, _ = said(student, teacher, batch, CONFIGS["default"])
    student_rows, teacher_rows = random_side(2, 40, 0), random_side(2, 40, 1)
    config = SGM3DConfig(least_score=0.3, least_overlap=0.1)
    whole = object_losses(student_rows, teacher_rows, config)
    single = [object_losses(*(only(side, i) for side in (student_rows, teacher_rows)), config) for i in range(2)]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in single]).mean())
    used = context.targets.anchors.labels.unflatten(1, (*context.student.features[HEAD_TAP].tensor.shape[-2:], -1))
    maps = [o.features[HEAD_TAP].tensor.detach() for o in (context.student, context.teacher)]
    used = (used > 0).any(-1)
    mean = torch.stack([feature_loss(maps[0][[i]], maps[1][[i]], used[[i]]) for i in range(2)]).mean()
    torch.testing.assert_close(feature_loss(*maps, used), mean)


def random_side(images: int, anchors: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    box = torch.rand(images, anchors, 7, generator=generator) * torch.tensor([12, 6, 1, 2, 1, 1, 6.0])
    box[..., 3:6] += 1
    return {
        "cls": torch.randn(images, anchors, 3, generator=generator), "box": box,
        "dir": torch.randn(images, anchors, 2, generator=generator),
    }  # fmt: skip


def only(side: dict[str, Tensor], image: int) -> dict[str, Tensor]:
    return {name: value[[image]] for name, value in side.items()}


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_a_plain_search(seed: int) -> None:
    config = SGM3DConfig(least_score=0.5, least_overlap=0.2)
    student, teacher = random_side(3, 30, seed), random_side(3, 30, seed + 10)
    expected = []
    for i in range(3):
        sure = [side["cls"][i].sigmoid().amax(-1) > 0.5 for side in (student, teacher)]
        overlap = bev_iou(student["box"][i], teacher["box"][i]).where(sure[1], 0.0)
        best, partner = overlap.max(1)
        expected += [(i, a, int(partner[a])) for a in range(30) if sure[0][a] and float(best[a]) > 0.2]
    found = matched(student, teacher, config)
    assert len(expected) > 3
    assert list(zip(*(index.tolist() for index in found), strict=True)) == expected


def test_boxes_of_pairs_are_averaged_or_summed() -> None:
    student, teacher = random_side(2, 40, 0), random_side(2, 40, 1)
    mean = SGM3DConfig(least_score=0.3, least_overlap=0.1)
    pairs = torch.bincount(matched(student, teacher, mean)[0], minlength=2)
    of = {
        name: object_losses(student, teacher, replace(mean, box_reduction=name))["box"] for name in ("mean", "sum")
    }  # fmt: skip
    parts = [object_losses(only(student, i), only(teacher, i), mean)["box"] * pairs[i] for i in range(2)]
    torch.testing.assert_close(of["sum"], torch.stack(parts).sum() / 2)
    assert float(of["sum"]) > float(of["mean"]) > 0


def test_cells_weigh_by_their_image_or_their_column() -> None:
    """Three cells in one column, one in another: by columns all count a tenth, by images a quarter."""
    student, teacher = torch.zeros(1, 2, 4, 3), torch.ones(1, 2, 4, 3)
    used = torch.zeros(1, 4, 3, dtype=torch.bool)
    used[0, :3, 0] = used[0, 1, 2] = True
    assert float(feature_loss(student, teacher, used, "image")) == pytest.approx(0.5)
    assert float(feature_loss(student, teacher, used, "column")) == pytest.approx(4 * 0.5 / RELEASED_FLOOR)
    tall = torch.ones(1, 20, 1, dtype=torch.bool)
    assert float(feature_loss(torch.zeros(1, 1, 20, 1), torch.ones(1, 1, 20, 1), tall, "column")) == pytest.approx(0.5)


def test_score_distributions() -> None:
    """Presence is a Bernoulli's divergence; a softmax over a single class says nothing; images add up over entries."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[1, 0, 0, -1, 0], [0, 0, 1, 0, 0]])
    p, q = student.sigmoid(), teacher.sigmoid()
    divergence = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log())[..., 0]
    expected = 2 * divergence[labels == 1].mean() + 0.1 * divergence[labels != 1].mean()
    torch.testing.assert_close(anchor_loss(student, teacher, labels, SGM3DConfig()), expected)
    classes = anchor_loss(student, teacher, labels, SGM3DConfig(score_axis="classes"))
    assert float(classes) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [({}, {"feature": 0.1, "anchor": 1.0, "object": 0.01}), ({"object_weight": 0.0}, {"feature": 0.1, "anchor": 1.0}),
     ({"feature_weight": 0.0, "anchor_weight": 0.0}, {"object": 0.01})],
)  # fmt: skip
def test_weights(weight: dict[str, float], expected: dict[str, float]) -> None:
    channels = {HEAD_TAP: 4}
    assert {t.name: t.weight for t in build_terms(SGM3DConfig(**weight), channels, channels)} == expected


def test_styles() -> None:
    table = {
        "cell_count": ("column", "image"), "score_axis": ("anchors", "presence"), "box_reduction": ("sum", "mean"),
        "teacher_bn": ("train", "eval"),
    }  # fmt: skip
    styles = (SGM3DConfig.styled("released"), SGM3DConfig.styled("intended"))
    assert {name: tuple(getattr(c, name) for c in styles) for name in table} == table
    assert SGM3DConfig().style == "intended"


def test_what_is_refused() -> None:
    student, teacher = networks()
    silent, _ = networks(offers_map=False)
    batch = frames([1])
    with pytest.raises(
        UserError, match="head.offers_map.*the student has no tap 'bev_head'; it offers bev_visual, bev"
    ):
        said(silent, teacher, batch, SGM3DConfig())
    unoffered = networks(offers_map=False)[1]
    for sides in ((silent, unoffered), (silent, teacher), (student, unoffered)):  # a map that nobody compares
        _, losses = said(*sides, batch, SGM3DConfig(feature_weight=0.0))
        assert set(losses) == {"anchor", "object"}
    unlabelled = build_detector(replace(student.config, detection_weight=0.0))
    with pytest.raises(UserError, match="whose detection_weight is above 0"):
        said(unlabelled, teacher, batch, SGM3DConfig())
    fewer = networks(classes=student.config.head.classes[:1])[1]
    with pytest.raises(UserError, match="give both the same classes and anchors"):
        said(student, fewer, batch, SGM3DConfig(feature_weight=0.0))


def test_the_preset_trains(streets: Path, tmp_path: Path) -> None:
    """To its end; the student has the baseline's weights, name by name."""
    recipe = small_bev_preset(streets, "tiny_sgm3d")
    options = RunOptions(out=tmp_path, progress=False, tensorboard=False, threads=1, accelerator="cpu")
    folder = run_recipe(recipe, options)
    shapes = [{k: v.shape for k, v in load_weights(folder / name)[0].items()} for name in ("baseline", "sgm3d")]
    assert shapes[0] == shapes[1]
