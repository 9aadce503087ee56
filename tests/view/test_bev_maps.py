"""Maps of the ground: where a cell lands in the picture, what the colours mean, and what the networks of a run see."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from html_page import Page
from PIL import Image
from streets import small_bev_preset

from distill3d.answers import HEAT, ground_maps, open_inputs, own_maps
from distill3d.boxes import KITTI_CLASSES, lidar_rows
from distill3d.data.collate import collate
from distill3d.data.kitti.dataset import KittiDataset
from distill3d.detectors import build_detector
from distill3d.detectors.base import BevGeometry
from distill3d.diagnose import diagnose
from distill3d.diagnosed import mapped_frames
from distill3d.distill.methods.monotakd import MonoTAKDConfig
from distill3d.evaluate.transfer import OUTCOMES
from distill3d.record import record_run
from distill3d.settings import to_plain
from distill3d.train.checkpoint import load_detector, save_weights
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.sources import kitti_config
from distill3d.train.stages import run_recipe
from distill3d.view.bev_maps import MAPS, BevMaps, FrameMaps, ground_section, map_picture, ramp, scales
from distill3d.view.page import render
from distill3d.view.palette import GROUND_RAMP, LOOKS, TRUE
from distill3d.view.runs import PREPARATION, Stage, read_runs

#: 40 m ahead from 2 m on, 24 m to either side, in cells of 2 m.
GROUND = BevGeometry((2.0, -24.0, 42.0, 24.0), 2.0)
CELLS = (24, 20)
NO_BOXES = np.zeros((0, 4, 2))


def pixel_of(picture: Image.Image, x: float, y: float) -> tuple[int, int]:
    """Where a point of ``GROUND`` (m, LiDAR frame) is in its picture: forward up, left at the left."""
    x0, y0, x1, y1 = GROUND.extent
    return int((y1 - y) / (y1 - y0) * picture.width), int((x1 - x) / (x1 - x0) * picture.height)


def colour(name: str) -> tuple[int, ...]:
    return tuple(int(name[i : i + 2], 16) for i in (1, 3, 5))


# --------------------------------------------------------------------------------------------------------- the pictures


@pytest.mark.parametrize(
    ("x", "y"), [(7, 13), (7, -23), (41, 13), (41, -23), (21, 13), (25, -11)], ids=lambda v: f"{v:g}"
)
def test_a_cell_lands_where_it_lies(x: float, y: float) -> None:
    values = np.zeros(CELLS)
    values[int((y + 24) / 2), int((x - 2) / 2)] = 3.0
    pixels = map_picture(values, GROUND, NO_BOXES, 3.0)
    assert pixels.getpixel(pixel_of(pixels, x, y)) == colour(GROUND_RAMP[-1])
    bright = (np.asarray(pixels) == colour(GROUND_RAMP[-1])).all(2)
    assert bright.mean() == pytest.approx(1 / values.size, rel=0.05)  # square cells, none of them spread


@pytest.mark.parametrize(("x", "y", "length"), [(20.0, 8.0, 6.0), (33.0, -15.0, 8.0)])
def test_outlines_lie_on_their_cells(x: float, y: float, length: float) -> None:
    """Corners in the order front left, rear left, rear right, front right; the line inside runs to the front."""
    half, side = length / 2, 1.5
    corners = np.array([[[x + half, y + side], [x - half, y + side], [x - half, y - side], [x + half, y - side]]])
    picture = map_picture(np.zeros(CELLS), GROUND, corners, 1.0)
    drawn = (np.abs(np.asarray(picture, dtype=int) - colour(LOOKS[TRUE].colour)) < 12).all(2)
    rows, columns = drawn.nonzero()
    left, top = pixel_of(picture, x + half, y + side)
    right, bottom = pixel_of(picture, x - half, y - side)
    for found, expected in ((columns.min(), left), (columns.max(), right), (rows.min(), top), (rows.max(), bottom)):
        assert abs(found - expected) <= 3
    u, v = pixel_of(picture, x + half / 2, y)
    assert drawn[v, u - 1 : u + 2].any() and not drawn[pixel_of(picture, x - half / 2, y)[1], u - 1 : u + 2].any()


def test_axes_are_drawn_over_dark_and_bright_cells() -> None:
    for value in (0.0, 1.0):
        plain = np.asarray(map_picture(np.full(CELLS, value), GROUND, NO_BOXES, 1.0), dtype=int)
        background = np.bincount((plain @ (1, 256, 65536)).ravel()).argmax()
        written = (plain @ (1, 256, 65536)) != background
        height, width = written.shape
        assert written[:, : width // 5].any() and written[int(0.85 * height) :].any()
        assert not written[: int(0.85 * height), width // 3 :].any()


@pytest.mark.parametrize(
    ("geometry", "shape", "words"),
    [
        (BevGeometry(GROUND.extent, 2.0, "camera"), CELLS, "LiDAR"),
        (BevGeometry(GROUND.extent, 2.0, "lidar", ("x", "y")), CELLS, "axes"),
        (GROUND, CELLS[::-1], "grid"),
    ],
)
def test_other_grids_are_refused(geometry: BevGeometry, shape: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        map_picture(np.zeros(shape), geometry, NO_BOXES, 1.0)


def test_the_ramp_is_read_by_lightness() -> None:
    """Brightness alone tells the order, so that no colour vision is needed."""
    shades = ramp(np.linspace(0, 1, 40)).astype(float)
    assert (np.diff(shades @ (0.2126, 0.7152, 0.0722)) > 0).all()
    ends = [colour(GROUND_RAMP[0]), colour(GROUND_RAMP[-1])]
    assert ramp(np.array([-1.0, np.nan, 0.0, 1.0, 7.0])).tolist() == [list(ends[n]) for n in (0, 0, 0, 1, 1)]


# ------------------------------------------------------------------------------------------------------------- the page


def frame_maps(**values: float) -> FrameMaps:
    """A frame of even maps; ``teacher`` and the like say how bright they are."""
    maps = {kind: np.full(CELLS, float(value)) for kind, value in values.items()}
    return FrameMaps(
        "000001", "largest gain", maps, NO_BOXES, {("visual", "teacher"): 0.5, ("spatial", "residual"): np.nan}
    )


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([frame_maps(teacher=2, visual=9)], [(("teacher", "visual"), 2.0, True)]),
        ([frame_maps(assistant=3, visual=9)], [(("assistant", "visual"), 3.0, True)]),
        ([frame_maps(visual=4), frame_maps(teacher=1)], [(("teacher", "visual"), 1.0, True)]),
        ([frame_maps(teacher=0, visual=1)], [(("teacher", "visual"), 0.0, False)]),
        (
            [frame_maps(teacher=1, residual=5, spatial=7)],
            [(("teacher",), 1.0, True), (("residual", "spatial"), 5.0, True)],
        ),
        ([frame_maps(spatial=7)], [(("spatial",), 7.0, True)]),
    ],
)
def test_the_first_map_sets_the_scale(frames: list[FrameMaps], expected: list[tuple]) -> None:
    assert [(one.kinds, one.end, one.dazzled) for one in scales(frames)] == expected


def test_few_cells_set_a_scale_by_the_largest_only_where_the_rest_is_dark() -> None:
    for rest, end in ((0.0, 50.0), (1.0, 1.0)):
        one = frame_maps(teacher=rest)
        one.maps["teacher"][0, :2] = 50.0  # 0.4 % of the cells
        assert [scale.end for scale in scales([one])] == [end]


@pytest.mark.parametrize(
    ("kinds", "words", "absent"),
    [
        (("teacher", "visual"), ["V is bright where F T is", "student (pupil)", "= 0.50"], ["assistant", "R"]),
        (("teacher", "assistant", "visual"), ["V is bright where F A is", "assistant (helper)"], ["second"]),
        (("visual",), ["labelled cars"], ["is bright where", "teacher"]),
        (tuple(MAPS), ["V is bright where F A is and P is bright where R is", "how R comes about"], ["nan."]),
    ],
)
def test_only_what_exists_is_shown(kinds: tuple[str, ...], words: list[str], absent: list[str]) -> None:
    one = frame_maps(**dict.fromkeys(kinds, 1.0))
    if "teacher" not in kinds:
        one.distances.clear()
    stages = {"teacher": "teacher", "assistant": "helper", "student": "pupil"}
    inputs = {"teacher": "points", "assistant": "rgb+gt_depth", "student": "rgb"}
    maps = BevMaps(GROUND, (one, one), stages, inputs, "how R comes about")
    page = Page(render("maps.html", maps=ground_section(maps, "cars")))
    page.assert_self_contained()
    assert sum(reference.startswith("data:image/png") for reference in page.references) == 2 * len(kinds)
    for word in words:
        assert word in page.text
    assert not any(word in page.text.split() for word in absent)


# ------------------------------------------------------------------------------------------------- a run's networks


@pytest.fixture(scope="module")
def trained(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """(recipe, its folder) after all stages of the smallest preset."""
    recipe = small_bev_preset(streets)
    options = RunOptions(
        out=tmp_path_factory.mktemp("bev"), progress=False, tensorboard=False, threads=1, accelerator="cpu"
    )
    return recipe, run_recipe(recipe, options)


@pytest.fixture
def run(trained: tuple[Recipe, Path], tmp_path: Path) -> Path:
    """A copy of the trained run, to be spoiled."""
    return Path(shutil.copytree(trained[1], tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt")))


def maps_of(run: Path, student: str) -> tuple[BevMaps | None, list[str]]:
    stages = read_runs([run])
    (stage,) = (stage for stage in stages if stage.name == student)
    return ground_maps(stage, stages, {frame_of(stage): "largest gain"}, ("car",), torch.device("cpu"))


def frame_of(stage: Stage) -> str:
    return sorted(path.stem for path in stage.predictions.glob("*.txt"))[0]


ALL_KINDS = {"cmkd": {"teacher", "visual"}, "monotakd": set(MAPS), "assistant": {"teacher", "visual"}}


@pytest.mark.parametrize("student", ALL_KINDS)
def test_maps_are_what_the_networks_say(trained: tuple[Recipe, Path], student: str) -> None:
    """Each network sees the frame as in training: the student its picture, others points in view, or true depth."""
    recipe, folder = trained
    maps, lacks = maps_of(folder, student)
    assert maps is not None and lacks == []
    (one,) = maps.frames
    assert one.maps.keys() == ALL_KINDS[student]
    for part, kind in (("teacher", "teacher"), ("assistant", "assistant"), ("student", "visual")):
        if part not in maps.stages:
            continue
        stage = recipe.stage(maps.stages[part])
        data = KittiDataset(kitti_config(recipe, stage, recipe.dataset.eval_split, train=False))
        sample = data.get(data.frame_ids.index(one.frame))
        with torch.no_grad():
            expected = load_detector(folder / stage.name)[0](collate([sample])).features["bev"].tensor[0].mean(0)
        np.testing.assert_allclose(one.maps[kind], expected.numpy(), rtol=1e-4, atol=1e-6)
        assert sample.objects is not None and sample.lidar_to_camera is not None
        cars = sample.objects.boxes[sample.objects.boxes.label == KITTI_CLASSES.index("Car")]
        rows = lidar_rows(cars.centre, cars.size, cars.yaw, torch.linalg.inv(sample.lidar_to_camera))
        np.testing.assert_allclose(one.outlines.mean(1), rows[:, :2].numpy(), atol=1e-4)
    pairs = {("visual", "teacher")} | (
        {("visual", "assistant"), ("spatial", "residual")} if student == "monotakd" else set()
    )
    assert one.distances.keys() == pairs and all(value > 0 for value in one.distances.values())


def test_recorded_maps_are_what_the_networks_say(trained: tuple[Recipe, Path], tmp_path: Path) -> None:
    """Every network of a run that looks at the ground, each with its own inputs."""
    recipe, folder = trained
    stages = {stage.name: stage for stage in read_runs([folder]) if stage.role != PREPARATION}
    frame = frame_of(stages["teacher"])
    for name, stage in stages.items():
        data = KittiDataset(kitti_config(recipe, recipe.stage(name), recipe.dataset.eval_split, train=False))
        with torch.no_grad():
            outputs = load_detector(folder / name)[0](collate([data.get(data.frame_ids.index(frame))]))
        shown = own_maps(stage, [frame], torch.device("cpu"))[frame]
        taps = [tap for tap in shown if tap != HEAT]
        assert taps
        for tap in taps:
            expected = outputs.features[tap].tensor[0].mean(0)
            np.testing.assert_allclose(shown[tap].values, expected.numpy(), rtol=1e-4, atol=1e-6)
    done = record_run(folder, tmp_path / "run.rrd", names=[frame], device="cpu")
    assert done.lacks == () and done.stages == tuple(stages)


def lose(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "kinds", "words"),
    [
        (lose("teacher"), {"assistant", "visual", "spatial"}, ["teacher's map", "model.safetensors"]),
        (lose("assistant"), {"teacher", "visual", "spatial"}, ["assistant's map", "model.safetensors"]),
        (lambda run: [lose(name)(run) for name in ("teacher", "assistant")], {"visual", "spatial"}, ["teacher's map"]),
    ],
    ids=["no teacher", "no assistant", "neither"],
)
def test_what_cannot_be_shown_is_said(run: Path, spoil: Callable, kinds: set[str], words: list[str]) -> None:
    spoil(run)
    maps, lacks = maps_of(run, "monotakd")
    assert maps is not None and maps.frames[0].maps.keys() == kinds
    assert all(any(word in sentence for sentence in lacks) for word in words)


def test_a_shared_assistant_is_the_students_own(run: Path) -> None:
    """It is heard in training mode, with the statistics of evaluation: the student's own map stays the same."""
    card = json.loads((run / "monotakd" / "card.json").read_text())
    torch.manual_seed(0)
    recipe = small_bev_preset(Path("unused"))
    config = replace(recipe.stage("monotakd").detector, fusion="none", assistant="shared")
    method = MonoTAKDConfig.styled("released")
    detector = build_detector(config)
    card |= {"config": to_plain(config), "method_config": to_plain(method), "teachers": ["teacher"]}
    save_weights(run / "monotakd", detector.state_dict(), card)
    maps, lacks = maps_of(run, "monotakd")
    assert maps is not None and lacks == [] and maps.stages["assistant"] == "monotakd"
    (one,) = maps.frames
    assert one.maps.keys() == set(MAPS) and maps.inputs["assistant"] == "rgb+gt_depth"
    (stage,) = (stage for stage in read_runs([run]) if stage.name == "monotakd")
    data = open_inputs(stage, {"rgb"})
    batch = collate([data.get(data.frame_ids.index(one.frame))])
    with torch.no_grad():
        visual = detector.eval()(batch).features["bev"].tensor[0].mean(0)
    np.testing.assert_allclose(one.maps["visual"], visual.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [{}, {"placement": "corner", "divide": "homogeneous"}, {"depth": "lidar"}, {"canvas": (192, 96)}],
    ids=lambda s: "-".join(s) or "plain",
)
@pytest.mark.parametrize("stage", ["teacher", "assistant", "cmkd"])
def test_networks_see_the_data_as_in_training(streets: Path, tmp_path: Path, stage: str, settings: dict) -> None:
    recipe = small_bev_preset(streets)
    recipe = replace(recipe, dataset=replace(recipe.dataset, in_memory=False, **settings))
    (tmp_path / stage).mkdir()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(to_plain(recipe)))
    (tmp_path / stage / "config.yaml").write_text(yaml.safe_dump(to_plain(recipe.stage(stage))))
    (found,) = (one for one in read_runs([tmp_path]) if one.name == stage)
    expected = kitti_config(recipe, recipe.stage(stage), recipe.dataset.eval_split, train=False)
    assert open_inputs(found, {recipe.stage(stage).detector.input}).config == expected


# ------------------------------------------------------------------------------------------------- the whole command


def test_diagnosis_of_the_family(trained: tuple[Recipe, Path], tmp_path: Path) -> None:
    result = diagnose(trained[1], out=tmp_path / "d.html")
    page = Page(result.files[0].read_text(encoding="utf-8"))
    page.assert_self_contained()
    assert [(one.student.name, one.teacher and one.teacher.name) for one in result.sections] == [
        ("cmkd", "teacher"), ("monotakd", "teacher"),
    ]  # fmt: skip
    assert "monotakd was taught by teacher and assistant" in page.text
    assert "second predicts no uncertainty of depth" in page.text
    assert page.text.count("Maps of the ground") == 2
    students = json.loads(result.files[1].read_text())["students"]
    for name, parts in (("cmkd", 1), ("monotakd", 3)):
        assert [len(frame["distances"]) for frame in students[name]["bev_maps"]] == [parts] * 4


@pytest.mark.parametrize(
    ("spoil", "sections", "words"),
    [
        (lose("cmkd"), 1, "no maps of the ground of cmkd"),
        (lambda run: shutil.rmtree(run / "teacher"), 2, "the teacher's map of the ground (teacher) is left out"),
        (lambda run: shutil.rmtree(run / "assistant"), 2, "the assistant's map of the ground (assistant) is left out"),
    ],
    ids=["student", "teacher", "assistant"],
)
def test_the_rest_is_still_written(run: Path, spoil: Callable, sections: int, words: str) -> None:
    spoil(run)
    result = diagnose(run)
    page = Page(result.files[0].read_text(encoding="utf-8"))
    assert page.text.count("Maps of the ground") == sections and words in page.text and words in result.text()


def test_data_that_went_away(run: Path, streets: Path, tmp_path: Path) -> None:
    root = shutil.copytree(streets, tmp_path / "bare")
    shutil.rmtree(root / "training" / "velodyne")
    result = diagnose(run, data_root=root)
    assert "no maps of the ground of cmkd" in result.text() and result.files[2].is_file()


def test_methods_without_maps_have_no_section(make_run: Callable[..., Path]) -> None:
    result = diagnose(make_run())
    assert result.sections[0].maps is None and "of the ground" not in result.text()
    assert "Maps of the ground" not in result.files[0].read_text(encoding="utf-8")


def test_frames_are_chosen_by_rule(make_run: Callable[..., Path]) -> None:
    """The made-up student gains in every frame: gains come first, and by how much they gain."""
    analysis = diagnose(make_run()).sections[0].analysis
    chosen = mapped_frames(analysis)
    assert list(chosen.values()) == ["largest gain", "second largest gain", "third largest gain", "fourth largest gain"]
    flat = replace(analysis, outcome=np.full(len(analysis.objects), OUTCOMES.index("missed")))
    assert mapped_frames(flat) == {f"{frame:06d}": f"{2 + frame} objects" for frame in (5, 4, 3, 2)}
