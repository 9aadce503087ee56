"""What a data set in KITTI's layout holds, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from distill3d.data.kitti.check import present_files
from distill3d.data.kitti.dataset import frame_file
from distill3d.data.kitti.inventory import SCALE_OPTION, Inventory, fitting_height_scale
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames, names_of
from distill3d.data.pictures import picture_size
from distill3d.data.splits import read_split


def kitti_contents(root: Path, names: LabelNames | None = None) -> Iterator[str]:
    """Of a sound data set: its frames and splits, what frames lack, and for each labelled class how many objects there
    are, and how many of them networks that look at pictures can learn; a warning where those are none.

    Raises:
        UserError: a file is absent or malformed.
    """
    names = names or names_of(root)
    folder = root / "training"
    frames = sorted(present_files(folder).get("label_2", ()))
    of_frame = {frame: Inventory.of_frame(folder, frame, names) for frame in frames}
    counts_of_frame = {frame: _of_classes(objects, names) for frame, objects in of_frame.items()}
    for part in ("training", "testing"):
        if (root / part / "image_2").is_dir():
            yield from _frames(root, part, counts_of_frame if part == "training" else {})
    if names != KITTI_NAMES:
        yield f"classes: {', '.join(names.classes)}" + "".join(f"; {name} is {kind}" for name, kind in names.others)
    if not frames:
        return
    empty = sum(not len(objects) for objects in of_frame.values())
    if empty:
        begin = "warning: " if empty == len(frames) else ""
        yield f"{begin}{empty} of {len(frames)} label files hold no object"
    objects = Inventory.joined(of_frame.values())
    width = picture_size(frame_file(folder, "image_2", frames[0]))[0]
    scale = fitting_height_scale(width)
    drops = objects.unseen(scale)
    for number, name in enumerate(names.names):
        of_class = objects.label == number
        counts = {reason: int((mask & of_class).sum()) for reason, mask in drops.items()}
        total, dropped = int(of_class.sum()), sum(counts.values())
        why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        if total:
            begin = "warning: " if dropped == total else ""
            yield f"{begin}{name}: {total - dropped} of {total} objects can be learnt from pictures" + (
                f" ({why})" if why else ""
            )
    if scale < 1:
        yield (
            f"pictures are {width} px wide: counted with least heights of {scale} of KITTI's, "
            f"train counts so with {SCALE_OPTION} {scale}"
        )


def _of_classes(objects: Inventory, names: LabelNames) -> int:
    """How many objects are of the set's own classes, which detectors look for."""
    return sum(names.names[label] in names.classes for label in objects.label.tolist())


def _frames(root: Path, part: str, objects: Mapping[str, int]) -> Iterator[str]:
    """Frames and splits of a folder; ``objects`` says how many the frames with labels have."""
    folder = root / part
    present = {kind: set(found) for kind, found in present_files(folder).items()}
    frames = present["image_2"]
    sizes = Counter(picture_size(frame_file(folder, "image_2", frame)) for frame in sorted(frames))
    shown = ", ".join(f"{count} of {w} x {h} px" for (w, h), count in sizes.most_common(3))
    more = f" and {len(sizes) - 3} sizes more" if len(sizes) > 3 else ""
    yield f"{part}: {len(frames)} frames, {shown}{more}"
    lacking = {"velodyne": "scan", "label_2": "label file"} if part == "training" else {"velodyne": "scan"}
    for kind, what in lacking.items():
        count = len(frames - present.get(kind, set()))
        if count:
            yield f"{part}: {count} of {len(frames)} frames have no {what}"
    for path in sorted((root / "ImageSets").glob("*.txt")):
        split = read_split(path)
        if frames.issuperset(split):
            labelled = [frame for frame in split if frame in objects]
            count = sum(objects[frame] for frame in labelled)
            begin = "warning: " if labelled and not count else ""
            told = f", {count} objects" if labelled else ""
            yield f"{begin}split {path.stem}: {len(split)} frames{told}"
