"""A student as one ONNX file, so that what runs on the vehicle needs neither PyTorch nor this library.

The cut is the same for every student: in go pictures as a ``Batch`` or ``SurroundBatch`` holds them (RGB in 0..1 on the
canvas) and the calibration, out come boxes in K slots with a mask of those that are detections, and the raw predictions
by name.  Normalisation, geometry, ranking and suppression are in the graph: whoever deploys it writes none of them.
Calibration is an input and never a constant.  Constant are the canvas, one moment at a time, frames and cameras; there
is no mirror, no crop and no augmentation.  All inputs are float32, which every runtime takes; matrices become float64
inside, as in training.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from distill3d.camera import Camera, ImageAffine
from distill3d.data.augment.image import place
from distill3d.data.nuscenes.dataset import CAMERAS
from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.detectors import labels_of
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.files import refuse_foreign, write_output
from distill3d.settings import fingerprint
from distill3d.train.card import require
from distill3d.train.checkpoint import load_detector
from distill3d.train.rigs import cameras_of

#: Of the operators; GridSample and DeformConv want 19 or more.
OPSET = 20
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: Largest difference between ONNX Runtime and PyTorch, as a share of an output's largest magnitude.
TOLERANCE = 1e-4
#: Slots of this score must be found again.  Below it many tie, and rounding decides which of them come up.
SURE_SCORE = 0.01

# ------------------------------------------------------------------------------------------- what goes in and comes out

PICTURE = {
    "image": "RGB in 0..1 on the canvas, 0 where the canvas looks past the picture; normalised in the graph",
    "projection": "camera matrix of the picture, from metres in the camera's frame to its px",
    "image_affine": "from px of the picture to px of the canvas: one scale, no turn",
    "source_size": "width and height of the picture, px",
}
LIDAR = {
    "lidar_to_camera": "from the LiDAR's frame (x ahead, y left, z up) to the camera's, m; where the vehicle has no "
    "LiDAR, that of the metadata",
}
SURROUND = {
    "images": "RGB in 0..1 on the canvas, normalised in the graph: the key frame, then earlier ones as trained, of ",
    "intrinsics": "camera matrices of the pictures, px",
    "camera_to_ego": "from each camera, at its time, to the vehicle at the key frame (x ahead, y left, z up), m",
    "image_affine": "from px of the pictures to px of the canvas, the same for all frames",
}
BOXES = {
    "centre": "geometric centre, m",
    "size": "length, width, height, m",
    "yaw": "rad about the up axis by the right-hand rule; 0 lays the length along the frame's first axis",
    "label": "index into the metadata's classes",
    "score": "confidence, larger is surer",
    "kept": "whether the slot holds a detection",
    "velocity": "on the ground, m/s",
    "box2d": "left, top, right, bottom, px of the picture",
    "alpha": "KITTI's observation angle, rad",
}
ANGLES = ("yaw", "alpha")
#: Of a slot, whether it is a detection; where scores tie, rounding decides that, too.
KEPT = "kept"
#: What the metadata repeats of a checkpoint's card.
OF_THE_CARD = ("recipe", "stage", "focal", "file_focal", "placement", "cameras", "past", "lidar_to_camera")

HEADING = "logits of 12 bins of the observation angle, then each bin's residual, rad"
MAPS = {
    "heatmap": "logits of objects' cells: Pedestrian, Car, Cyclist",
    "offset_2d": "centre of the 2D box less its cell, cells",
    "size_2d": "width and height of the 2D box, cells",
}
ROIS = {
    "roi_offset_3d": "projected 3D centre less its cell, cells",
    "roi_size_3d": "height, width, length less the class's mean, m",
    "roi_heading": HEADING,
}
#: The raw predictions of every student.
RAW = {
    "monodle": MAPS
    | {
        "depth": "logit x of the depth 1 / (sigmoid(x) + 1e-6) - 1 m, and the log of its scale",
        "offset_3d": "projected 3D centre less its cell, cells",
        "size_3d": "height, width, length, m (less the class's mean where trained so)",
        "heading": HEADING,
    },
    "monocon": MAPS
    | {
        "depth": "logit x of the depth 1 / (sigmoid(x) + 1e-12) - 1 m, and the log of its scale",
        "offset_3d": "projected 3D centre less the cell of the 2D centre, cells",
        "size_3d": "height, width, length, m",
        "heading": HEADING,
    },
    "gupnet": MAPS
    | ROIS
    | {
        "roi_depth": "m",
        "roi_depth_log_variance": "of the depth, log m^2",
        "roi_height_log_variance": "of the object's height, log m^2",
    },
    "did_m3d": MAPS
    | ROIS
    | {f"roi_{kind}": f"{what}, m, on the RoI's grid" for kind, what in
       (("depth", "sum of the two"), ("visual_depth", "of the surface"), ("attribute_depth", "surface to centre"))}
    | {f"roi_{kind}_log_variance": "of that depth, log m^2" for kind in ("depth", "visual_depth", "attribute_depth")},
    "monodetr": {
        "logits": "of Pedestrian, Car, Cyclist, after each decoder layer for each query",
        "boxes": "projected 3D centre (x, y), distances to the 2D box's left, right, top, bottom: shares of the canvas",
        "size_3d": "height, width, length, m",
        "heading": HEADING,
        "depth": "m, and the log of its scale",
        "depth_map": "logits of the depth bins at stride 16",
    },
    "caddn": {
        "cls": "logits of the anchors of each cell of the ground, per class",
        "box": "codes of the anchors' boxes",
        "dir": "logits of the anchors' two direction bins",
        "depth": "logits of each cell's depth bins, the last beyond all",
    },
    "bevdepth": {
        "heatmap": "logits of objects' cells on the ground, classes task after task",
        "box": "box codes of each task: offset (cells), z, logarithms of length, width, height, sine, cosine, velocity",
        "depth": "logits of each cell's depth bins in the key frame, camera after camera",
    },
}  # fmt: skip


def batch_of(inputs: dict[str, Tensor]) -> Batch | SurroundBatch:
    """The batch of one moment that the named inputs describe."""
    exact = {name: value if name in ("image", "images") else value.double() for name, value in inputs.items()}
    still = torch.eye(4, dtype=torch.float64)[None]
    if "images" in inputs:
        calibration = (exact[name] for name in ("intrinsics", "camera_to_ego", "image_affine"))
        return SurroundBatch(["0"], *calibration, bev_affine=still, ego_to_global=still, images=exact["images"])
    image = inputs["image"]
    affine = ImageAffine(
        exact["image_affine"], torch.zeros(1, dtype=torch.bool), torch.ones(1, dtype=torch.float64),
        exact["source_size"], torch.tensor([[image.shape[-1], image.shape[-2]]], dtype=torch.float64),
    )  # fmt: skip
    camera = affine.camera(Camera(exact["projection"]))
    return Batch(["0"], image, camera, affine, lidar_to_camera=exact.get("lidar_to_camera"))


def inputs_of(detector: Detector, batch: Batch | SurroundBatch) -> dict[str, Tensor]:
    """The named inputs that the first moment of a batch, which is not augmented, gives to a detector's graph."""
    if isinstance(batch, SurroundBatch):
        values = {name: getattr(batch, name) for name in SURROUND}
    else:
        values = {
            "image": batch.image, "projection": batch.source_camera.projection, "image_affine": batch.affine.matrix,
            "source_size": batch.affine.source_size,
        }  # fmt: skip
        if detector.name == "caddn" and batch.lidar_to_camera is not None:
            values["lidar_to_camera"] = batch.lidar_to_camera
    return {name: value[:1].float().contiguous() for name, value in values.items()}


def example_inputs(detector: Detector, card: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Noise as picture and a calibration as KITTI's or nuScenes', somewhat different for every seed."""
    rng = np.random.default_rng(seed)
    made_up = _surround_views(detector.config.frames, card, rng) if detector.name == "bevdepth" else _picture(card, rng)
    return {name: torch.from_numpy(made_up[name]).float()[None] for name in input_texts(detector)}


def _picture(card: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    from distill3d.synth.sensors import R0_RECT, TR_VELO_TO_CAM, projections
    from distill3d.synth.settings import KITTI_FOCAL, KITTI_WIDTH
    from distill3d.synth.surround_rig import turn_about

    width, height = card["canvas"]
    columns = round(KITTI_WIDTH * card["file_focal"] / KITTI_FOCAL * rng.uniform(0.95, 1.05))
    size = (columns, round(columns * height / width))
    pose = np.eye(4)
    pose[:3] = turn_about(1, rng.normal()) @ R0_RECT @ TR_VELO_TO_CAM
    return {
        "image": rng.random((3, height, width)), "projection": projections(*size)["P2"],
        "image_affine": place(size, (width, height), card.get("placement", "fit")).matrix.numpy(),
        "source_size": np.array(size), "lidar_to_camera": pose,
    }  # fmt: skip


def _surround_views(frames: int, card: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    from distill3d.synth.settings import NUSCENES_HEIGHT, NUSCENES_WIDTH, SurroundStreetConfig
    from distill3d.synth.surround_rig import CAMERAS as MOUNTS
    from distill3d.synth.surround_rig import random_calibrations, turn_about

    (width, height), step = card["canvas"], rng.uniform(2, 6)
    cameras = cameras_of(card)
    texts = tuple(
        name if name in MOUNTS else f"OWN_{i}={360 * i / len(cameras):g},1,0,1.5" for i, name in enumerate(cameras)
    )
    street = SurroundStreetConfig(width=NUSCENES_WIDTH, height=NUSCENES_HEIGHT, cameras=texts)
    rig = random_calibrations(rng, street)
    intrinsics, poses = (np.tile(np.eye(4), (frames, len(cameras), 1, 1)) for _ in range(2))
    for i, camera in enumerate(rig[name] for name in street.mounts):
        assert camera.intrinsics is not None
        intrinsics[:, i, :3, :3] = camera.intrinsics
        for frame in range(frames):  # the vehicle drives ahead, in a bend
            turn = turn_about(2, -frame)
            poses[frame, i, :3, :3], poses[frame, i, :3, 3] = turn @ camera.rotation, turn @ camera.position
            poses[frame, i, 0, 3] -= frame * step
    scale = width / NUSCENES_WIDTH * rng.uniform(1.0, 1.1)
    affine = np.diag((scale, scale, 1.0, 1.0))
    affine[:2, 3] = (width - NUSCENES_WIDTH * scale) / 2, height - NUSCENES_HEIGHT * scale  # the lowest rows
    return {
        "images": rng.random((frames, len(cameras), 3, height, width)), "intrinsics": intrinsics,
        "camera_to_ego": poses, "image_affine": np.tile(affine, (len(cameras), 1, 1)),
    }  # fmt: skip


def input_texts(detector: Detector, cameras: Sequence[str] = CAMERAS) -> dict[str, str]:
    """What each input of a detector's graph is, in order; surround views are of ``cameras``."""
    if detector.name == "bevdepth":
        return SURROUND | {"images": SURROUND["images"] + ", ".join(cameras)}
    return PICTURE | (LIDAR if detector.name == "caddn" else {})


def described(
    detector: Detector, card: dict[str, Any], inputs: dict[str, Tensor], outputs: dict[str, Tensor]
) -> dict[str, str]:
    """The file's metadata: what is needed to feed it and to read its answers."""
    surround = "images" in inputs
    pictures = inputs["images" if surround else "image"]
    told = BOXES | RAW[detector.name]
    known = {name: card[name] for name in OF_THE_CARD if card.get(name) is not None}
    classes = labels_of(detector.config)
    facts = {
        "detector": detector.name, "card": fingerprint(card), "canvas": [pictures.shape[-1], pictures.shape[-2]],
        "classes": list(classes), "frame": "ego" if surround else "camera", **known,
    }  # fmt: skip
    cameras = cameras_of(card)
    if surround and len(cameras) != pictures.shape[2]:
        cameras = [f"camera {number}" for number in range(1, pictures.shape[2] + 1)]  # nobody says which
    texts = {f"input.{name}": text for name, text in input_texts(detector, cameras).items()}
    texts |= {f"output.{name}": told[name] for name in outputs}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()} | texts


# ------------------------------------------------------------------------------------------------------------ the graph


class Deployed(nn.Module):
    """A detector between named tensors: inputs in the order of ``names`` -> boxes in slots and raw predictions."""

    def __init__(self, detector: Detector, names: Sequence[str]) -> None:
        super().__init__()
        self.detector, self.names = detector.eval(), tuple(names)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        batch = batch_of(dict(zip(self.names, tensors, strict=True)))
        outputs = self.detector(batch)
        return self.detector.decode_slots(outputs, batch).tensors() | outputs.predictions


def inverse(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b n n"]:
    """The inverse by the method of Faddeev and LeVerrier: n products and no choice of a pivot, which suits small
    matrices and graphs without branches.  ONNX has no operator for it."""
    size = matrix.shape[-1]
    eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    adjugate = eye.expand_as(matrix)
    for k in range(1, size):
        product = matrix @ adjugate
        adjugate = product - _trace(product) / k * eye
    return adjugate * size / _trace(matrix @ adjugate)


def _trace(matrix: Float[Tensor, "*b n n"]) -> Float[Tensor, "*b 1 1"]:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _sort(values: Tensor, *, stable: bool | None, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    return torch.sort(values, dim, descending)  # ONNX's is stable


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program in operators that ONNX has.

    Even steps become the numbers that PyTorch has for them: a step rounded otherwise moves points to other cells.
    """
    aten = torch.ops.aten
    steps = [n for n in program.graph.nodes if n.target is aten.linspace.default]
    listed = {
        (*n.args, n.kwargs.get("dtype")): torch.linspace(*n.args, dtype=n.kwargs.get("dtype")).tolist() for n in steps
    }

    def linspace(*of: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.stack([torch.full((), value, dtype=dtype) for value in listed[*of, dtype]])

    table: dict[Any, Callable[..., Any]] = {
        aten.linalg_inv.default: inverse, aten.inverse.default: inverse, aten.sort.stable: _sort,
        aten.linspace.default: linspace,
    }  # fmt: skip
    return program.run_decompositions(table)


def onnx_program(deployed: Deployed, inputs: dict[str, Tensor], outputs: Sequence[str]) -> Any:
    """The graph with its outputs' names, a ``torch.onnx.ONNXProgram``."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = decomposed(torch.export.export(deployed, tuple(inputs.values()), strict=False))
        return torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False,
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------- the file and its check


@dataclass(frozen=True, order=True)
class Difference:
    """The largest difference of an output's values as a share of the largest value, and the difference itself; infinite
    where an answer is no number."""

    relative: float
    absolute: float


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far ONNX Runtime's answers are from PyTorch's in float32."""

    path: Path
    size: int  # bytes
    shapes: dict[str, tuple[int, ...]]  # of the outputs
    differences: dict[str, Difference]
    compared: int  # slots, of all examples

    def text(self) -> str:
        """Path, size, outputs and parity."""
        rows = [
            f"  {name:32} {'x'.join(map(str, shape)):>20} {self.differences[name].absolute:10.1e} "
            f"{self.differences[name].relative:10.1e}"
            for name, shape in self.shapes.items()
        ]
        head = f"  {'output':32} {'shape':>20} {'absolute':>10} {'relative':>10}"
        told = f"differences from PyTorch, at most {TOLERANCE:g} relative; {self.compared} slots were compared"
        return "\n".join((f"{self.path}: {self.size / 1e6:.1f} MB, opset {OPSET}", told, head, *rows))


def export_checkpoint(checkpoint: Path, path: Path) -> Exported:
    """A stage folder or ``model.safetensors`` as an ONNX file, checked with two calibrations.

    Raises:
        UserError: a package is missing, the checkpoint is none of a student, or the check fails.
    """
    _need_packages()
    if path.suffix != ".onnx" or path.is_dir():
        raise UserError(f"--onnx is {path}, expected a file name that ends in .onnx")
    refuse_foreign(path)
    detector, card = load_detector(checkpoint)
    _need_student(detector, str(checkpoint))
    require(card, checkpoint, "canvas", *(() if detector.name == "bevdepth" else ("file_focal",)))
    return export_detector(detector, path, [example_inputs(detector, card, seed) for seed in (0, 1)], card)


def export_detector(
    detector: Detector, path: Path, examples: Sequence[dict[str, Tensor]], card: dict[str, Any] | None = None,
    sure_score: float = SURE_SCORE,
) -> Exported:  # fmt: skip
    """A student as an ONNX file, written only if it answers as PyTorch does.

    Args:
        examples: inputs as ``inputs_of`` or ``example_inputs`` give them, of one shape; the first is traced, all are
            compared.
        card: the checkpoint's, for the metadata.
        sure_score: slots of this score must be found again; to be raised for untrained weights, whose scores are nearly
            the same everywhere.

    Raises:
        UserError: a package is missing, the detector is no student, or the file's answers differ by more than
            ``TOLERANCE``.
    """
    _need_packages()
    _need_student(detector, detector.name)
    deployed = Deployed(detector, tuple(examples[0]))
    with torch.no_grad():
        expected = [deployed(*inputs.values()) for inputs in examples]
    graph = onnx_program(deployed, examples[0], tuple(expected[0]))
    graph.model.metadata_props.update(described(detector, card or {}, examples[0], expected[0]))
    differences: dict[str, Difference] = {}
    compared = 0

    def write(temporary: Path) -> None:
        nonlocal compared
        graph.save(str(temporary), external_data=False)
        session = open_session(temporary)
        for inputs, answers in zip(examples, expected, strict=True):
            found, count = compare(answers, run(session, inputs), sure_score)
            compared += count
            differences.update({name: max(found[name], differences.get(name, found[name])) for name in found})
        if not compared:
            raise UserError(f"{path} was not written: ONNX Runtime found no slot again that PyTorch had found")
        for name, difference in differences.items():
            if difference.relative > TOLERANCE:
                raise UserError(
                    f"{path} was not written: ONNX Runtime's {name!r} differs from PyTorch's by "
                    f"{difference.relative:.1e} of its largest value, expected at most {TOLERANCE:g}"
                )

    write_output(path, write)
    shapes = {name: tuple(value.shape) for name, value in expected[0].items()}
    return Exported(path, path.stat().st_size, shapes, differences, compared)


def compare(
    expected: dict[str, Tensor], found: dict[str, Tensor], sure_score: float = SURE_SCORE
) -> tuple[dict[str, Difference], int]:
    """How far outputs differ by name, and how many slots were compared.

    Slots are ranked by score, and equal scores may change places: each is compared with the one that is nearest to it,
    those of less than ``sure_score`` only where there is one, and not whether it is kept.
    """
    rows, others = _slot_rows(expected), _slot_rows(found).nan_to_num(torch.inf)
    distance, partner = torch.cdist(rows, others, p=torch.inf).min(1)
    sure = expected["score"][0] >= sure_score
    chosen = rows.isfinite().all(1) & (sure | (distance <= TOLERANCE * rows.abs().amax(1)))
    differences = {}
    for name, value in expected.items():
        other = found[name]
        if name in BOXES or name.startswith("roi_"):
            taken = chosen & sure if name == KEPT else chosen
            value, other = value[0][taken], other[0][partner[taken]]
        distance = (value.double() - other.double()).abs()
        if name in ANGLES:
            distance = torch.minimum(distance, (2 * math.pi - distance).abs())
        absolute = float(distance.nan_to_num(math.inf).max()) if distance.numel() else 0.0
        largest = float(value.double().abs().max()) if value.numel() else 0.0
        differences[name] = Difference(absolute / largest if 0 < largest < math.inf else absolute, absolute)
    return differences, int(chosen.sum())


def _slot_rows(outputs: dict[str, Tensor]) -> Float[Tensor, "k 8"]:
    columns = (outputs["centre"][0], outputs["size"][0], outputs["score"][0, :, None], outputs["label"][0, :, None])
    return torch.cat([c.double() for c in columns], dim=1)


def open_session(path: Path, threads: int = 1) -> Any:
    """An ``onnxruntime.InferenceSession`` of a file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


def latency(session: Any, inputs: dict[str, Tensor], repeats: int = 20) -> list[float]:
    """Seconds of each of ``repeats`` runs, after one that does not count."""
    given = {name: value.numpy() for name, value in inputs.items()}
    session.run(None, given)
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        session.run(None, given)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _need_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {', '.join(missing)}: pip install 'distill3d[export]'")


def _need_student(detector: Detector, where: str) -> None:
    if detector.config.input != "rgb":
        raise UserError(
            f"{where} is of detector {detector.name!r} and looks at {detector.config.input}, export takes students, "
            "which look at pictures alone"
        )
    if detector.name not in RAW:
        raise UserError(
            f"{where} is of detector {detector.name!r}, of which export knows neither inputs nor outputs, as it "
            f"does of {', '.join(RAW)}"
        )
