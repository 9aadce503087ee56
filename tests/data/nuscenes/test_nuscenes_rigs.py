"""Rigs of other than nuScenes' six cameras: what comes out of a folder, what is refused, what ``check`` says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distill3d.data.check import run_check
from distill3d.data.nuscenes.check import check_nuscenes
from distill3d.data.nuscenes.dataset import CAMERAS, NuScenesConfig, NuScenesDataset
from distill3d.data.surround import SurroundSample, collate_surround
from distill3d.errors import UserError
from distill3d.settings import check_settings
from distill3d.synth import SurroundStreetConfig, write_nuscenes
from distill3d.synth.nuscenes_records import VERSION
from distill3d.train.recipe import SurroundDatasetConfig

STREET: dict[str, Any] = {
    "width": 64, "height": 32, "rays_per_pixel_side": 1, "frames_per_scene": 2, "lidar_rate": 2.0, "lidar_step": 3.0,
    "cars": (4, 4), "reach": 15.0, "standing_share": 0.0, "ego_speed": (8.0, 8.0), "image_format": "png",
}  # fmt: skip
ONE, THREE = ("CAM_BACK",), ("CAM_BACK", "CAM_FRONT", "CAM_FRONT_LEFT")
PERMUTED = tuple(CAMERAS[i] for i in (4, 2, 0, 5, 1, 3))
#: A rig whose cameras are not called as nuScenes' are.
OWN = ("LOOK_AHEAD=0,1.7,0,1.5", "LEFT=90,1,0.5,1.5,800")


def drive(folder: Path, **changed: Any) -> Path:
    config = SurroundStreetConfig(**{**STREET, **changed})
    return write_nuscenes(folder, splits={"val": 1}, seed=4, config=config, workers=1, progress=False)


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drive(tmp_path_factory.mktemp("six"))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drive(tmp_path_factory.mktemp("own"), cameras=OWN)


def opened(root: Path, **chosen: Any) -> NuScenesDataset:
    settings = {"version": VERSION, "split": "val", "canvas": (64, 32), "depth": True, "instances": True, "past": (1,)}
    return NuScenesDataset(NuScenesConfig(root=root, in_memory=True, **{**settings, **chosen}))


def without_table_rows(root: Path, channel: str, sample: int) -> None:
    """Makes the picture of a camera at a sample one between key frames, as if it had been lost."""
    path = root / VERSION / "sample_data.json"
    records = json.loads(path.read_text())
    [r for r in records if f"/{channel}/" in r["filename"]][sample]["is_key_frame"] = False
    path.write_text(json.dumps(records))


# ----------------------------------------------------------------------------------------------------------------- read


def test_by_default_the_rig_is_nuscenes(six: Path) -> None:
    sample = opened(six).get(1)
    assert sample.cameras == sample.camera_names == CAMERAS == SurroundDatasetConfig().cameras
    assert sample.images is not None and sample.images.shape[:2] == (2, 6)


@pytest.mark.parametrize("cameras", [ONE, THREE, PERMUTED])
def test_each_camera_comes_out_as_of_all(cameras: tuple[str, ...], six: Path) -> None:
    """In the order asked for, and with its own pictures, depth, masks and poses in the world."""
    every, some = opened(six).get(1), opened(six, cameras=cameras).get(1)
    rows = [CAMERAS.index(name) for name in cameras]
    assert some.cameras == cameras
    for name in ("images", "intrinsics"):
        assert torch.equal(getattr(some, name), getattr(every, name)[:, rows])
    for name in ("depth", "instances", "image_affine"):
        assert torch.equal(getattr(some, name), getattr(every, name)[rows])
    world = [s.ego_to_global @ s.camera_to_ego for s in (some, every)]
    torch.testing.assert_close(world[0], world[1][:, rows])


def test_the_ego_frame_is_the_mean_over_the_cameras_that_are_used(six: Path) -> None:
    """Of one camera it is the vehicle at its exposure; the order plays no role, and with the scan's none is asked."""
    data = opened(six, cameras=ONE)
    (row,) = data._key_data(data._samples[1], ONE)
    torch.testing.assert_close(data.ego_to_global(1), torch.from_numpy(data.tables.pose(row)))
    every = opened(six).ego_to_global(1)
    torch.testing.assert_close(opened(six, cameras=PERMUTED).ego_to_global(1), every)
    apart = (data.ego_to_global(1) - every)[:3, 3].norm()
    assert 0.05 < float(apart) < 0.5  # at 8 m/s, and up to 50 ms between exposures
    scans = [opened(six, cameras=cameras, ego_frame="lidar").ego_to_global(1) for cameras in (ONE, CAMERAS)]
    assert torch.equal(*scans)


def test_only_their_files_are_needed(six: Path) -> None:
    data = opened(six, cameras=THREE, depth=False)
    channels = {data.tables.channel(row) for row in data.needed_data()}
    assert channels == set(THREE)


def test_a_rig_of_other_names(own: Path) -> None:
    sample = opened(own, cameras=("LEFT", "LOOK_AHEAD")).get(0)
    focal = sample.intrinsics[0, :, 0, 0].tolist()
    assert focal == pytest.approx([800 * 64 / 1600, 1266 * 64 / 1600])
    ahead = sample.camera_to_ego[0, :, :3, 2]
    expected = torch.tensor([[0, 1, 0], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(ahead, expected, atol=0.03, rtol=0)  # but for errors of mounting


def test_samples_of_two_rigs_are_no_batch(six: Path) -> None:
    pair: list[SurroundSample] = [opened(six, cameras=c).get(0) for c in (CAMERAS, PERMUTED)]
    with pytest.raises(UserError, match="of the same cameras in one order, got CAM_FRONT_LEFT, .*CAM_BACK, "):
        collate_surround(pair)
    assert collate_surround([pair[1], pair[1]]).cameras == PERMUTED


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("cameras", "sentence"),
    [((), "cameras is empty"), (("CAM_BACK", "CAM_FRONT", "CAM_BACK"), "cameras names CAM_BACK more than once")],
)
def test_no_rig(cameras: tuple[str, ...], sentence: str, six: Path) -> None:
    for settings in (lambda: NuScenesConfig(root=six, cameras=cameras), lambda: SurroundDatasetConfig(cameras=cameras)):
        with pytest.raises(UserError, match=sentence):
            check_settings(settings())
    with pytest.raises(UserError, match=sentence):
        check_nuscenes(six, cameras=cameras)


def test_cameras_that_the_tables_lack_are_named_with_those_there_are(six: Path, own: Path) -> None:
    with pytest.raises(UserError, match=r"sensor\.json: has no camera CAM_ROOF, LIDAR_TOP, those there are: CAM_"):
        opened(six, cameras=("CAM_BACK", "CAM_ROOF", "LIDAR_TOP"))
    with pytest.raises(UserError, match="has no camera CAM_FRONT_LEFT, .*, those there are: LOOK_AHEAD, LEFT: "):
        opened(own)


@pytest.mark.parametrize(
    ("cameras", "sentence"),
    [
        ((), "cameras is empty"), (("CAM_ROOF",), "'CAM_ROOF', expected one of CAM_FRONT, "),
        (("CAM_BACK", "CAM_BACK"), "CAM_BACK more than once"), (("A=0,1,2",), "expected"), (("A=0,1,2,x",), "expected"),
        (("A=0,1,2,nan",), "expected"), (("A=0,1,0,1.5,1",), "expected"), (("a b=0,1,0,1.5",), "expected"),
        (("LIDAR_TOP=0,1,0,1.5",), "expected"), (("../A=0,1,0,1.5",), "expected"),
    ],
)  # fmt: skip
def test_streets_refuse_no_rig(cameras: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check_settings(SurroundStreetConfig(**STREET, cameras=cameras))


def test_a_folder_has_one_rig(tmp_path: Path) -> None:
    configs = {"val": SurroundStreetConfig(**STREET, cameras=ONE)}
    with pytest.raises(UserError, match="cameras of split 'val' are CAM_BACK, of the others CAM_FRONT, .*has one rig"):
        write_nuscenes(tmp_path, splits={"train": 1, "val": 1}, seed=0, config=SurroundStreetConfig(**STREET),
                       configs=configs, workers=1, progress=False)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- streets


def test_vehicles_with_fewer_cameras_drive_through_the_same_street(six: Path, tmp_path: Path) -> None:
    """Scans, boxes and the poses of the cameras that they share are equal; of the others there is nothing."""
    root = drive(tmp_path, cameras=THREE)
    assert {path.name for path in (root / "samples").iterdir()} == {*THREE, "LIDAR_TOP"}
    few, all_six = opened(root, cameras=THREE, points=True).get(1), opened(six, cameras=THREE, points=True).get(1)
    for name in ("intrinsics", "camera_to_ego", "points", "instances"):
        assert torch.equal(getattr(few, name), getattr(all_six, name))
    assert few.objects is not None and all_six.objects is not None
    assert torch.equal(few.objects.boxes.centre, all_six.objects.boxes.centre)
    assert check_nuscenes(root) == []


# ---------------------------------------------------------------------------------------------------------------- check


def test_check_says_which_cameras_there_are(six: Path, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_check(six) == run_check(six, cameras=THREE) == 0
    out = capsys.readouterr().out
    assert f"{VERSION}: cameras: CAM_FRONT (64 x 32 px, in 2 of 2 samples), CAM_FRONT_RIGHT (" in out
    assert "--dataset.cameras" not in out
    assert run_check(own) == 0
    assert "not nuScenes' six: train with --dataset.cameras LOOK_AHEAD LEFT\n" in capsys.readouterr().out
    assert run_check(own, cameras=("LEFT", "CAM_FRONT")) == 2
    assert "has no camera CAM_FRONT, those there are: LOOK_AHEAD, LEFT\n" in capsys.readouterr().out


def test_check_says_which_samples_lack_a_camera(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the rig has that camera, and then the cameras are still told; other rigs do not care."""
    root = drive(tmp_path)
    token = opened(root).frame_ids[1]
    without_table_rows(root, "CAM_BACK", 1)
    assert run_check(root) == run_check(root, cameras=ONE) == 2
    out = capsys.readouterr().out
    assert "CAM_BACK (64 x 32 px, in 1 of 2 samples)" in out
    assert len(re.findall(f"{token}.* has no key frame of CAM_BACK", out)) == 2
    assert run_check(root, cameras=("CAM_FRONT", "CAM_FRONT_LEFT")) == 0
    opened(root, cameras=("CAM_FRONT",)).get(1)
    with pytest.raises(UserError, match=f"sample {token} has no key frame of CAM_BACK"):
        opened(root, cameras=THREE).get(1)


def test_check_looks_at_files_of_the_rig_alone(tmp_path: Path) -> None:
    root = drive(tmp_path)
    (root / "samples/CAM_BACK").rename(tmp_path / "elsewhere")
    assert [fault.sentence for fault in check_nuscenes(root, cameras=ONE)] == [
        "no such folder, expected 2 files that sample_data.json names"
    ]
    assert check_nuscenes(root, cameras=("CAM_FRONT",)) == []
