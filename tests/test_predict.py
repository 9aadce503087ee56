"""Pictures of any camera: what a detector says depends on the scene, not on how many pixels it was taken with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streets import TRUNK, small_bev_detector

from distill3d.camera import Camera
from distill3d.detectors import bevdepth, build_detector, caddn, pointpillars, second
from distill3d.detectors.base import Detector
from distill3d.detectors.monodle import HEAT_CLASSES
from distill3d.errors import UserError
from distill3d.picture import predict_pictures
from distill3d.predict import pictures_of, predict_images, refuse_no_model, result_names
from distill3d.recipes.synthetic import TINY
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights

CARD = {"canvas": (320, 96), "focal": 186.0, "file_focal": 721.5}


@pytest.mark.parametrize("name", TINY)
def test_pixels_do_not_matter(name: str) -> None:
    """The same view with two, three times the resolution; a grey picture, which looks the same at any."""
    torch.manual_seed(0)
    detector = build_detector(replace(TINY[name], score_threshold=0.0, classes=HEAT_CLASSES)).eval()
    found = []
    for size in (1, 2, 3):
        camera = Camera.from_intrinsics(93.0 * size, 93.0 * size, 80.0 * size, 20.0 * size)
        found += predict_pictures(detector, CARD, [(torch.full((3, 64 * size, 160 * size), 0.5), camera)])
    assert len(found[0])
    for size, boxes in zip((2, 3), found[1:], strict=True):
        for field in ("centre", "size", "yaw", "score"):
            ours, theirs = getattr(boxes, field), getattr(found[0], field)
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        torch.testing.assert_close(boxes.box2d, size * found[0].box2d, rtol=1e-3, atol=0.1 * size)


# ------------------------------------------------------------------------------------------- the bird's-eye-view family

#: A LiDAR 1.7 m above the road, and how KITTI's cameras look from there: its x is the camera's z, its y to the left.
TO_CAMERA = [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, -0.1], [1.0, 0.0, 0.0, -0.3], [0.0, 0.0, 0.0, 1.0]]
PLACEMENTS = {
    "fit": {**CARD, "placement": "fit", "lidar_to_camera": TO_CAMERA},
    "corner": {**CARD, "file_focal": CARD["focal"], "placement": "corner", "lidar_to_camera": TO_CAMERA},
}


def caddn_detector(**fields: object) -> Detector:
    """A small one with fresh weights, all of whose answers count."""
    torch.manual_seed(0)
    config = small_bev_detector(caddn.tiny(**fields))
    return build_detector(replace(config, head=replace(config.head, score_threshold=0.0, max_detections=20))).eval()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_pixels_do_not_matter_to_caddn(placement: str) -> None:
    detector, found = caddn_detector(), []
    for size in (1, 2, 3):
        camera = Camera.from_intrinsics(93.0 * size, 93.0 * size, 80.0 * size, 20.0 * size)
        picture = torch.full((3, 64 * size, 160 * size), 0.5)
        found += predict_pictures(detector, PLACEMENTS[placement], [(picture, camera)])
    assert len(found[0])
    for size, boxes in zip((2, 3), found[1:], strict=True):
        for field in ("centre", "size", "yaw", "score"):
            torch.testing.assert_close(getattr(boxes, field), getattr(found[0], field), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(boxes.box2d, size * found[0].box2d, rtol=1e-3, atol=0.1 * size)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (96, 320, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def checkpoint(folder: Path, detector: Detector, placement: str) -> Path:
    card = {"detector": detector.name, "config": to_plain(detector.config), **PLACEMENTS[placement]}
    save_weights(folder, detector.state_dict(), card)
    return folder


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("fields", [{}, {"spatial_alignment": True, "fusion": "ffm"}], ids=["cmkd", "monotakd"])
def test_caddn_predicts_with_either_camera(tmp_path: Path, picture: Path, placement: str, fields: dict) -> None:
    """A calibration file and bare intrinsics of one camera give one answer; nothing is asked of a LiDAR."""
    model = checkpoint(tmp_path / "model", caddn_detector(**fields), placement)
    calib = tmp_path / "calib.txt"
    calib.write_text(
        "P2: 186 0 160 0 0 186 40 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )
    results = []
    for camera in ((calib, None), (None, "186,186,160,40")):
        out = tmp_path / f"out{len(results)}"
        (drawing,) = predict_images(model, (picture,), *camera, out)
        assert drawing == out / "street.png" and drawing.is_file()
        results.append((out / "street.txt").read_text())
    assert results[0] == results[1] and results[0].startswith("Car ")
    assert all(float(line.split()[13]) > 0 for line in results[0].splitlines())  # in front of the camera


@pytest.mark.parametrize(
    ("detector", "looks_at"),
    [
        (lambda: caddn_detector(input="rgb+gt_depth"), "rgb+gt_depth"),
        (lambda: build_detector(small_bev_detector(second.tiny())), "points"),
        (lambda: build_detector(pointpillars.tiny()), "points"),
    ],
    ids=["assistant", "second", "pointpillars"],
)
def test_detectors_that_need_more_than_a_picture_are_refused(
    tmp_path: Path, picture: Path, detector: Callable[[], Detector], looks_at: str
) -> None:
    model = checkpoint(tmp_path / "model", detector(), "fit")
    with pytest.raises(UserError, match="looks at pictures alone") as error:
        list(predict_images(model, (picture,), None, "186,186,160,40", tmp_path / "out"))
    assert f"{model} looks at {looks_at}," in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_detectors_of_surround_views_are_refused(tmp_path: Path, picture: Path) -> None:
    detector = build_detector(bevdepth.tiny())
    card = {"detector": detector.name, "config": to_plain(detector.config), "version": "v1.0-synth"}
    save_weights(tmp_path / "model", detector.state_dict(), card)
    with pytest.raises(UserError, match=r"looks at surround views, .* as one folder in nuScenes' layout") as error:
        list(predict_images(tmp_path / "model", (picture,), None, "186,186,160,40", tmp_path / "out"))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- where results go


@pytest.mark.parametrize(
    ("pictures", "names"),
    [
        (["a/x.png"], ["x"]),
        (["a/x.png", "b/y.png", "a/x.png", "a/../a/x.png"], ["x", "y"]),
        (["a/x.png", "b/x.png", "b/y.png"], ["a__x", "b__x", "y"]),
        (["1/a/x.png", "2/a/x.png", "2/b/x.png"], ["1__a__x", "2__a__x", "b__x"]),
        (["a/x.png", "a/x.jpg", "a/y.png"], ["x_png", "x_jpg", "y"]),
        (["a/x.png", "b/x.png", "c/a__x.png"], ["r__a__x", "b__x", "c__a__x"]),
    ],
)
def test_names_of_results_keep_pictures_apart(
    pictures: list[str], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    monkeypatch.chdir(tmp_path / "r")
    assert list(result_names(map(Path, pictures)).values()) == names


@pytest.mark.parametrize("pictures", [["a/x.png", "a/X.png"], ["a/x.png", "a/x.jpg", "a/x_png.png"]])
def test_names_of_results_that_folders_cannot_tell_apart(pictures: list[str]) -> None:
    found = {name.casefold() for name in result_names(map(Path, pictures)).values()}
    assert len(found) == len(pictures) and all("/" not in name for name in found)


def untouched(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("own", ["street.png", "street.txt"])
def test_pictures_and_labels_are_never_replaced(own: str, picture: Path) -> None:
    """Refused before the weights are even looked for."""
    if own == "street.txt":
        (picture.parent / own).write_text("Car 0.00 0 0.1 1 2 30 40 1.5 1.6 3.9 1 1.6 20 0.1\n")
        picture = picture.rename(picture.with_suffix(".jpg"))
    before = untouched(picture.parent)
    with pytest.raises(UserError, match=f"{own}: is there already and was not written by distill3d"):
        list(predict_images(Path("nowhere"), (picture,), None, "186,186,160,40", picture.parent))
    assert untouched(picture.parent) == before


def test_results_of_another_picture_are_not_replaced(picture: Path, tmp_path: Path) -> None:
    stage = checkpoint(tmp_path / "stage", caddn_detector(), "fit")
    other = tmp_path / "other" / "street.png"
    other.parent.mkdir()
    Image.new("RGB", (320, 96)).save(other)
    out = tmp_path / "out"
    for _ in range(2):
        (drawing,) = predict_images(stage, (picture,), None, "186,186,160,40", out)
        assert drawing == out / "street.png"
    before = untouched(out)
    with pytest.raises(UserError, match=f"street.txt: is the result of {picture}"):
        list(predict_images(stage, (other,), None, "186,186,160,40", out))
    assert untouched(out) == before
    both = list(predict_images(stage, (picture, other), None, "186,186,160,40", out))
    assert [path.name for path in both] == [f"{tmp_path.name}__street.png", "other__street.png"]


# ------------------------------------------------------------------------------------------- pictures and their cameras

CAMERA = "186,186,160,40"  # of ``picture``


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small detector with fresh weights, all of whose answers count."""
    torch.manual_seed(0)
    detector = build_detector(replace(TINY["monodle"], score_threshold=0.0, trunk=TRUNK, head_channels=8))
    return checkpoint(tmp_path_factory.mktemp("any") / "model", detector, "fit")


def refused(model: Path, images: tuple[Path, ...], calib: Path | None, intrinsics: str | None, out: Path) -> str:
    """The sentence; nothing is computed or written before it."""
    with pytest.raises(UserError) as error:
        list(predict_images(model, images, calib, intrinsics, out))
    assert not out.exists()
    return str(error.value)


def test_a_calibration_of_the_camera_alone_suffices(model: Path, picture: Path, tmp_path: Path) -> None:
    calib = tmp_path / "p2.txt"
    calib.write_text("P2: 186 0 160 0 0 186 40 0 0 0 1 0\n")
    assert len(list(predict_images(model, (picture,), calib, None, tmp_path / "out"))) == 1
    calib.write_text("P2: 186 20 160 0 0 186 40 0 0 0 1 0\n")
    assert f"{calib}:1: P2 has a skew of 20 px" in refused(model, (picture,), calib, None, tmp_path / "skew")


def test_a_turned_picture_is_its_upright_copy(model: Path, picture: Path, tmp_path: Path) -> None:
    turned, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 8
    Image.open(picture).transpose(Image.Transpose.ROTATE_270).save(turned, exif=exif)
    list(predict_images(model, (picture, turned), None, CAMERA, tmp_path / "out"))
    upright, found = ((tmp_path / "out" / f"{name}.txt").read_text() for name in ("street", "turned"))
    assert upright == found and upright


@pytest.mark.parametrize("factor", [4, 0.5])
def test_pictures_of_another_size_than_the_cameras(model: Path, picture: Path, tmp_path: Path, factor: float) -> None:
    """One of them is enough, and is told of before the first is computed."""
    other, calib = tmp_path / "other.png", tmp_path / "p2.txt"
    image = Image.open(picture)
    image.resize((round(image.width * factor), round(image.height * factor))).save(other)
    calib.write_text("P2: 186 0 160 0 0 186 40 0 0 0 1 0\n")
    for given in ((calib, None), (None, CAMERA)):
        sentence = refused(model, (picture, other), *given, tmp_path / "out")
        assert f"{given[0] or '--intrinsics'}: the principal point (x = 160 px) does not fit an image of " in sentence
        assert sentence.endswith(f"the size of {other}")


@pytest.mark.parametrize(
    ("intrinsics", "words"),
    [
        ("0.58,1.94,0.5,0.42", "look like shares of the picture's size"),
        ("1e-30,1e-30,160,40", "a view of 180 degrees"),
        ("1,1,160,40", "a view of 179 degrees"),
        ("1e308,1e308,160,40", "e-304 degrees across, expected 0.5 to 160"),
        ("186,186,160,1e308", "the principal point (y = 1e+308 px)"),
        ("nan,186,160,40", "expected positive focal lengths and finite numbers"),
        ("186,186,160", "expected four numbers"),
    ],
)
def test_cameras_that_are_none(model: Path, picture: Path, tmp_path: Path, intrinsics: str, words: str) -> None:
    assert words in refused(model, (picture,), None, intrinsics, tmp_path / "out")


def test_what_is_given_is_looked_at_first(model: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "at least one picture" in refused(model, (), None, CAMERA, out)
    assert "absent.png: no such file" in refused(model, (picture, tmp_path / "absent.png"), None, CAMERA, out)
    (tmp_path / "b.png").write_bytes(picture.read_bytes()[:999])
    assert "b.png: cannot be read as an image" in refused(model, (picture, tmp_path / "b.png"), None, CAMERA, out)
    assert "street.png: is a picture, expected a stage folder" in refused(picture, (picture,), None, CAMERA, out)
    for name in ("calib.json", "calib.YAML"):
        (tmp_path / name).write_text("{}")
        assert "give its numbers as --intrinsics" in refused(model, (picture,), tmp_path / name, None, out)
    assert "street.png: is a picture, expected a calibration" in refused(model, (picture,), picture, None, out)
    (tmp_path / "data" / "training" / "image_2").mkdir(parents=True)
    assert refused(model, (tmp_path / "data",), None, CAMERA, out).endswith(
        f"give {tmp_path / 'data' / 'training' / 'image_2'}"
    )
    with pytest.raises(UserError, match="--device is 'gpu'"):
        list(predict_images(model, (picture,), None, CAMERA, out, device="gpu"))


def test_the_end_tells_what_was_found_and_where(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(picture, tmp_path / "b.png")
    out, both = tmp_path / "out", (picture, tmp_path / "b.png")
    list(predict_images(model, both, None, CAMERA, out, draw=False, progress=True))
    found = [len((out / f"{path.stem}.txt").read_text().splitlines()) for path in both]
    told = capsys.readouterr().err.splitlines()[-1]
    assert found[0] > 0 and told == f"{sum(found)} objects in 2 of 2 pictures: {out}/*.txt and, all together, " + str(
        out / "predictions.jsonl"
    )
    list(predict_images(model, both, None, CAMERA, out, 1e6, draw=False, progress=True))
    assert "0 objects in 0 of 2 pictures: " in capsys.readouterr().err


def test_a_folder_of_pictures_is_no_model(model: Path, picture: Path) -> None:
    refuse_no_model(model)
    with pytest.raises(UserError, match="no model given: --model streets"):
        refuse_no_model(picture.parent)


def test_nothing_found_is_said(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for score, said in ((0.0, False), (1e6, True)):
        list(predict_images(model, (picture,), None, CAMERA, tmp_path / "out", score))
        assert ("no object was found" in capsys.readouterr().err) is said


def test_a_wide_view_is_not_enlarged_beyond_all_memory(model: Path, picture: Path, tmp_path: Path) -> None:
    sentence = refused(model, (picture,), None, "30,20,160,48", tmp_path / "out")
    assert sentence.startswith(
        f"{picture}: 320 x 96 px with a focal length of 30 px would be looked at on 1984 x 608 px"
    )


@pytest.mark.parametrize(("size", "focal"), [((1, 64), 60), ((3, 2000), 2000), ((2000, 3), 2000), ((1, 1), 20)])
def test_odd_pictures_are_drawn(model: Path, tmp_path: Path, size: tuple[int, int], focal: float) -> None:
    Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "a.png")
    camera = f"{focal},{focal},{size[0] / 2},{size[1] / 2}"
    (drawing,) = predict_images(model, (tmp_path / "a.png",), None, camera, tmp_path / "out")
    with Image.open(drawing) as image:
        assert max(image.size) < 8000


# ------------------------------------------------------------------------------------------- folders and patterns


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Three pictures of two kinds beside what is none, and a calibration for each."""
    folder, calib = tmp_path / "drive", tmp_path / "calib"
    folder.mkdir(), calib.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, 96, 320, 3), dtype=np.uint8)
    for image, name in zip(pixels, ("b.png", "a.JPG", "c.png"), strict=True):
        Image.fromarray(image).save(folder / name)
        (calib / name).with_suffix(".txt").write_text(f"P2: 186 0 {ord(name[0]) + 60} 0 0 186 40 0 0 0 1 0\n")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_with_a_folder_of_calibrations(model: Path, drive: Path, tmp_path: Path) -> None:
    out, calib = tmp_path / "out", tmp_path / "calib"
    written = list(predict_images(model, (drive,), calib, None, out, draw=False))
    assert [path.name for path in written] == ["a.txt", "b.txt", "c.txt"] and not list(out.glob("*.png"))
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["picture"] for line in lines] == [str(drive / name) for name in ("a.JPG", "b.png", "c.png")]
    for line in lines:
        kitti = (out / f"{line['result']}.txt").read_text().splitlines()
        assert [o["name"] for o in line["objects"]] == [row.split()[0] for row in kitti] and kitti
    alone = tmp_path / "alone"
    list(predict_images(model, (drive / "c.png",), calib / "c.txt", None, alone))
    assert (alone / "c.txt").read_text() == (out / "c.txt").read_text()
    (calib / "b.txt").unlink()
    assert "b.txt: no such file, expected the calibration of" in refused(model, (drive,), calib, None, tmp_path / "no")


@pytest.mark.parametrize("batch_size", [2, 3, 9])
def test_batches_find_what_single_pictures_do(model: Path, drive: Path, tmp_path: Path, batch_size: int) -> None:
    """Also where a picture of another size comes between those of a batch."""
    with Image.open(drive / "b.png") as picture:
        picture.resize((640, 192)).save(drive / "b.png")
    (tmp_path / "calib" / "b.txt").write_text("P2: 372 0 320 0 0 372 80 0 0 0 1 0\n")
    found = []
    for size in (1, batch_size):
        out = tmp_path / f"out{size}"
        written = list(predict_images(model, (drive,), tmp_path / "calib", None, out, batch_size=size))
        assert [path.name for path in written] == ["a.png", "b.png", "c.png"]
        found.append([json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()])
    for alone, together in zip(*found, strict=True):
        assert alone["picture"] == together["picture"] and len(alone["objects"]) == len(together["objects"]) > 0
        for field in ("score", "centre", "box2d"):
            values = [torch.tensor([o[field] for o in line["objects"]]) for line in (alone, together)]
            torch.testing.assert_close(*values, rtol=1e-3, atol=1e-2)


def test_patterns(model: Path, drive: Path, tmp_path: Path) -> None:
    found = pictures_of([drive / "*.png", drive])
    assert [path.name for path in found] == ["b.png", "c.png", "a.JPG", "b.png", "c.png"]
    assert [path.name for path in pictures_of([tmp_path / "**" / "c.*"])] == ["c.txt", "c.png"]
    (drive / "[x].png").write_bytes((drive / "b.png").read_bytes())
    assert pictures_of([drive / "[x].png"]) == [drive / "[x].png"]
    (tmp_path / "empty").mkdir()
    for given, told in ((drive / "*.webp", "no file has a name of this pattern"), (tmp_path / "empty", "no picture")):
        assert told in refused(model, (given,), None, CAMERA, tmp_path / "out")


def test_the_lines_of_others_are_kept(model: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text("mine")
    with pytest.raises(UserError, match="predictions.jsonl: is there already"):
        list(predict_images(model, (picture,), None, CAMERA, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.jsonl"]


def test_a_runs_folder_lists_its_stages(model: Path, picture: Path, tmp_path: Path) -> None:
    assert "holds the stages model, give one of them" in refused(
        model.parent, (picture,), None, CAMERA, tmp_path / "out"
    )
