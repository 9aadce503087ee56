"""The two sizes of the benchmark: what a laptop does in three hours, and what a GPU does in twenty-five minutes."""

from __future__ import annotations

from dataclasses import dataclass

#: Of the groups with few labels: frames that have some, and frames that have none.
FEW, MANY = 100, 1600


@dataclass(frozen=True)
class Size:
    """How much of everything. Frames are images with a scan; drives are scenes of ``drive_frames`` key frames."""

    name: str
    seeds: int  # of the group with our recipe and the controls, and at most of the table's other groups
    other_seeds: int  # that the other groups are asked for, so that the whole table takes no longer than promised
    search_seeds: int  # of the search, with other training frames than the table's
    frames: int  # that a seed of the camera family learns from
    bev_frames: int  # the same of the bird's-eye-view family, whose steps take longer
    sweep: tuple[int, ...]  # other training-set sizes, at about as many steps
    val_frames: int  # for the search
    test_frames: int  # of each half, familiar and unfamiliar
    drives: int  # scenes that a seed of the surround family learns from
    drive_frames: int
    test_drives: int  # of each half
    epochs: float  # times those of the presets
    drive_epochs: float  # the same of the surround family
    side_by_side: int  # processes at a time
    promise: str  # how long it takes, and on what

    @property
    def has_many(self) -> bool:
        """Whether the pool holds enough for the groups with few labels."""
        return self.pool >= self.seeds * FEW + MANY

    @property
    def pool(self) -> int:
        """Training frames in all: each seed's own, and enough for the largest of the sweep."""
        return max(*self.sweep, (self.seeds + self.search_seeds) * max(self.frames, self.bev_frames))


SIZES = {
    size.name: size
    for size in (
        Size("cpu", seeds=3, other_seeds=2, search_seeds=3, frames=400, bev_frames=250, sweep=(100, 1600),
             val_frames=150, test_frames=100, drives=20, drive_frames=6, test_drives=8, epochs=0.5, drive_epochs=0.8,
             side_by_side=2,
             promise="within 3 hours on two CPU cores"),
        Size("gpu", seeds=5, other_seeds=3, search_seeds=5, frames=400, bev_frames=400, sweep=(100, 1600),
             val_frames=300, test_frames=250, drives=30, drive_frames=8, test_drives=15, epochs=1.0, drive_epochs=1.0,
             side_by_side=12,
             promise="within 25 minutes on one H100"),
    )
}  # fmt: skip
