"""Every base detector with every method: a few steps of training, what terms reach, and that students are free."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streets import small_preset
from torch.utils.flop_counter import FlopCounterMode

from distill3d.data.augment.image import AugmentConfig, DistortionConfig
from distill3d.data.collate import batches
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.data.sample import Batch
from distill3d.detectors import build_detector
from distill3d.distill.methods.mixed import MixedConfig
from distill3d.recipes import RECIPES, get_recipe
from distill3d.recipes.head_start import READERS
from distill3d.recipes.kitti import BASES, METHODS, selective_monoskd
from distill3d.recipes.monosd import RGB_TEACHER
from distill3d.train.checkpoint import load_matching, load_weights
from distill3d.train.loop import RunOptions, TrainingStep, build_step
from distill3d.train.recipe import Recipe, StageConfig
from distill3d.train.sources import kitti_config
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import Teacher


@pytest.fixture(scope="module", params=sorted(BASES))
def trained(request: pytest.FixtureRequest, streets: Path, tmp_path_factory: pytest.TempPathFactory):
    """(recipe, its folder) after all stages of a preset."""
    recipe = small_preset(request.param, streets)
    options = RunOptions(
        out=tmp_path_factory.mktemp(request.param), progress=False, tensorboard=False, threads=1, accelerator="cpu"
    )
    return recipe, run_recipe(recipe, options)


def one_batch(recipe: Recipe, stage: StageConfig, frames: int = 2) -> Batch:
    data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
    return next(iter(batches(data, list(range(frames)), frames, 0, 0)))


def distilling(recipe: Recipe, folder: Path, stage: StageConfig) -> tuple[TrainingStep, dict[str, Teacher]]:
    """The untrained step of a student, with the response term also where the preset leaves it out for a while."""
    torch.manual_seed(0)
    if recipe.name != "tiny_monodetr" and not isinstance(stage.method, MixedConfig):
        stage = replace(stage, method=replace(stage.method, response_weight=1.0))
    teachers = {name: Teacher(folder / name) for name in stage.teachers}
    step = build_step(stage, teachers).train()
    sure = step.student.depth_log_scale
    # Selective terms rightly leave alone what a student is sure of: here it is sure of nothing.
    step.student.depth_log_scale = lambda *given: sure(*given).abs() + 0.1
    return step, teachers


def taught(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def run(step: TrainingStep, teachers: dict[str, Teacher], batch: Batch) -> dict[str, torch.Tensor]:
    targets = step.student.encode(batch)
    return step(batch, targets, {name: teacher(batch, targets) for name, teacher in teachers.items()})


def test_students_are_the_baseline(trained: tuple[Recipe, Path]) -> None:
    """The same names and shapes, and the same work for a picture: distillation costs nothing afterwards."""
    recipe, folder = trained
    shapes = {k: v.shape for k, v in load_weights(folder / "baseline")[0].items()}
    batch = one_batch(recipe, recipe.stage("baseline"), 1)

    def work(stage: StageConfig) -> int:
        detector = build_detector(stage.detector).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            detector.decode(detector(batch), batch)
        return counter.get_total_flops()

    baseline = work(recipe.stage("baseline"))
    assert baseline > 0
    for stage in recipe.stages[2:]:
        assert {k: v.shape for k, v in load_weights(folder / stage.name)[0].items()} == shapes
        assert work(stage) == baseline


def test_a_teachers_remembered_answers_are_its_answers(trained: tuple[Recipe, Path]) -> None:
    """Two-stage teachers answer where the student's targets are, which a frame and its mirroring determine."""
    recipe, folder = trained
    stage = recipe.stage("monostl")
    data = KittiDataset(kitti_config(recipe, stage, "train", train=True))
    plain, remembering = Teacher(folder / "teacher"), Teacher(folder / "teacher", repeatable=True)
    student = build_detector(stage.detector)
    for epoch in range(3):
        for batch in batches(data, [0, 3, 1, 2], 2, 0, epoch):
            targets = student.encode(batch)
            ours, theirs = remembering(batch, targets), plain(batch, targets)
            assert set(ours.predictions) == set(theirs.predictions)
            for name, value in theirs.predictions.items():
                torch.testing.assert_close(ours.predictions[name], value, rtol=1e-3, atol=1e-3)
            for tap, feature in theirs.features.items():
                torch.testing.assert_close(ours.features[tap].tensor, feature.tensor, rtol=1e-3, atol=1e-3)


#: Parts of the student that each term teaches; every term also teaches its adapters, unless it is the response.
TRUNK_ONLY, WITH_NECK = {"backbone"}, {"backbone", "neck"}
HEAT_MAP_REACH = {
    ("monodistill", "object"): TRUNK_ONLY, ("monodistill", "scene"): TRUNK_ONLY,
    ("monoskd", "spearman"): WITH_NECK, ("monoskd", "affinity"): WITH_NECK,
    ("monostl", "dasfd"): TRUNK_ONLY, ("monostl", "dasrd"): TRUNK_ONLY,
}  # fmt: skip
#: Where deformable attention looks does not depend on positions before training: its weights start at 0.
MONODETR_NECK = {"backbone", "encoder", "project"}
REACH = {
    **{(base, *key): parts for base in ("monodle", "gupnet", "did_m3d", "monocon")
       for key, parts in HEAT_MAP_REACH.items()},
    **{("monodetr", *key): MONODETR_NECK if parts is WITH_NECK else parts for key, parts in HEAT_MAP_REACH.items()},
    **{("monodle", method, "response"): {"backbone", "neck", "offset_2d", "size_2d", "offset_3d", "size_3d", "depth",
                                         "heading"} for method in METHODS},
    **{("gupnet", method, "response"): {"backbone", "neck", "offset_2d", "size_2d", "offset_3d", "size_3d", "depth",
                                        "heading"} for method in METHODS},
    **{("did_m3d", method, "response"): {"backbone", "neck", "offset_2d", "size_2d", "offset_3d", "size_3d",
                                         "vis_depth", "att_depth", "heading"} for method in METHODS},
    **{("monocon", method, "response"): {"backbone", "neck", "offset_2d", "size_2d", "keypoints", "size_3d", "depth",
                                         "direction", "heading_bin", "heading_residual"} for method in METHODS},
}  # fmt: skip


def test_each_term_teaches_what_it_should(trained: tuple[Recipe, Path]) -> None:
    """Which parts of the student a term's gradient reaches, and that it reaches all layers of the term's own adapters.

    A bias alone may rightly be left: relations between as many cells of sky as of ground pull it both ways alike.
    """
    recipe, folder = trained
    base = recipe.name.removeprefix("tiny_")
    seen = set()
    for stage in recipe.stages[2:]:
        step, teachers = distilling(recipe, folder, stage)
        batch = one_batch(recipe, stage, 4)
        for term in step.terms:
            step.zero_grad()
            run(step, teachers, batch)[term.name].backward()
            reached = {name.split(".")[0] for name, p in step.student.named_parameters() if taught(p)}
            assert reached == REACH[base, stage.name, term.name], (stage.name, term.name)
            layers, learning = (
                {name.rpartition(".")[0] for name, p in term.named_parameters() if counts(p)}
                for counts in (lambda p: True, taught)
            )
            assert learning == layers, (stage.name, term.name)
            seen.add((base, stage.name, term.name))
    assert seen == {key for key in REACH if key[0] == base}


@pytest.mark.parametrize("select", [True, False], ids=["selected", "side by side"])
def test_terms_of_several_methods_mix(trained: tuple[Recipe, Path], select: bool) -> None:
    recipe, folder = trained
    mixture = selective_monoskd().stage("student").method
    stage = recipe.stage("monostl")
    parts = (recipe.stage("monoskd").method, stage.method)
    mixture = replace(mixture, parts=parts, select=mixture.select if select else None)
    step, teachers = distilling(recipe, folder, replace(stage, method=mixture))
    losses = run(step, teachers, one_batch(recipe, stage))
    expected = {"monoskd.spearman", "monoskd.affinity", "monostl.dasfd", "monostl.dasrd"}
    assert expected <= set(losses)
    assert all(bool(v.isfinite()) for v in losses.values())
    losses["monoskd.spearman"].backward()
    assert any(taught(p) for p in step.student.parameters())


def test_a_head_start_is_all_that_reads_the_teachers_features() -> None:
    """The student's neck and heads begin as the teacher's, its backbone does not, and nothing is trained for longer."""
    recipe = get_recipe("tiny_head_start")
    teacher, student = (build_detector(recipe.stage(name).detector) for name in ("teacher", "head_start"))
    assert {name for name, _ in student.named_children()} == {"backbone", *READERS}
    weights = teacher.state_dict()
    stage = recipe.stage("head_start")
    untrained = {name: value.clone() for name, value in student.state_dict().items()}
    found = load_matching(student, weights, stage.inherit_parts)
    assert {name.partition(".")[0] for name in found["left"]} == {"backbone"}
    for name, value in student.state_dict().items():
        own = name.startswith("backbone.")
        assert torch.equal(value, untrained[name] if own else weights[name])
    assert stage.schedule == recipe.stage("monoskd").schedule and stage.needs == ("teacher", "teacher")
    for name in ("tiny_head_start", "head_start_monodle"):
        method = get_recipe(name).stages[-1].method
        assert isinstance(method, MixedConfig)
        assert [part.teacherless or getattr(part, "response_weight", 0) == 0 for part in method.parts] == [True, True]


#: Paper-size recipes: what is neither on synthetic data nor a check by heart.
PAPER_SIZE = sorted(
    name
    for name in RECIPES
    if not name.startswith(("tiny_", "demo")) and "streets" not in name and "overfit" not in name
)


@pytest.mark.parametrize("name", PAPER_SIZE)
def test_notes_say_how_published_numbers_were_chosen(name: str) -> None:
    note = get_recipe(name).note
    if any(digit.isdigit() for digit in note.replace("3D", "").replace("arXiv:2603.07464", "")):
        assert "best of" in note and "checkpoints on the reported split" in note
    else:
        assert "no number" in note


#: MonoDETR's small crops with SSD's distortion, and what the methods' codes make of the other bases' augmentation.
MONODETRS = AugmentConfig(
    zoom_deviation=0.05, zoom_range=(0.95, 1.05), shift=0.05, photometric=False, style="intended",
    distortion=DistortionConfig(0.5, 32.0, (0.5, 1.5), (0.5, 1.5), 18.0),
)  # fmt: skip
#: MonoCon's pictures are moved by whole pixels.
MONOCONS = AugmentConfig(
    photometric=False, style="intended", distortion=DistortionConfig(0.5, 32.0, (0.5, 1.5), (0.5, 1.5), 18.0), move=32
)
OWN = {"monodetr": MONODETRS, "monocon": MONOCONS}
SHIFTED = AugmentConfig(shift=0.1, photometric=True)
WAYS = {"monodistill": AugmentConfig(shift=0.0), "monoskd": SHIFTED, "monostl": AugmentConfig(shift=0.0)}


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_all_stages_are_augmented_alike(method: str, base: str) -> None:
    """Teacher, baseline and student see the same pictures: as the method's code makes them, or as the base's own."""
    own = OWN.get(base, AugmentConfig(photometric=False))
    expected = OWN.get(base, WAYS[method])
    if (method, base) == ("monodistill", "did_m3d"):
        expected = SHIFTED  # its published number is from MonoSKD's code
    assert get_recipe(base).stages[0].augment == own
    assert [stage.augment for stage in get_recipe(f"{method}_{base}").stages] == [expected] * 3


@pytest.mark.parametrize(
    ("name", "alone", "student"),  # epochs, batch, rate
    [
        ("monodistill_monodle", (140, 16, 1.25e-3), (160, 12, 1.25e-3)),
        ("monodistill_did_m3d", (160, 16, 1e-3), (150, 16, 1e-3)),
        ("monoskd_did_m3d", (160, 16, 1e-3), (150, 16, 1e-3)),
        ("monostl_monodle", (140, 24, 1.25e-3), (200, 12, 1.25e-3)),
        ("monostl_monodetr", (195, 16, 2e-4), (195, 16, 2e-4)),
        ("monostl_monocon", (200, 8, 2.25e-3), (200, 8, 2.25e-3)),
    ],
)
def test_schedules_are_the_papers(name: str, alone: tuple, student: tuple) -> None:
    found = [(s.schedule.epochs, s.schedule.batch_size, s.schedule.lr) for s in get_recipe(name).stages]
    assert found == [alone, alone, student]


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"demo", "demo_control"}))
def test_recipes_name_what_they_reproduce(name: str) -> None:
    """Every recipe can be built; paper-size ones hold a published number with its source, or say that there is none."""
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.note
    for stage in recipe.stages:
        assert (stage.method is None) == (not stage.teachers)
        for teacher in stage.teachers:
            config, own = recipe.stage(teacher).detector, stage.detector
            if config.input == "depth":
                assert replace(config, input=own.input, depth_encoding=own.depth_encoding) == own
            else:
                to_camera = config.input in ("points", "labels", "rgb+gt_depth", "rgb+object_depth", "rgb+points")
                to_camera &= own.input in ("rgb", "rgb+gt_depth")
                to_camera |= teacher == RGB_TEACHER and config == own
                assert to_camera or (name == "unidistill_lidar" and (config.input, own.input) == ("rgb", "points"))
