"""What there is to learn: the labelled objects of a split by class, less those that a detector's rules drop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from distill3d.data.kitti.inventory import Inventory
from distill3d.data.nuscenes.dataset import CLASS_OF_CATEGORY, NuScenesDataset
from distill3d.detectors import DetectorConfig, labels_of
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.bevdet import BEVDetConfig
from distill3d.detectors.bevformer import BEVFormerConfig
from distill3d.detectors.bevfusion import BEVFusionConfig
from distill3d.detectors.caddn import CaDDNConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.detectors.label_encoder import LabelEncoderConfig
from distill3d.detectors.monodetr import MonoDETRConfig
from distill3d.detectors.monodle import MonoDLEConfig
from distill3d.detectors.pointpillars import PointPillarsConfig
from distill3d.detectors.second import SECONDConfig
from distill3d.errors import UserError

#: Of fewer objects of a class all may well be too far or hidden: nobody is kept from training on the other classes.
FEW = 10


@dataclass(frozen=True)
class ClassCount:
    """What there is of one class that is trained."""

    name: str
    all: int
    left: int  # that are learnt from
    dropped: dict[str, int]  # the others by reason

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        return f"{self.left} of {self.all} {self.name}" + (f" ({reasons})" if reasons else "")


def kitti_counts(config: DetectorConfig, objects: Inventory, height_scale: float) -> list[ClassCount]:
    """The classes that a detector is trained on in KITTI's layout."""
    names = labels_of(config)
    if isinstance(config, MonoDLEConfig | MonoDETRConfig):
        classes, drops = config.classes, objects.unseen(height_scale)
        near, far = config.depth_range
        depth = objects.centre[:, 2]
        drops[f"outside {near:g} to {far:g} m of depth"] = (depth < near) | (depth > far)
    elif isinstance(config, SECONDConfig | PointPillarsConfig | CaDDNConfig):
        classes = tuple(kind.name for kind in config.head.classes)
        grid = config.pillars if isinstance(config, PointPillarsConfig) else config.voxels
        # A corner inside is enough, wherever the box turns.
        reach = np.linalg.norm(objects.size, axis=1) / 2
        low, high = np.array(grid.extent[:3]), np.array(grid.extent[3:])
        inside = (objects.lidar_centre + reach[:, None] >= low) & (objects.lidar_centre - reach[:, None] <= high)
        drops = {"outside the ground that it looks at": ~inside.all(1)}
    else:
        return []
    return _counts(classes, names, objects.label, drops)


def nuscenes_counts(config: DetectorConfig, data: NuScenesDataset) -> list[ClassCount]:
    """The classes that a detector is trained on in nuScenes' layout.

    Raises:
        UserError: a class has no objects, but a category of about its name, unknown to nuScenes, has some.
    """
    if isinstance(config, BEVFormerConfig):
        classes, (x0, y0, _, x1, y1, _) = config.classes, config.grid.extent
    elif isinstance(config, BEVDepthConfig | BEVDetConfig | BEVFusionConfig | CenterPointConfig | LabelEncoderConfig):
        classes, (x0, y0, x1, y1) = config.head.classes, config.head.extent
    else:
        return []
    objects = data.inventory()
    x, y = objects.centre[:, 0], objects.centre[:, 1]
    drops = {
        "without LiDAR or radar points": objects.points < data.config.min_points,
        "outside the ground that it looks at": (x < x0) | (x > x1) | (y < y0) | (y > y1),
    }
    counts = _counts(classes, data.classes, objects.label, drops)
    own = data.own_categories()
    for count in counts:
        near = [name for name in own if count.name in name or name in count.name]
        if not count.all and near:
            raise UserError(
                f"{data.tables.folder / 'category.json'}: {near[0]!r} is no category of nuScenes', so its "
                f"{own[near[0]]} objects are not learnt, and there is no other {count.name}: expected "
                f"{' or '.join(c for c, name in CLASS_OF_CATEGORY.items() if name == count.name)}"
            )
    return counts


def _counts(
    trained: Sequence[str], known: Sequence[str], label: np.ndarray, drops: dict[str, Bool[np.ndarray, " n"]]
) -> list[ClassCount]:
    counts = []
    for name in trained:
        left = label == known.index(name) if name in known else np.zeros(len(label), bool)
        total, dropped = int(left.sum()), {}
        for reason, mask in drops.items():
            dropped[reason] = int((left & mask).sum())
            left = left & ~mask
        counts.append(ClassCount(name, total, int(left.sum()), dropped))
    return counts


def refuse_nothing(stage: str, split: str, counts: Sequence[ClassCount]) -> Iterator[str]:
    """Warnings of classes that are not learnt.

    Raises:
        UserError: no class has an object to learn from, or all objects of a class, and not just a few, are dropped.
    """
    if not any(count.left for count in counts):
        raise UserError(f"stage {stage!r} has nothing to learn from in split {split!r}: {', '.join(map(str, counts))}")
    for count in counts:
        if count.left == 0 and count.all >= FEW:
            raise UserError(f"stage {stage!r} has nothing to learn {count.name} from in split {split!r}: {count}")
        if count.left == 0:
            why = f"all are dropped: {count}" if count.all else "there is none"
            yield f"stage {stage!r} learns no {count.name} from split {split!r}: {why}"
