"""Time of a whole KITTI evaluation: files read, 3 classes, 4 metrics, strict and loose overlaps, 3 difficulties.

The set is made up, with the size of KITTI's validation split: 3,769 frames of about 10 label lines and 14 detections.
Where KITTI_EVAL_BINARY names a build of the official C++ program (called with the label folder and the result folder;
it does the strict overlaps only), it is timed on the same files and the ratio is recorded.

    python benchmarks/evaluate_kitti.py
"""

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill3d.evaluate.kitti import evaluate_folders

FRAMES = 3769  # KITTI's validation split
LABELS_PER_FRAME = 10
FALSE_ALARMS_PER_FRAME = 7
RECALL = 0.8  # share of labels with a detection: about 14 detections a frame together with the false alarms
RUNS = 3
SEED = 0
FOCAL, CENTRE_U, CENTRE_V = 721.5, 609.6, 172.9  # px, KITTI's colour camera
WIDTH, HEIGHT = 1242, 375  # px
# Share of the labels, and typical height, width, length in metres.
TYPES: dict[str, tuple[float, tuple[float, float, float]]] = {
    "Car": (0.6, (1.5, 1.6, 3.9)),
    "Van": (0.06, (2.1, 1.9, 5.1)),
    "Pedestrian": (0.1, (1.8, 0.6, 0.8)),
    "Person_sitting": (0.02, (1.3, 0.6, 0.8)),
    "Cyclist": (0.06, (1.7, 0.6, 1.8)),
    "Truck": (0.04, (3.2, 2.6, 10.0)),
    "DontCare": (0.12, (0.0, 0.0, 0.0)),
}
DETECTED_TYPES = ("Car", "Pedestrian", "Cyclist")
RESULTS = Path(__file__).parent / "results" / "evaluate_kitti.json"

Box = tuple[np.ndarray, np.ndarray, float]  # size (h, w, l), bottom centre, rotation_y


def line(name: str, box: Box, rng: np.random.Generator, score: float | None = None) -> str:
    """One label line, or result line where a score is given."""
    size, position, rotation = box
    height_px, width_px = FOCAL * size[0] / position[2], FOCAL * max(size[1], 0.6 * size[2]) / position[2]
    u, v = CENTRE_U + FOCAL * position[0] / position[2], CENTRE_V + FOCAL * position[1] / position[2]
    image = np.clip([u - width_px / 2, v - height_px, u + width_px / 2, v], 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    truncation, occlusion = (max(0.0, rng.normal(-0.5, 0.5)), rng.integers(0, 4)) if score is None else (-1, -1)
    numbers = [rotation - np.arctan2(position[0], position[2]), *image, *size, *position, rotation]
    if name == "DontCare":
        truncation, occlusion, numbers = -1, -1, [-10, *image, -1, -1, -1, -1000, -1000, -1000, -10]
    fields = [name, f"{truncation:.2f}", str(occlusion), *(f"{number:.4f}" for number in numbers)]
    return " ".join(fields if score is None else [*fields, f"{score:.4f}"])


def random_box(typical: tuple[float, float, float], rng: np.random.Generator) -> Box:
    depth = rng.uniform(5, 60)
    position = np.array([rng.uniform(-0.7, 0.7) * depth, rng.normal(1.65, 0.1), depth])
    return np.array(typical) * rng.normal(1, 0.08, 3), position, rng.uniform(-np.pi, np.pi)


def disturbed(box: Box, rng: np.random.Generator) -> Box:
    size, position, rotation = box
    return size * rng.normal(1, 0.04, 3), position + rng.normal(0, [0.1, 0.05, 0.3]), rotation + rng.normal(0, 0.05)


def write_set(folder: Path, frames: int) -> dict[str, int]:
    """Write label_2/ and pred/data/; returns how many lines of each."""
    rng = np.random.default_rng(SEED)
    labels, predictions = folder / "label_2", folder / "pred" / "data"
    labels.mkdir()
    predictions.mkdir(parents=True)
    shares = np.array([share for share, _ in TYPES.values()])
    written = {"label_lines": 0, "result_lines": 0}
    for frame in range(frames):
        label_lines: list[str] = []
        result_lines: list[str] = []
        for name in rng.choice(list(TYPES), size=rng.poisson(LABELS_PER_FRAME), p=shares / shares.sum()):
            box = random_box(TYPES[name][1] if name != "DontCare" else TYPES["Car"][1], rng)
            label_lines.append(line(name, box, rng))
            if name in DETECTED_TYPES and rng.random() < RECALL:
                result_lines.append(line(name, disturbed(box, rng), rng, score=rng.beta(5, 2)))
        for name in rng.choice(DETECTED_TYPES, size=rng.poisson(FALSE_ALARMS_PER_FRAME)):
            result_lines.append(line(name, random_box(TYPES[name][1], rng), rng, score=rng.beta(2, 5)))
        for target, lines in ((labels, label_lines), (predictions, result_lines)):
            (target / f"{frame:06d}.txt").write_text("".join(text + "\n" for text in lines))
        written["label_lines"] += len(label_lines)
        written["result_lines"] += len(result_lines)
    return written


def median_seconds(run: Callable[[], object]) -> float:
    seconds: list[float] = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds), 3)


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    model = platform.processor() or "unknown"
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [row.split(":", 1)[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")]
        model = models[0] if models else model
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_set(folder, FRAMES)
        labels, predictions = folder / "label_2", folder / "pred"
        figures: dict[str, Any] = {
            "frames": FRAMES,
            **written,
            "seconds": median_seconds(lambda: evaluate_folders(labels, predictions)),
            "runs": RUNS,
        }
        binary = os.environ.get("KITTI_EVAL_BINARY")
        if binary:
            command = [binary, str(labels), str(predictions)]
            official = median_seconds(lambda: subprocess.run(command, check=True, capture_output=True))
            figures |= {"official_seconds": official, "ratio": round(figures["seconds"] / official, 3)}
    figures["machine"] = machine()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
