"""Recordings for the rerun viewer: all lies where the data set has it, and what cannot be recorded is said."""

import io
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rerun
import torch
import yaml
from PIL import Image
from surround_run import STAGES, open_drive, write_predictions

import distill3d.cli as cli
from distill3d import record_run
from distill3d.camera import Camera
from distill3d.data.nuscenes.dataset import CAMERAS
from distill3d.detectors import build_detector
from distill3d.detectors.base import BevGeometry
from distill3d.errors import UserError
from distill3d.recipes import get_recipe
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.view import recording
from distill3d.view.bev_maps import GroundMap
from distill3d.view.gallery import cast, open_dataset, true_boxes
from distill3d.view.pieces import shown
from distill3d.view.runs import read_runs
from distill3d.view.surround import MEASURES
from distill3d.view.surround_gallery import moments, trained_classes

KITTI_FRAMES = ("000002", "000000")


def read_back(path: Path) -> dict[str, dict[str, list]]:
    """Of each entity its columns, in the order of the frames."""
    entities: dict[str, dict[str, list]] = {}
    for chunk in rerun.chunk.RrdReader(str(path)).stream():
        columns = chunk.to_record_batch().to_pydict()
        there = entities.setdefault(chunk.entity_path, {})
        for name, values in columns.items():
            there.setdefault(name, []).extend(values)
    for columns in entities.values():
        if "frame" in columns:
            order = np.argsort(columns["frame"])
            columns |= {name: [values[i] for i in order] for name, values in columns.items()}
    return entities


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


# ----------------------------------------------------------------------------------------------------- what is recorded


def test_streets_are_read_back(make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Through the recorded camera every box has the corners in its picture that the data set's own camera gives."""
    run, path = make_run(), tmp_path / "out" / "run.rrd"
    code, out, err = call(capsys, "record", run, "--out", path, "--names", *KITTI_FRAMES, "--score", 0.87)
    assert code == 0, err
    assert f"{path}: 2 frames" in out and "teacher, baseline, student" in out
    there = read_back(path)
    stage = read_runs([run])[0]
    dataset = open_dataset(stage)
    for number, frame in enumerate(KITTI_FRAMES):
        sample = dataset.get(dataset.frame_ids.index(frame))
        truth = true_boxes(sample, stage.rules, ["car"])
        found = there["/world/labels"]
        assert found["class"][number] == ["Car"] * len(truth)
        corners, _ = sample.camera.project(truth.corners().double().flatten(0, 1))
        expected = corners.view(len(truth), 8, 2).numpy()
        # In any order: the nearest of the eight, and each of them the nearest of one.
        apart = np.linalg.norm(pictured(there, number)[:, :, None] - expected[:, None], axis=-1)
        assert apart.min(1).max() < 0.05 and apart.min(2).max() < 0.05
        points = np.array(there["/world/points"]["Points3D:positions"][number])
        assert len(points) == len(sample.points) > 0
        raw = np.fromfile(dataset.folder / "velodyne" / f"{frame}.bin", dtype=np.float32).reshape(-1, 4)
        nearest = np.abs(points[:20, None] - raw[None, :, :3]).max(-1).min(1)
        assert nearest.max() < 1e-3  # the scan's own places
        with Image.open(io.BytesIO(bytes(there["/world/cameras/image_2"]["EncodedImage:blob"][number][0]))) as picture:
            shown = np.asarray(picture.convert("RGB"), dtype=float).mean(-1)
        # Noise: a JPEG keeps most of it; another picture, or this one moved, would have none of it.
        assert np.corrcoef(shown.ravel(), sample.image.mean(0).numpy().ravel())[0, 1] > 0.5
        assert frame in there["/frame"]["TextDocument:text"][number][0]
    for name in ("teacher", "baseline", "student"):
        scores = [score for scores in there[f"/world/stages/{name}"]["score"] for score in scores]
        assert scores and min(scores) >= 0.87
    front = np.array(there["/world/labels/front"]["LineStrips3D:strips"][0])
    ahead = front[:, 1] - front[:, 0]  # the cars drive away
    assert (ahead[:, 0] > 1.9).all() and np.abs(ahead[:, 1:]).max() < 1e-3


def pictured(there: dict[str, dict[str, list]], number: int) -> np.ndarray:
    """The corners of the recorded labels in the picture (px)."""
    boxes, camera = there["/world/labels"], there["/world/cameras/image_2"]
    centres, halves, quaternions = (
        np.array(boxes[f"Boxes3D:{name}"][number]) for name in ("centers", "half_sizes", "quaternions")
    )
    turns = recording.Rotation.from_quat(quaternions).as_matrix()
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    corners = centres[:, None] + np.einsum("nij,nkj->nki", turns, signs * halves[:, None])
    pose = np.array(camera["Transform3D:mat3x3"][number][0]).reshape(3, 3).T  # column by column
    place = np.array(camera["Transform3D:translation"][number][0])
    matrix = np.array(camera["Pinhole:image_from_camera"][number][0]).reshape(3, 3).T
    pixels = (corners - place) @ pose @ matrix.T
    return pixels[..., :2] / pixels[..., 2:]


def test_a_camera_beside_the_frame_of_its_labels() -> None:
    """KITTI's coloured camera stands beside the one whose frame labels are in: P = K [I | t]."""
    matrix = torch.tensor(((700.0, 0.0, 600.0, 45.0), (0.0, 700.0, 170.0, -0.3), (0.0, 0.0, 1.0, 0.005))).double()
    points = torch.tensor([(1.0, 0.5, 8.0), (-3.0, 1.5, 30.0)], dtype=torch.float64)
    to_world = recording.LEVEL_CAMERA
    view = recording._view(torch.zeros(3, 4, 4), Camera(matrix), to_world)
    seen = torch.linalg.inv(view.pose) @ to_world @ torch.cat((points, torch.ones(2, 1)), dim=1).T
    pixels = (view.intrinsics @ seen[:3]).T
    expected, _ = Camera(matrix).project(points, "homogeneous")
    torch.testing.assert_close(pixels[:, :2] / pixels[:, 2:], expected)


def test_frames_without_boxes(make_run: Callable[..., Path], data_root: Path, tmp_path: Path) -> None:
    """Nothing was labelled or found in the first frame, and nothing is left of it in the second."""
    root, run = shutil.copytree(data_root, tmp_path / "streets"), make_run()
    (root / "training" / "label_2" / f"{KITTI_FRAMES[0]}.txt").write_text("")
    (run / "student" / "predictions" / f"{KITTI_FRAMES[0]}.txt").write_text("")
    for order in (KITTI_FRAMES, KITTI_FRAMES[::-1]):
        record_run(run, tmp_path / "run.rrd", names=order, data_root=root)
        there = read_back(tmp_path / "run.rrd")
        for entity in ("/world/labels", "/world/stages/student"):
            for column in ("class", "Boxes3D:centers"):
                counts = dict(zip(order, map(len, there[entity][column]), strict=True))
                assert counts[KITTI_FRAMES[0]] == 0 < counts[KITTI_FRAMES[1]]
        scores = dict(zip(order, there["/world/stages/student"]["score"], strict=True))
        assert scores[KITTI_FRAMES[0]] == [] != scores[KITTI_FRAMES[1]]


def test_frames_without_scans(make_run: Callable[..., Path], data_root: Path, tmp_path: Path) -> None:
    """They lie as before, with no points; the viewer is told so, or it would go on to show the frame before."""
    root = shutil.copytree(data_root, tmp_path / "streets")
    (root / "training" / "velodyne" / f"{KITTI_FRAMES[1]}.bin").unlink()
    record_run(make_run(), tmp_path / "run.rrd", names=KITTI_FRAMES, data_root=root)
    counts = [len(points) for points in read_back(tmp_path / "run.rrd")["/world/points"]["Points3D:positions"]]
    assert counts[0] > 0 and counts[1] == 0


def test_surround_views_are_read_back(surround_original: Path, tmp_path: Path) -> None:
    done = record_run(surround_original, tmp_path / "run.rrd", frames=1)
    there = read_back(done.path)
    assert {f"/world/cameras/{name}" for name in CAMERAS} == {e for e in there if e.startswith("/world/cameras/")}
    assert done.stages == tuple(STAGES) and all(f"/world/stages/{name}" in there for name in STAGES)
    labels, teacher = there["/world/labels"], there["/world/stages/teacher"]
    far = np.linalg.norm(
        np.array(teacher["Boxes3D:centers"][0])[:, None] - np.array(labels["Boxes3D:centers"][0])[None], axis=-1
    ).min(1)
    assert len(far) and np.median(far) == pytest.approx(STAGES["teacher"].miss, abs=0.02)


def test_frames_are_those_of_the_gallery(surround_run: Path, drive_root: Path, tmp_path: Path) -> None:
    """They tell of the best student, whatever stands after it."""
    drive = open_drive(drive_root, images=False)
    for name, miss in (("lidar", 0.01), ("baseline", 0.4), ("labeldistill", 3.0)):
        write_predictions(surround_run / name, drive, miss, 1)
    parts = cast(shown(read_runs([surround_run])), MEASURES.first.of)
    told = {f"**{moment.title}**: {moment.reason}" for moment in moments(parts, trained_classes(parts), 4)}
    assert any("ahead" in text for text in told) and not any("behind" in text for text in told)
    texts = read_back(record_run(surround_run, tmp_path / "run.rrd", frames=4).path)["/frame"]["TextDocument:text"]
    assert {text[0].split("\n")[0] for text in texts} == told


def test_maps_of_surround_views(surround_run: Path, tmp_path: Path) -> None:
    """A network that looks at the ground is asked with the pictures of the split that it was evaluated on."""
    torch.manual_seed(0)
    config = get_recipe("tiny_surround").stage("baseline").detector
    recipe = yaml.safe_load((surround_run / "recipe.yaml").read_text())
    recipe["dataset"]["canvas"] = [64, 32]  # a detector's, a multiple of its strides
    (surround_run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    folder = surround_run / "baseline"
    card = json.loads((folder / "card.json").read_text())
    card |= {"detector": "bevdepth", "config": to_plain(config)}
    save_weights(folder, build_detector(config).state_dict(), card)
    done = record_run(surround_run, tmp_path / "run.rrd", frames=1, stages=("baseline",), device="cpu")
    assert done.lacks == ()
    maps = {entity for entity in read_back(done.path) if entity.startswith("/world/maps/")}
    assert maps == {"/world/maps/baseline/bev", "/world/maps/baseline/heatmap"}


@pytest.mark.parametrize("cell", [(0, 0), (3, 1), (7, 3)])
def test_a_bright_cell_lies_in_its_place(cell: tuple[int, int]) -> None:
    """Rows of a map run along y, those of the recorded picture against it."""
    geometry = BevGeometry((4.0, -8.0, 12.0, 8.0), 2.0, "lidar")
    values = np.zeros((8, 4), np.float32)
    values[cell] = 1.0
    grid: Any = recording._grid(rerun, GroundMap(values, geometry), -1.5)
    pixels = np.frombuffer(bytes(grid.data.as_arrow_array().to_pylist()[0]), np.uint8).reshape(8, 4, 3)
    row, column = np.unravel_index(pixels.sum(-1, dtype=int).argmax(), (8, 4))
    x0, y0, height = grid.translation.as_arrow_array().to_pylist()[0]
    assert height == -1.5
    where = (x0 + (column + 0.5) * 2.0, y0 + (8 - row - 0.5) * 2.0)
    assert where == (4.0 + (cell[1] + 0.5) * 2.0, -8.0 + (cell[0] + 0.5) * 2.0)


# ------------------------------------------------------------------------------------------------------ what is refused


def test_without_the_extra(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    code, _, err = call(capsys, "record", make_run(), "--out", tmp_path / "run.rrd")
    assert code == 2 and err == "distill3d: recordings need rerun-sdk: pip install 'distill3d[rerun]'\n"
    assert not (tmp_path / "run.rrd").exists()


def unfinished(run: Path) -> None:
    (run / "student" / "evaluation.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "spoil", "words"),
    [
        (["--out", "run.html"], None, ["run.html", ".rrd"]),
        (["--names", "000099"], None, ["'000099'", "split 'val'"]),
        (["--stages", "studnet"], None, ["'studnet'", "teacher, baseline, student"]),
        (["--stages", "student"], unfinished, ["student", "not finished"]),
        (["--data-root", "nowhere"], None, ["nowhere"]),
        (["--frames", "0"], None, ["frames"]),
        (["--device", "abacus"], None, ["abacus"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_mistakes_in_recordings(
    arguments: list[str], spoil: Callable | None, words: list[str], make_run: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = make_run()
    if spoil is not None:
        spoil(run)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "record", run, *arguments)
    assert code == 2 and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_not_written_here_stays(make_run: Callable[..., Path], tmp_path: Path) -> None:
    """A recording of ours is replaced, anybody else's is not."""
    path, run = tmp_path / "run.rrd", make_run()
    record_run(run, path, names=KITTI_FRAMES[:1])
    record_run(run, path, names=KITTI_FRAMES)
    assert len(read_back(path)["/frame"]["frame"]) == 2
    path.write_bytes(b"somebody's")
    with pytest.raises(UserError, match="was not written by distill3d"):
        record_run(run, path)
    assert path.read_bytes() == b"somebody's"


def test_what_is_left_out_is_said(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run()
    unfinished(run)
    card = json.loads((run / "teacher" / "card.json").read_text())
    card |= {"detector": "caddn", "config": {}}  # looks at the ground, but has no weights
    (run / "teacher" / "card.json").write_text(json.dumps(card))
    done = record_run(run, tmp_path / "run.rrd", frames=1)
    assert done.stages == ("teacher", "baseline") and len(done.frames) == 1
    text = done.text()
    assert "student is not finished or has no predictions: it is left out." in text
    assert "There are no maps of the ground of teacher" in text and "1 frame " in text
