"""Detectors that look around, before a folder in nuScenes' layout: what an evaluation finds, without annotations."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drives import CANVAS, KEY_FRAMES, small_surround_preset, write_drives
from made_up_runs import made_up_run
from PIL import Image

import distill3d
from distill3d.boxes import NUSCENES_CLASSES, Boxes3D
from distill3d.cli import main
from distill3d.data.nuscenes.dataset import CAMERAS, NuScenesDataset
from distill3d.data.surround import collate_surround
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes_submission import read_submission
from distill3d.evaluate_run import evaluate_stage
from distill3d.model import Model
from distill3d.predict_surround import Choice, predict_surround
from distill3d.train.recipe import Recipe, SurroundDatasetConfig
from distill3d.view.surround_gallery import AHEAD
from distill3d.view.surround_picture import LEGEND_HEIGHT, View, in_places, surround_picture, whole_views

VERSION = "v1.0-synth"
#: Recipe, stage and earlier key frames: cameras alone, a transformer, with the LiDAR's depth, the LiDAR alone, both.
STAGES: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "past": ("tiny_labeldistill", "labeldistill", (1, 3)),
    "bevformer": ("tiny_bevformer", "baseline", (1, 2)),
    "depth": ("tiny_bevformer", "assistant", ()),
    "points": ("tiny_labeldistill", "teacher", ()),
    "fusion": ("tiny_surround_family", "fusion", ()),
    "labels": ("tiny_labeldistill", "label_encoder", ()),
}


@pytest.fixture(scope="module")
def drives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drives(tmp_path_factory.mktemp("drives"))


@pytest.fixture(scope="module")
def bare(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same drives as nuScenes' test set is: no annotations, no splits."""
    root = tmp_path_factory.mktemp("bare") / "nuscenes"
    root.mkdir()
    for part in ("samples", "sweeps"):
        (root / part).symlink_to(drives / part)
    unlike = shutil.ignore_patterns("instance.json", "category.json", "attribute.json")
    shutil.copytree(drives / VERSION, root / "v1.0-test", ignore=unlike)
    (root / "v1.0-test" / "sample_annotation.json").write_text("[]")
    return root


def eager(recipe: Recipe, stage: str, past: tuple[int, ...] = ()) -> Recipe:
    """The recipe with a detector in the stage all of whose answers count, and that looks at earlier key frames."""
    config: Any = recipe.stage(stage).detector
    if past:
        config = replace(config, frames=1 + len(past))
    if hasattr(config, "head"):
        config = replace(config, head=replace(config.head, score_threshold=0.0))
    stages = tuple(replace(s, detector=config) if s.name == stage else s for s in recipe.stages)
    return replace(recipe, stages=stages, dataset=replace(recipe.dataset, past=past, missing_past="current"))


@pytest.fixture(scope="module")
def runs(drives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: made_up_run(folder / name, eager(small_surround_preset(recipe, drives), stage, past), stage)
        for name, (recipe, stage, past) in STAGES.items()
    }


def predicted(run: Path, root: Path, out: Path, **given: Any) -> dict[str, Any]:
    choice = Choice(**{name: given.pop(name) for name in list(given) if hasattr(Choice, name)})
    path = predict_surround(run, root, out, choice, **{"device": "cpu", "draw": False, **given})
    return json.loads(path.read_text())


# --------------------------------------------------------------------------------------------------- what is found


@pytest.mark.parametrize("name", ["past", "bevformer", "depth", "points", "fusion"])
def test_it_is_what_an_evaluation_finds(runs: dict[str, Path], drives: Path, tmp_path: Path, name: str) -> None:
    """Boxes, velocities and attributes, of a scene's start too, which has no past frames."""
    evaluate_stage(runs[name], drives, "val", tmp_path / "eval", "cpu", batch_size=2, progress=False)
    found = predicted(runs[name], drives, tmp_path / "found", split="val", batch_size=2)
    expected = json.loads((tmp_path / "eval" / "predictions" / "submission.json").read_text())
    assert found == expected and len(found["results"]) == KEY_FRAMES
    assert all(found["results"].values())
    assert found["meta"]["use_camera"] == (name != "points")
    assert found["meta"]["use_lidar"] == (name in ("points", "depth", "fusion"))


@pytest.mark.parametrize("name", ["past", "bevformer"])
def test_past_frames_matter(runs: dict[str, Path], drives: Path, name: str) -> None:
    """Otherwise the comparison above would say nothing of them."""
    model = distill3d.load(runs[name], "cpu")
    sample = model.moments(drives, split="val").get(KEY_FRAMES - 1)
    assert sample.images is not None
    blind = replace(sample, images=torch.cat((sample.images[:1], torch.zeros_like(sample.images[1:]))))
    assert not torch.equal(model.predict(sample).boxes.centre, model.predict(blind).boxes.centre)


def test_no_annotation_and_no_split_is_needed(
    runs: dict[str, Path], drives: Path, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labelled = predicted(runs["past"], drives, tmp_path / "labelled")
    main_at = ["predict", str(runs["past"]), str(bare), "--out", str(tmp_path / "bare"), "--device", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*main_at, "--limit", "5"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and out.split() == [str(tmp_path / "bare" / "submission.json")]
    assert "in 5 of 5 samples" in err and "drawings" in err
    found = json.loads((tmp_path / "bare" / "submission.json").read_text())
    assert list(found["results"]) == list(labelled["results"])[:5] and len(labelled["results"]) == 2 * KEY_FRAMES
    for token, boxes in found["results"].items():
        assert boxes == labelled["results"][token]
    names = sorted(path.name for path in (tmp_path / "bare" / "drawings").glob("*.jpg"))
    assert [name.split("_")[-1].removesuffix(".jpg") for name in names] == list(found["results"])
    assert names[1].split("_")[-2] == "002"


def test_which_samples(runs: dict[str, Path], drives: Path, tmp_path: Path) -> None:
    dataset = distill3d.load(runs["points"], "cpu").moments(drives)
    scene, _, count = dataset.place(KEY_FRAMES)
    assert count == KEY_FRAMES and dataset.place(0)[0] != scene
    tokens = dataset.frame_ids[KEY_FRAMES:]
    listed = tmp_path / "listed.txt"
    listed.write_text(f"{tokens[1]}\n{tokens[0]}\n")
    for given, expected in (
        ({"samples": (scene,)}, tokens), ({"samples": (tokens[2], tokens[0])}, [tokens[2], tokens[0]]),
        ({"split": str(listed)}, [tokens[1], tokens[0]]), ({"limit": 3}, dataset.frame_ids[:3]),
        ({"split": "val", "limit": 1}, None),
    ):  # fmt: skip
        found = list(predicted(runs["points"], drives, tmp_path / "found", **given)["results"])
        assert found == expected if expected else len(found) == 1


def test_a_score_leaves_boxes_out(runs: dict[str, Path], drives: Path, tmp_path: Path) -> None:
    everything = predicted(runs["points"], drives, tmp_path / "all", limit=1)["results"]
    (token,) = everything
    scores = [box["detection_score"] for box in everything[token]]
    least = scores[len(scores) // 2]
    some = predicted(runs["points"], drives, tmp_path / "some", limit=1, least_score=least)["results"][token]
    assert some == [box for box in everything[token] if box["detection_score"] >= least] and len(some) < len(scores)
    boxes = read_submission(tmp_path / "some" / "submission.json")
    assert boxes.samples == (token,) and len(boxes) == len(some)


def test_samples_are_read_as_they_are_needed(
    runs: dict[str, Path], drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    waiting: list[int] = []
    get, detect = NuScenesDataset.get, Model.detect_around

    def reading(self: NuScenesDataset, index: int, generator: Any = None) -> Any:
        read.append(index)
        return get(self, index, generator)

    def detecting(self: Model, *given: Any) -> Any:
        waiting.append(len(read) - 2 * len(waiting))
        return detect(self, *given)

    monkeypatch.setattr(NuScenesDataset, "get", reading)
    monkeypatch.setattr(Model, "detect_around", detecting)
    predicted(runs["points"], drives, tmp_path, batch_size=2)
    assert waiting == [2] * KEY_FRAMES


def test_it_looks_at_the_rig_of_its_training_or_as_told(
    runs: dict[str, Path], drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the card says of the weights, whatever the recipe beside it says by now."""
    three = ("CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT")
    recipe = eager(small_surround_preset("tiny_labeldistill", drives), "baseline")
    assert isinstance(recipe.dataset, SurroundDatasetConfig)
    run = made_up_run(tmp_path / "run", recipe, "baseline", cameras=list(three))
    asked: dict[str, Any] = {"limit": 1, "progress": True}
    own, named, six = (
        predicted(run, drives, tmp_path / name, cameras=cameras, **asked)
        for name, cameras in {"own": (), "named": three, "six": CAMERAS}.items()
    )
    assert own == named != six
    assert capsys.readouterr().err.count("note: ") == 1
    model = distill3d.load(run, "cpu")
    moments = model.moments(drives, cameras=("CAM_FRONT",))
    assert moments.cameras == ("CAM_FRONT",) and model.moments(drives).cameras == three
    found = model.predict(moments.get(0))
    assert found.moment.cameras == ("CAM_FRONT",) and found.draw().width > 0
    coded = distill3d.load(runs["bevformer"], "cpu")
    moment = coded.moments(drives).get(0)
    with pytest.raises(UserError, match="has a code for each of the cameras"):
        coded.predict(replace(moment, cameras=moment.cameras[::-1]))


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["past", "drives", "drives"], ["give one folder in nuScenes' layout"]),
        (["past"], ["give one folder"]),
        (["past", "drives/samples"], ["v1.0-synth: no such folder, expected nuScenes' tables"]),
        (["past", "nowhere"], ["nowhere: is no folder"]),
        (["past", "drives", "--calib", "x.txt"], ["--calib is for pictures"]),
        (["past", "drives", "--intrinsics", "9,9,9,9"], ["--intrinsics is for pictures"]),
        (["past", "drives", "--version", "v1.0-mini"], ["v1.0-mini: no such folder"]),
        (["past", "drives", "--split", "dusk"], ["there is no split 'dusk'"]),
        (["past", "drives", "--split", "val", "--samples", "x"], ["either --split or --samples"]),
        (["past", "drives", "--samples", "x"], ["'x' is neither a scene nor a sample"]),
        (["labels", "drives"], ["looks at labels"]),
        (["past", "drives", "--cameras", "CAM_ROOF"], ["has no camera CAM_ROOF, those there are"]),
        (["bevformer", "drives", "--cameras", "CAM_BACK"], ["has a code for each of the cameras CAM_FRONT_LEFT, "]),
        (["--model", "streets", "drives", "--cameras", "CAM_BACK"], ["--cameras is for surround views"]),
        (["drives", "drives"], ["no model given"]),
        (["--model", "streets", "drives", "--intrinsics", "9,9,9,9", "--split", "val"], ["--split is for surround"]),
    ],
)
def test_one_sentence(
    runs: dict[str, Path], drives: Path, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str],
    words: list[str],
) -> None:  # fmt: skip
    places = {"drives": drives, "drives/samples": drives / "samples", **runs}
    given = [str(places.get(word, word)) for word in arguments]
    with pytest.raises(SystemExit) as ended:
        main(["predict", *given, "--out", str(tmp_path / "out"), "--device", "cpu"])
    _, err = capsys.readouterr()
    assert ended.value.code == 2 and err.count("\n") == 1 and all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["past", "points"])
def test_absent_files_are_named_before_anything_is_computed(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = write_drives(tmp_path / "drives")
    channel = "CAM_BACK" if name == "past" else "LIDAR_TOP"
    lost = sorted((root / "samples" / channel).iterdir())[:2]
    for path in lost:
        path.unlink()
    with pytest.raises(UserError, match=f"no such file, .* of {channel}; 2 files of {channel} are absent") as error:
        predicted(runs[name], root, tmp_path / "out")
    assert str(lost[0]) in str(error.value) and not (tmp_path / "out").exists()
    if name == "points":  # a folder of scans alone: the drawing is the ground's
        shutil.rmtree(root / "samples" / "CAM_BACK")
        last = distill3d.load(runs[name], "cpu").moments(root).frame_ids[-1]
        predicted(runs[name], root, tmp_path / "out", samples=(last,), draw=True)
        (drawing,) = (tmp_path / "out" / "drawings").glob("*.jpg")
        with Image.open(drawing) as picture:
            assert picture.width < 2 * picture.height


def test_a_users_file_stays(runs: dict[str, Path], drives: Path, bare: Path, tmp_path: Path) -> None:
    predicted(runs["points"], drives, tmp_path / "out", limit=1, draw=True)
    predicted(runs["points"], drives, tmp_path / "out", limit=2, draw=True)  # its own may be replaced
    with pytest.raises(UserError, match=r"submission\.json: is the result of .*v1\.0-synth"):
        predicted(runs["points"], bare, tmp_path / "out", limit=1)
    drawing = min((tmp_path / "out" / "drawings").glob("*.jpg"))
    drawing.write_bytes(b"mine")
    before = (tmp_path / "out" / "submission.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="was not written by distill3d"):
        predicted(runs["points"], drives, tmp_path / "out", limit=1, draw=True)
    assert drawing.read_bytes() == b"mine" and (tmp_path / "out" / "submission.json").stat().st_mtime_ns == before


def test_tables_are_chosen_where_there_are_several(runs: dict[str, Path], bare: Path, tmp_path: Path) -> None:
    root = tmp_path / "several"
    root.mkdir()
    for part in ("samples", "sweeps"):
        (root / part).symlink_to(bare / part)
    for version in ("v1.0-test", "v1.0-other"):
        shutil.copytree(bare / "v1.0-test", root / version)
    with pytest.raises(UserError, match="holds the tables v1.0-other, v1.0-test, and no v1.0-synth"):
        predicted(runs["points"], root, tmp_path / "out")
    assert len(predicted(runs["points"], root, tmp_path / "out", version="v1.0-test", limit=1)["results"]) == 1


def test_names_of_scenes_lead_nowhere(runs: dict[str, Path], bare: Path, tmp_path: Path) -> None:
    """A drawing is called by the scene's name, which a hostile folder may have chosen."""
    root = tmp_path / "hostile"
    root.mkdir()
    for part in ("samples", "sweeps"):
        (root / part).symlink_to(bare / part)
    shutil.copytree(bare / "v1.0-test", root / "v1.0-test")
    table = root / "v1.0-test" / "scene.json"
    scenes = json.loads(table.read_text())
    table.write_text(json.dumps([{**scene, "name": f"../../{scene['name']}"} for scene in scenes]))
    with pytest.raises(UserError, match="cannot name a folder"):
        predicted(runs["points"], root, tmp_path / "out", limit=1, draw=True)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- from Python


def test_samples_and_batches(runs: dict[str, Path], drives: Path, tmp_path: Path) -> None:
    model = distill3d.load(runs["past"], "cpu")
    moments = model.moments(drives, split="val")
    samples = [moments.get(0), moments.get(1)]
    found = model.predict(samples[0])
    several = model.predict(samples)
    batch = model.predict(collate_surround(samples))
    assert [len(one) for one in several] == [len(one) for one in batch] and len(batch) == 2
    assert torch.equal(several[0].boxes.centre, found.boxes.centre)
    torch.testing.assert_close(batch[1].boxes.score, several[1].boxes.score, rtol=1e-4, atol=1e-5)
    assert model.predict([]) == []
    boxes = list(found)
    assert boxes[0].name == found.names[0] == found.to_dict()[0]["name"] and boxes[0].name in NUSCENES_CLASSES
    assert json.loads(json.dumps(found.to_dict()))[0]["score"] == boxes[0].score
    assert boxes[0].centre == tuple(found.boxes.centre[0].tolist()) and boxes[0].velocity is not None
    assert all(a.score >= b.score for a, b in zip(boxes, boxes[1:], strict=False))
    least = boxes[len(boxes) // 2].score
    assert 0 < len(model.predict(samples[0], least_score=least)) < len(found)
    written = predicted(runs["past"], drives, tmp_path, split="val")["results"]
    assert json.loads(json.dumps(found.to_nuscenes())) == written[found.moment.frame_id]
    drawn = found.draw(tmp_path / "moment.png", least_score=0.0)
    with Image.open(tmp_path / "moment.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(drawn))
    assert "looks around by rgb" in repr(model) and model.surround


def test_what_does_not_fit_is_refused(runs: dict[str, Path], drives: Path) -> None:
    model: Any = distill3d.load(runs["past"], "cpu")
    sample = model.moments(drives).get(0)
    with pytest.raises(UserError, match=r"looks at surround views: expected a sample of model\.moments"):
        model.predict("street.png", (93.0, 93.0, 48.0, 24.0))
    with pytest.raises(UserError, match="which has its own"):
        model.predict(sample, (93.0, 93.0, 48.0, 24.0))
    with pytest.raises(UserError, match="has no images, the model looks at rgb"):
        model.predict(replace(sample, images=None))
    with pytest.raises(UserError, match="has no points, the model looks at points"):
        distill3d.load(runs["points"], "cpu").predict(sample)
    pictures: Any = distill3d.load("streets", "cpu")
    with pytest.raises(UserError, match="looks at pictures of one camera: expected a picture, not a SurroundSample"):
        pictures.predict(sample)
    with pytest.raises(UserError, match="looks at pictures of one camera"):
        pictures.moments(drives)
    with pytest.raises(UserError, match="predict of pictures needs their camera"):
        pictures.predict("street.png")


# ------------------------------------------------------------------------------------------------------- the drawing


def box_at(x: float, y: float, score: float, label: int = 0) -> Boxes3D:
    return Boxes3D(
        torch.tensor([[x, y, 0.8]]), torch.tensor([[4.0, 1.8, 1.6]]), torch.zeros(1), torch.tensor([label]), "ego",
        score=torch.tensor([score]),
    )  # fmt: skip


def shown(drives: Path, run: Path) -> tuple[list[View], Any]:
    dataset = distill3d.load(run, "cpu").moments(drives)
    moment = dataset.get(0)
    grey = [Image.new("RGB", picture.size, (128, 128, 128)) for picture in dataset.pictures(0)]
    assert all(picture.size == CANVAS for picture in dataset.pictures(0))
    return whole_views(moment, grey, dataset.cameras), moment


def painted(picture: Image.Image) -> np.ndarray:
    """Where there is neither a shade of grey nor the plates' blue-black: mask (h, w)."""
    pixels = np.asarray(picture).astype(int)
    return pixels.max(-1) - pixels.min(-1) > 60


def test_cameras_stand_in_their_places(drives: Path, runs: dict[str, Path]) -> None:
    views, _ = shown(drives, runs["past"])
    places = [[view.name for view in row] for row in in_places(views[::-1])]
    assert places == [list(CAMERAS[:3]), list(CAMERAS[3:])]
    assert [len(row) for row in in_places(views[:2])] == [2] and in_places([]) == []


def test_boxes_show_where_they_are(drives: Path, runs: dict[str, Path]) -> None:
    """One ahead is in the picture in the middle of the upper row, and above the middle of the ground."""
    views, _ = shown(drives, runs["past"])
    empty = surround_picture(views, None, box_at(10, 0, 0.1), NUSCENES_CLASSES, 0.2, "mean_camera")
    ahead = surround_picture(views, None, box_at(10, 0, 0.9), NUSCENES_CLASSES, 0.2, "mean_camera")
    behind = surround_picture(views, None, box_at(-10, 0, 0.9), NUSCENES_CLASSES, 0.2, "mean_camera")
    assert not painted(empty).any()
    cameras_end, side = ahead.width - 670, 640
    for picture, upper in ((ahead, True), (behind, False)):
        rows, columns = np.nonzero(painted(picture)[:650, :cameras_end])
        assert ((rows < 330) == upper).all() and (columns > side).all() and (columns < 2 * side + 20).all()
        rows, columns = np.nonzero(painted(picture)[:650, cameras_end:])
        assert ((rows < 330) == upper).all() and abs(columns.mean() - 330) < 10


def test_a_narrow_drawings_foot_has_several_lines() -> None:
    """Where there are no pictures, all classes and a long title stand below one another."""
    boxes = box_at(10, 0, 0.9)
    count = len(NUSCENES_CLASSES)
    every = replace(boxes[torch.zeros(count, dtype=torch.long)], label=torch.arange(count))
    title = "scene-0061, key frame 1 of 40, sample ca9a282c9e77460f8360f564131a8af5"
    narrow = surround_picture([], None, every, NUSCENES_CLASSES, 0.2, "mean_camera", title)
    one = surround_picture([], None, boxes, NUSCENES_CLASSES, 0.2, "mean_camera")
    assert narrow.width == one.width and narrow.height >= one.height + 3 * LEGEND_HEIGHT
    foot = np.asarray(narrow)[one.height - LEGEND_HEIGHT :]
    assert (foot[:, -4:] == 255).all() and all((row < 128).any() for row in np.split(foot, len(foot) // LEGEND_HEIGHT))


def test_less_sure_boxes_are_paler_from_above(drives: Path, runs: dict[str, Path]) -> None:
    strongest = []
    for score in (0.9, 0.4, 0.25):
        picture = surround_picture([], None, box_at(10, 0, score), NUSCENES_CLASSES, 0.2, "mean_camera")
        pixels = np.asarray(picture)[:600].astype(int)
        strongest.append((pixels.max(-1) - pixels.min(-1)).max())
    assert strongest[0] > strongest[1] > strongest[2] > 0


def test_a_lidars_own_frame_is_drawn_forward_up(drives: Path, runs: dict[str, Path]) -> None:
    views, _ = shown(drives, runs["past"])
    to_lidar = torch.linalg.inv(AHEAD)
    turned = [replace(view, to_ego=to_lidar @ view.to_ego) for view in views]
    box = box_at(0.0, 10.0, 0.9)  # x to the right, y ahead
    own = surround_picture(
        turned, torch.tensor([[1.0, 9.0, 0.5]]), replace(box, yaw=torch.tensor([torch.pi / 2])), NUSCENES_CLASSES, 0.2,
        "lidar_sensor",
    )  # fmt: skip
    expected = surround_picture(
        views, torch.tensor([[9.0, -1.0, 0.5]]), box_at(10.0, 0.0, 0.9), NUSCENES_CLASSES, 0.2, "mean_camera"
    )
    difference = np.abs(np.asarray(own).astype(int) - np.asarray(expected).astype(int))
    assert (difference > 40).mean() < 1e-4
