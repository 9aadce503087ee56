"""Students as ONNX files: ONNX Runtime answers as PyTorch does, with any calibration, and no bad file is left."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from streets import TRUNK

import distill3d
import distill3d.export as ex
from distill3d.cli import main
from distill3d.detectors import (
    bevdepth,
    bevdet,
    build_detector,
    caddn,
    did_m3d,
    gupnet,
    monocon,
    monodetr,
    monodle,
    second,
)
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.files import RECORD
from distill3d.layers.ground.simulated_lift import SimulatedBranchConfig
from distill3d.layers.heads.anchor_head import SLOTS
from distill3d.layers.heads.centre_head import tiny_head
from distill3d.layers.points.voxels import VoxelGrid
from distill3d.settings import fingerprint, to_plain
from distill3d.train.checkpoint import save_weights

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ex.PACKAGES),
    reason="onnx, onnxscript or onnxruntime is not installed: pip install 'distill3d[export]'",
)
KITTI_CARD = {"canvas": [160, 64], "focal": 93.0, "file_focal": 721.5, "placement": "fit"}
NUSCENES_CARD = {"canvas": [96, 48], "version": "v1.0-synth"}
#: All slots are detections.
ALL = {"score_threshold": 0.0, "classes": monodle.HEAT_CLASSES}
#: The ground in front of BEVDepth: 48 x 48 cells.
REACH = 19.2
GROUND = {
    "head": tiny_head(extent=(-REACH, -REACH, REACH, REACH), score_threshold=0.0, candidates=100, max_per_task=20),
    "grid": VoxelGrid((-REACH, -REACH, -5.0, REACH, REACH, 3.0), (0.8, 0.8, 8.0)),
}  # fmt: skip


def all_anchors(**fields: Any) -> caddn.CaDDNConfig:
    """On ground that the camera sees, for all that it does not see ties; as many boxes enter the suppression of
    ``decode`` as that of fixed shapes."""
    config = caddn.tiny(voxels=VoxelGrid((12.0, -7.68, -3.0, 42.72, 7.68, 1.0), (0.64, 0.64, 0.8)), **fields)
    return replace(config, head=replace(config.head, score_threshold=0.0, candidates=SLOTS, max_detections=20))


#: Every student with the options that change its graph.
STUDENTS = {
    "monodle": monodle.tiny(**ALL),
    "gupnet": gupnet.tiny(**ALL),
    "did_m3d": did_m3d.tiny(**ALL),
    "monodetr": monodetr.tiny(**ALL),
    "monocon": monocon.tiny(**ALL, trunk=TRUNK, head_channels=8),
    "caddn of monotakd": all_anchors(spatial_alignment=True, fusion="ffm"),
    "bevdepth of monotakd": bevdepth.tiny(
        **GROUND,
        frames=2,
        bev_channels=32,
        spatial_alignment=True,
        fusion="ffm",
        depth_aggregation=True,
        context_channels=8,
    ),
    "bevdepth of simdistill": bevdepth.tiny(
        **GROUND, context_channels=8, simulated=SimulatedBranchConfig(points=4, fused_channels=16)
    ),
}


#: Of each student, the raw scores and the layers that give them; MonoDLE's also stand for those that are built on it.
SCORES: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {
    "monodle": ("heatmap", lambda d: [d.heatmap[-1]]),
    "monodetr": ("logits", lambda d: [heads["logits"][-1] for heads in d.heads]),
    "caddn": ("cls", lambda d: [d.head.conv_cls]),
    "bevdepth": ("heatmap", lambda d: [task["heatmap"][-1] for task in d.head.tasks]),
}


#: The command's test exports MonoDLE; GUPNet and DID-M3D have its trunk and heads and differ in what ``decode_slots``
#: does, which another test compares; CaDDN shares with BEVDepth what is hard to export of it; MonoDETR's takes longest
#: beside BEVDepth's.
EXPORTED = [
    pytest.param(name, marks=pytest.mark.thorough)
    if name in ("gupnet", "did_m3d", "monodetr", "caddn of monotakd", "bevdepth of simdistill")
    else name
    for name in STUDENTS
    if name != "monodle"
]


def student(name: str) -> tuple[Detector, dict[str, Any]]:
    """A student with random weights, and its card.

    Its scores are spread as a trained one's: those of fresh weights nearly tie, and rounding would rank them.
    """
    torch.manual_seed(0)
    detector = build_detector(STUDENTS[name]).eval()
    card = {"detector": detector.name, "config": to_plain(detector.config)}
    card |= NUSCENES_CARD if detector.name == "bevdepth" else KITTI_CARD
    key, layers = SCORES.get(detector.name, SCORES["monodle"])
    with torch.no_grad():
        spread = detector(ex.batch_of(ex.example_inputs(detector, card, 0))).predictions[key].std()
        for layer in layers(detector):
            layer.weight /= spread
    return detector, card


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


# ------------------------------------------------------------------------------------------------------------ the files


@needs_packages
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_answers_as_pytorch(name: str, tmp_path: Path) -> None:
    """With the calibration that was traced and with two others, which the answers depend on."""
    detector, card = student(name)
    examples = [ex.example_inputs(detector, card, seed) for seed in (0, 1)]
    result = ex.export_detector(detector, tmp_path / "student.onnx", examples, card)
    assert result.compared >= 20
    weights = [tensor.name for tensor in pytest.importorskip("onnx").load(result.path).graph.initializer]
    assert weights and not any(name in weight for weight in weights for name in monocon.AUXILIARY)  # for training alone
    assert max(d.relative for d in result.differences.values()) <= ex.TOLERANCE
    assert set(result.shapes) >= {"centre", "size", "yaw", "label", "score", "kept"}

    session = ex.open_session(result.path)
    pictures = ("image", "images")
    new = ex.example_inputs(detector, card, 2)
    moved = {k: examples[0][k] if k in pictures else v for k, v in new.items()}
    answers = [ex.run(session, inputs) for inputs in (examples[0], moved)]
    assert not torch.allclose(answers[0]["centre"], answers[1]["centre"], rtol=1e-3)
    with torch.no_grad():
        expected = ex.Deployed(detector, tuple(moved))(*moved.values())
    assert max(d.relative for d in ex.compare(expected, answers[1])[0].values()) <= ex.TOLERANCE

    facts = session.get_modelmeta().custom_metadata_map
    assert facts["detector"] == detector.name and facts["card"] == fingerprint(card)
    assert json.loads(facts["canvas"]) == card["canvas"]
    assert [i.name for i in session.get_inputs()] == list(examples[0])
    told = {f"input.{i}" for i in examples[0]} | {f"output.{o}" for o in result.shapes}
    assert all(facts[name] for name in told)
    assert len(ex.latency(session, examples[0], repeats=2)) == 2


@pytest.mark.parametrize("name", STUDENTS)
def test_slots_are_what_decode_finds(name: str) -> None:
    detector, card = student(name)
    batch = ex.batch_of(ex.example_inputs(detector, card, 0))
    with torch.no_grad():
        outputs = detector(batch)
        (found,), (slots,) = detector.decode(outputs, batch), detector.decode_slots(outputs, batch).boxes()
    assert len(found) == len(slots) >= 10
    for field in ("centre", "size", "yaw", "label", "score"):
        torch.testing.assert_close(getattr(slots, field), getattr(found, field), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_inputs_are_those_of_the_batch(name: str) -> None:
    detector, card = student(name)
    inputs = ex.example_inputs(detector, card, 0)
    assert list(inputs) == list(ex.input_texts(detector))
    again = ex.inputs_of(detector, ex.batch_of(inputs))
    assert list(again) == list(inputs)
    for key, value in inputs.items():
        torch.testing.assert_close(again[key], value)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-2, 1e3))
def test_inverse(size: int, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    matrix = scale * (torch.linalg.qr(matrix).Q + 0.1 * torch.rand(size, generator=generator).diag())
    torch.testing.assert_close(ex.inverse(matrix), torch.linalg.inv(matrix), rtol=1e-9, atol=1e-9 / scale)


# ------------------------------------------------------------------------------------------------------------ the check


def answers() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "centre": 20 * torch.randn(1, 9, 3, generator=generator), "size": torch.rand(1, 9, 3, generator=generator),
        "yaw": torch.randn(1, 9, generator=generator), "label": torch.arange(9)[None] % 3,
        "score": torch.rand(1, 9, generator=generator) + 0.1, "kept": torch.rand(1, 9, generator=generator) < 0.5,
        "roi_depth": torch.rand(1, 9, 7, 7, generator=generator), "heatmap": torch.rand(1, 3, 4, generator=generator),
    }  # fmt: skip


def places_changed(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v if k == "heatmap" else v.flip(1) for k, v in values.items()}


def test_order_of_slots_and_whole_turns_are_no_difference() -> None:
    found = places_changed(answers())
    found["yaw"] = found["yaw"] + 2 * torch.pi
    differences, count = ex.compare(answers(), found)
    assert count == 9 and max(d.absolute for d in differences.values()) < 1e-6


def test_of_unsure_slots_rounding_decides_which_come_up_and_are_kept() -> None:
    found = answers()
    found["kept"], found["centre"] = ~found["kept"], found["centre"].index_fill(1, torch.tensor([0]), 99.0)
    differences, count = ex.compare(answers(), found, sure_score=2.0)
    assert count == 8 and max(d.absolute for d in differences.values()) == 0
    differences, count = ex.compare(answers(), found)
    assert count == 9 and min(differences[name].absolute for name in ("kept", "centre")) >= 1


WRONG = {
    "centre": lambda v: v + 0.1,
    "yaw": lambda v: v + 0.1,
    "label": lambda v: v + 1,
    "kept": lambda v: ~v,
    "roi_depth": lambda v: v * torch.nan,
    "heatmap": lambda v: v * 1.01,
    "size": lambda v: v * torch.inf,
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_answers_otherwise_is_not_left(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a new file nor a part of one; what was exported there before stays."""
    content = "old"

    class Graph:
        model = SimpleNamespace(metadata_props={})

        def save(self, path: str, external_data: bool) -> None:
            Path(path).write_text(content)

    detector, card = student("monodle")
    monkeypatch.setattr(ex, "_need_packages", lambda: None)
    monkeypatch.setattr(ex, "onnx_program", lambda *_: Graph())
    monkeypatch.setattr(ex, "open_session", lambda path: None)
    monkeypatch.setattr(ex.Deployed, "forward", lambda self, *tensors: answers())
    file = tmp_path / "student.onnx"
    examples = [ex.example_inputs(detector, card, 0)]
    monkeypatch.setattr(ex, "described", lambda *_: {})
    monkeypatch.setattr(ex, "run", lambda session, inputs: answers())
    assert ex.export_detector(detector, file, examples, card).compared == 9
    assert file.read_text() == content

    content = "new"
    monkeypatch.setattr(ex, "run", lambda session, inputs: answers() | {name: WRONG[name](answers()[name])})
    with pytest.raises(UserError, match=r"was not written: ONNX Runtime") as error:
        ex.export_detector(detector, file, examples, card)
    assert "\n" not in str(error.value)
    assert [p.read_text() for p in tmp_path.iterdir() if p.name != RECORD] == ["old"]


# ---------------------------------------------------------------------------------------------------------- the command


@needs_packages
def test_command_and_what_the_page_does_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of docs/export.md, word for word, on a picture as KITTI's; then on one of training's own size, where it
    answers as ``predict``."""
    detector = build_detector(monodle.tiny(trunk=TRUNK, head_channels=8, **ALL))
    card = {"detector": "monodle", "config": to_plain(detector.config), **KITTI_CARD}
    save_weights(tmp_path / "stage", detector.state_dict(), card)
    code, out, err = call(capsys, "export", tmp_path / "stage", "--onnx", tmp_path / "out" / "student.onnx")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'out' / 'student.onnx'}: ") and "opset" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[3:]}
    assert rows["heatmap"][0] == "1x3x16x40" and rows["centre"][0] == "1x50x3"
    assert all(float(row[2]) <= ex.TOLERANCE for row in rows.values())
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"student.onnx", RECORD}

    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path / "out")
    noise = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), dtype=np.uint8)
    Image.fromarray(noise).save("street.png")
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "export.md", "exec"), names)
    kept, lines = names["answers"]["kept"], capsys.readouterr().out.splitlines()
    assert kept.sum() == len(lines) >= 10 and all(" m ahead" in line for line in lines)
    assert np.fromfile("projection.bin", np.float32).reshape(1, 3, 4)[0, 0, 0] == pytest.approx(721.5)

    (width, height), camera = card["canvas"], np.array([[93.0, 0, 80], [0, 93, 30], [0, 0, 1]])
    small = Image.fromarray(noise[:height, :width])
    found = distill3d.load(tmp_path / "stage").predict(small, camera)
    answers = ex.run(names["session"], {k: torch.from_numpy(v) for k, v in names["inputs_of"](small, camera).items()})
    centres = answers["centre"][0][answers["kept"][0]]
    assert len(found) == len(centres)
    order = torch.cdist(found.boxes.centre.double(), centres.double()).argmin(1)
    torch.testing.assert_close(centres[order], found.boxes.centre.float(), rtol=1e-3, atol=1e-3)


REFUSED = {
    "teacher": (monodle.tiny(input="depth"), "x.onnx", "'monodle' and looks at depth, export takes students"),
    "assistant": (all_anchors(input="rgb+gt_depth"), "x.onnx", "looks at rgb+gt_depth"),
    "depth at test": (
        bevdepth.tiny(input="rgb+gt_depth", simulated=SimulatedBranchConfig.styled("released")),
        "x.onnx",
        "looks at rgb+gt_depth",
    ),
    "lidar": (second.tiny(), "x.onnx", "'second' and looks at points"),
    "unknown": (bevdet.tiny(), "x.onnx", "'bevdet', of which export knows neither inputs nor outputs"),
    "ending": (monodle.tiny(), "x.pt", "x.pt, expected a file name that ends in .onnx"),
    "nothing": (None, "x.onnx", "no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    config, file, words = REFUSED[case]
    monkeypatch.setattr(ex, "_need_packages", lambda: None)
    if config is not None:
        detector = build_detector(config)
        card = {"detector": detector.name, "config": to_plain(config), **KITTI_CARD}
        save_weights(tmp_path / "stage", detector.state_dict(), card)
    code, _, err = call(capsys, "export", tmp_path / "stage", "--onnx", tmp_path / "out" / file)
    assert code == 2 and len(err.strip().splitlines()) == 1 and words in err, err
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(ex, "PACKAGES", ("onnx_of_nobody", "torch"))
    code, _, err = call(capsys, "export", tmp_path, "--onnx", tmp_path / "x.onnx")
    assert code == 2 and err == "distill3d: export needs onnx_of_nobody: pip install 'distill3d[export]'\n"
