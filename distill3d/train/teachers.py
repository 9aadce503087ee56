"""Frozen teachers: loading them, keeping them frozen, refusing those that saw the answers, caching what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from distill3d.boxes import Boxes3D
from distill3d.data.augment.image import AugmentConfig
from distill3d.data.autolabels import labeller_of
from distill3d.data.batching import picked
from distill3d.data.kitti.raw import OBJECT_ID, RAW_IDENTITY, RawMapping, drive_of, is_raw_id
from distill3d.data.sample import Batch
from distill3d.data.surround import SurroundBatch
from distill3d.detectors.base import Detector, FeatureMap, Outputs
from distill3d.distill.context import detached
from distill3d.errors import UserError
from distill3d.train.checkpoint import load_detector

#: Bytes of answers that a teacher may keep.
REMEMBERED_BYTES = 4 * 2**30
#: A frame's answers: plain and mirrored.
FORMS = 2
#: Stands for every frame of a data set.
ANY = "*"
#: How a card's raw frames begin.
RAW_PREFIX = f"{RAW_IDENTITY}/"


def trained_on(identity: str, frame_ids: list[str], teachers: list[dict]) -> dict:
    """What a card says of the frames behind a model's weights: its own and, through distillation, its teachers'.

    Frames are listed under the data set's identity, those of KITTI's raw drives under ``kitti-raw`` whatever it is.
    """
    own = {listed(identity, frame) for frame in frame_ids}
    frames = sorted(own.union(*(t["frames"] for t in teachers)))
    digest = hashlib.sha256("\n".join(frames).encode()).hexdigest()
    return {"identity": identity, "count": len(frames), "sha256": digest, "frames": frames}


def any_frame_of(identity: str) -> dict:
    """What a card says of weights whose training frames are not known: they may be any of the data set's."""
    return {"identity": identity, "frames": [listed(identity, ANY)]}


def refuse_overlap(
    card: dict, where: str, identity: str, eval_ids: list[str], allowed: bool, mapping: RawMapping | None = None,
    scenes: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Refuses weights whose training frames are among those to be evaluated; ``scenes`` are those of the latter, by
    which cards of imported weights may list their frames.

    Training frames of KITTI's raw drives are refused where an evaluation frame comes from the same drive: its
    neighbours are near copies.  What the evaluation frames are among the raw ones only ``mapping`` can tell, so without
    it raw training frames are refused as soon as the evaluation frames are named as those of the object data are.

    Raises:
        UserError: there is an overlap, or it cannot be ruled out, and it was not allowed.
    """
    if allowed:
        return
    seen = set(card["trained_on"]["frames"])
    if listed(identity, ANY) in seen:
        raise UserError(
            f"{where} may have been trained on any frame of {identity}, for nothing tells on which: import it with "
            "--trained-on and the file of its training split, or allow it with --allow-overlap"
        )
    overlap = sorted(
        listed(identity, frame)
        for frame in eval_ids
        if listed(identity, frame) in seen or listed(identity, scenes.get(frame, frame)) in seen
    )
    if overlap:
        raise UserError(
            f"{where} was trained on {len(overlap)} of the {len(eval_ids)} evaluation frames ({overlap[0]}, ...): "
            "choose another split, or allow it with --allow-overlap; if these are frames of another data set that only "
            "have the same names, give this one a name of its own with --dataset.identity (eval run: --identity)"
        )
    raw = [frame.removeprefix(RAW_PREFIX) for frame in seen if frame.startswith(RAW_PREFIX)]
    objects = [frame for frame in eval_ids if OBJECT_ID.fullmatch(frame)]
    if not raw or not objects:
        return
    if mapping is None:
        raise UserError(
            f"{where} was trained on KITTI's raw drives ({len(raw)} of its {len(seen)} frames), and only the mapping "
            "from object to raw frames can prove that they are not those of the evaluation: give the folder of "
            "train_mapping.txt and train_rand.txt as --dataset.unlabelled.mapping, or allow it with --allow-overlap"
        )
    drives = mapping.drives(objects)
    leaks = sorted(frame for frame in raw if drive_of(frame) in drives)
    if leaks:
        raise UserError(
            f"{where} was trained on drives from which evaluation frames come ({len(leaks)} of its {len(raw)} raw "
            f"frames, such as {RAW_PREFIX}{leaks[0]}): leave these drives out of the list of raw frames (clean_frames "
            "in distill3d.data.kitti.raw does), or allow it with --allow-overlap"
        )


def refuse_own_labels(root: Path, eval_ids: list[str], allowed: bool) -> None:
    """Refuses to evaluate by labels that a detector wrote.

    Raises:
        UserError: it did (data/autolabels.py), and that was not allowed.
    """
    labeller = None if allowed else labeller_of(root, eval_ids)
    if labeller is not None:
        raise UserError(
            f"{root}: frames of the evaluation were labelled by stage {labeller['stage']!r} of {labeller['recipe']!r}, "
            "not by people: choose a split with true labels, or allow it with --allow-overlap"
        )


def listed(identity: str, frame: str) -> str:
    """A frame as cards list it."""
    return f"{RAW_PREFIX}{frame}" if is_raw_id(frame) else f"{identity}/{frame}"


class Teacher(nn.Module):
    """A frozen detector that answers batches; not a part of the student's checkpoint.

    ``batch_norm`` is ``eval``, or ``train`` to reproduce released code that left its teachers in train mode.
    With ``repeatable`` augmentation (nothing but mirroring moves pixels) each frame's answer is computed once and kept:
    one image at a time, so that it does not depend on the batch it first appeared in.  Where the answers to all
    ``frames`` would take more than ``REMEMBERED_BYTES``, judged by the first, none is kept.
    """

    def __init__(self, path: Path, batch_norm: str = "eval", repeatable: bool = False, frames: int = 0) -> None:
        super().__init__()
        detector, self.card = load_detector(path)
        self.detector: Detector = detector.requires_grad_(False)
        self.batch_norm = batch_norm
        self._answers: dict[tuple[str, bool], Outputs] | None = {} if repeatable and batch_norm == "eval" else None
        # Windows and colours of pictures do not change what a scan holds.
        keeps = repeatable or self.detector.config.input == "points"
        self._boxes: dict[tuple[str, bool], Boxes3D] | None = {} if keeps else None
        self._frames = frames
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays as frozen as it was made, whatever ``mode``."""
        super().train(False)
        self.detector.train(self.batch_norm == "train")
        return self

    @torch.no_grad()
    def forward(self, batch: Batch | SurroundBatch, targets: Any) -> Outputs:
        """The teacher's outputs at the student's ``targets``, cut from the graph."""
        if self._answers is None or isinstance(batch, SurroundBatch):
            return detached(self.detector.forward_at(batch, targets))
        if not self._answers and not self._fits(self._answer(batch, targets, 0)):
            self._answers = None
            return detached(self.detector.forward_at(batch, targets))
        keys = list(zip(batch.frame_ids, _mirrored(batch), strict=True))
        for i, key in enumerate(keys):
            if key not in self._answers:
                self._answers[key] = self._answer(batch, targets, i)
        return _join([self._answers[key] for key in keys])

    @torch.no_grad()
    def detect(self, batch: Batch, rows: list[int]) -> list[Boxes3D]:
        """What the teacher, in eval mode, finds in some images of the batch: boxes in the camera frame of their files,
        on the CPU.  Where a frame takes few forms they are found once for each, and kept."""
        mirrored = _mirrored(batch)
        keys = [(batch.frame_ids[row], mirrored[row]) for row in rows]
        kept = self._boxes if self._boxes is not None else {}
        missing = [i for i, key in enumerate(keys) if key not in kept]
        # One by one where they are kept, so that they do not depend on the batch in which a frame first appeared.
        groups = [[i] for i in missing] if self._boxes is not None else [missing] * bool(missing)
        found: dict[tuple[str, bool], Boxes3D] = {}
        self.detector.eval()
        for group in groups:
            part = replace(picked(batch, [rows[i] for i in group]), objects=None, labelled=None)
            outputs = self.detector(part)
            with torch.autocast(batch.image.device.type, enabled=False):
                boxes = self.detector.decode(outputs, part)
            found |= {keys[i]: one.to("cpu") for i, one in zip(group, boxes, strict=True)}
        self.train()
        kept |= found
        return [kept[key] for key in keys]

    def _answer(self, batch: Batch, targets: Any, i: int) -> Outputs:
        return detached(self.detector.forward_at(single(batch, i), picked(targets, [i])))

    def _fits(self, answer: Outputs) -> bool:
        """Whether the answers to all frames can be kept if they are as large as this one."""
        tensors = [*(f.tensor for f in answer.features.values()), *answer.predictions.values()]
        return FORMS * self._frames * sum(t.numel() * t.element_size() for t in tensors) <= REMEMBERED_BYTES


def is_repeatable(augment: AugmentConfig | None, modality: str) -> bool:
    """Whether a frame takes at most two forms, plain and mirrored, in the eyes of a teacher with this input."""
    if augment is None:
        return modality != "rgb+object_depth"
    if augment.paste is not None or modality == "rgb+object_depth":  # what is pasted differs; labels are not kept
        return False
    recoloured = augment.photometric or augment.distortion is not None
    return augment.crop == 0 and not (modality.startswith("rgb") and recoloured)


def _mirrored(batch: Batch) -> list[bool]:
    return batch.affine.flip.tolist() if batch.mirrored is None else batch.mirrored


def single(batch: Batch, i: int) -> Batch:
    """Image ``i`` of a batch as a batch of its own, without its labels."""
    return replace(picked(batch, [i]), objects=None, labelled=None)


def _join(answers: list[Outputs]) -> Outputs:
    def cat(tensors: list[Tensor]) -> Tensor:
        memory_format = torch.channels_last if tensors[0].dim() == 4 else torch.contiguous_format
        return torch.cat(tensors).contiguous(memory_format=memory_format)

    features = {
        name: FeatureMap(cat([a.features[name].tensor for a in answers]), first.geometry)
        for name, first in answers[0].features.items()
    }
    return Outputs(features, {name: cat([a.predictions[name] for a in answers]) for name in answers[0].predictions})
