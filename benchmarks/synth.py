"""Speed of the synthetic streets: processor seconds per frame on one core, by step.

    python benchmarks/synth.py [--frames N] [--json FILE]

Writes benchmarks/results/synth.json unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from distill3d.synth import StreetConfig, render_frame
from distill3d.synth.writer import available_cores, frame_paths, write_frame

SETTINGS = {
    "320x96, 2x2 rays per pixel": StreetConfig(),
    "640x192, 1 ray per pixel": StreetConfig(width=640, height=192, rays_per_pixel_side=1),
    "1242x375, 1 ray per pixel": StreetConfig(width=1242, height=375, rays_per_pixel_side=1),
}
WARM_UP = 40  # frames: the templates of cars, people and plants are made once per process, on first use


def cpu_model() -> str:
    """Name of the processor, as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def measure(config: StreetConfig, frames: int) -> dict[str, object]:
    """Median milliseconds of processor time per frame and step over `frames` frames of seed 0, on one core."""
    steps: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for path in frame_paths(out, 0).values():
            path.parent.mkdir(parents=True, exist_ok=True)
        for index in range(WARM_UP + frames):
            frame = render_frame(0, index, config)
            start = time.process_time()
            write_frame(out, index, frame)
            seconds = {**frame.seconds, "write": time.process_time() - start}
            if index >= WARM_UP:
                for step, value in {**seconds, "total": sum(seconds.values())}.items():
                    steps.setdefault(step, []).append(value)
    median = {step: round(1000 * statistics.median(values), 2) for step, values in steps.items()}
    mean = statistics.mean(steps["total"])
    return {"config": asdict(config), "median_ms": median, "frames_per_core_second": round(1 / mean, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "synth.json")
    arguments = parser.parse_args()
    cores = available_cores()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # Embree would build its trees on all cores
    results = {name: measure(config, arguments.frames) for name, config in SETTINGS.items()}
    machine = {
        "cpu": cpu_model(),
        "cores": cores,
        "load_before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "embreex": version("embreex"),
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": machine,
        "clock": "processor time",
        "cores_used": 1,
        "frames": arguments.frames,
        "results": results,
    }
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for name, result in results.items():
        print(f"{name}: {result['frames_per_core_second']} frames per core and second, median ms {result['median_ms']}")


if __name__ == "__main__":
    main()
