"""Checkpoints that are never half-written nor damaged without a word, and weights that can be shared.

``last.ckpt`` holds the state of training and is read with ``weights_only``, so it cannot run code.
``model.safetensors`` holds the weights alone, with the card in its header, so that one file suffices.  Both carry a
checksum of all that they hold, which is tested before anything in them is used (train/seal.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from distill3d.data.pictures import ENDINGS
from distill3d.detectors import DetectorConfig, build_detector, detector_entry
from distill3d.detectors.base import Detector
from distill3d.errors import UserError
from distill3d.files import at_once, decoded, parse_json, read_bytes, reason_of, write_atomically
from distill3d.settings import from_plain, to_plain
from distill3d.shipped import SHIPPED, shipped_or_path
from distill3d.train import seal
from distill3d.train.card import CARD, parse_card, require, runs_inside, write_card

WEIGHTS, STATE = "model.safetensors", "last.ckpt"
#: The state before ``last.ckpt``, kept until the stage is finished.
PREVIOUS = "previous.ckpt"
#: What to do about weights that are not as they were written.
UNDAMAGED = f"expected a {WEIGHTS} as distill3d wrote it; take an undamaged copy, or train the stage again"


# -------------------------------------------------------------------------------------------------------------- states


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values of a training state, atomically and with a checksum; the one before becomes
    ``previous.ckpt``.

    Raises:
        UserError: the file cannot be written.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # of torch's writer, whatever the system said to it
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
        seal.seal_archive(part)
        if path.exists():
            _keep(path, path.with_name(PREVIOUS))

    write_atomically(path, write)


def _keep(path: Path, name: Path) -> None:
    """Gives a file that is about to be replaced another name."""
    try:
        name.unlink(missing_ok=True)
        os.link(path, name)
    except OSError:  # a file system without hard links; for a moment there is the state before alone
        path.replace(name)


def last_state(folder: Path) -> Path | None:
    """The file from which a stage goes on; None where it begins."""
    return next((folder / name for name in (STATE, PREVIOUS) if (folder / name).exists()), None)


#: Of files that are not this library's.
#: What stands for a trained detector.
EXPECTED = f"a stage folder, a {WEIGHTS} or a shipped student ({', '.join(SHIPPED)})"
OTHERS = "expected one of distill3d, which distill3d import makes of authors' checkpoints"


def way_out(path: Path) -> str:
    """What to do about a state that cannot be used, for the end of a sentence."""
    previous = path.with_name(PREVIOUS)
    if path.name == STATE and previous.exists():
        return f"remove it, and training goes on from the state before, {previous.name}"
    return "remove it, and training begins anew" if path.name in (STATE, PREVIOUS) else OTHERS


def load_state(path: Path) -> dict[str, Any]:
    """What ``save_state`` wrote.

    Raises:
        UserError: the file is damaged, was not written by ``save_state``, or holds anything but tensors and plain
            values; nothing in it is executed.
    """
    try:
        with open(path, "rb", opener=at_once) as file:
            seal.test_archive(file)
            file.seek(0)
            state = _tensors_of(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {reason_of(error)}") from None
    except seal.Damaged as reason:
        raise UserError(f"{path}: {reason}, and was not loaded: {way_out(path)}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__} in place of a training state: {way_out(path)}")
    return state


def _tensors_of(file: IO[bytes]) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # there is no list of what unpickling raises
        raise seal.Damaged("holds more than tensors") from None


# ------------------------------------------------------------------------------------------------------------- weights


def save_weights(folder: Path, weights: dict[str, Tensor], card: dict[str, Any]) -> None:
    """``model.safetensors`` with the card in its header, then ``card.json``: its presence says the stage is done.

    Raises:
        UserError: a weight is not finite, or a file cannot be written.
    """
    refuse_not_finite(weights, f"{folder / WEIGHTS} was not written")
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    data = seal.seal_weights(safetensors.torch.save(tensors, {"card": json.dumps(card, indent=1)}))
    write_atomically(folder / WEIGHTS, lambda part: part.write_bytes(data))
    write_card(folder / CARD, card)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and card of a stage folder, of a ``model.safetensors``, or of a shipped student by its name.  Weights of
    half precision, which are for sharing, come as float32.

    Raises:
        UserError: there is no such file, it is none of ours or damaged, or a weight is not finite; of a run's folder
            the sentence names the stages, of a folder of runs those, and of a training that was not finished that.
    """
    given, path = path, weights_file(path)
    if not path.is_file():
        stages = sorted(card.parent.name for card in given.glob(f"*/{CARD}")) if given.is_dir() else []
        if stages:
            raise UserError(
                f"{given}: holds the stages {', '.join(stages)}, give one of them, such as {given / stages[0]}"
            )
        inside = runs_inside(given)
        if inside is not None:
            raise UserError(inside)
        unfinished = [path.parent.name for path in sorted(given.glob(f"*/{STATE}"))]
        if last_state(given) is not None or unfinished:
            of = f"the training of {', '.join(unfinished)}" if unfinished else "its training"
            raise UserError(f"{given}: {of} is not finished (no {WEIGHTS}): the same train command goes on")
        reason = f"holds no {WEIGHTS}" if given.is_dir() else "no such file"
        raise UserError(f"{given}: {reason}, expected {EXPECTED}")
    if path.suffix.lower() in ENDINGS:
        raise UserError(f"{path}: is a picture, expected {EXPECTED}")
    if path.suffix != ".safetensors":
        load_state(path)  # refuses what is damaged or hostile with its own sentence
        raise UserError(
            f"{path}: expected a {WEIGHTS} or the folder that holds it, not a {path.suffix or 'bare'} file: {OTHERS}"
        )
    data = read_bytes(path)
    try:
        seal.test_weights(data)
        weights = safetensors.torch.load(data)
    except seal.Damaged as reason:
        raise UserError(f"{path}: {reason}: {UNDAMAGED}") from None
    except Exception:  # there is no list of what the contents of a foreign file raise
        raise UserError(f"{path}: is no safetensors file: {UNDAMAGED}") from None
    card = parse_json(decoded(seal.header(data), path), path)["__metadata__"].get("card", "")
    refuse_not_finite(weights, str(path))
    weights = {name: value.float() if value.dtype == torch.float16 else value for name, value in weights.items()}
    return weights, parse_card(card, f"{path}: the card in its header")


def weights_file(path: Path) -> Path:
    """The file of a stage folder's or a shipped student's weights; of any other path, itself."""
    path = shipped_or_path(path)
    return path / WEIGHTS if path.is_dir() else path


def weights_sum(path: Path) -> str:
    """SHA-256 of the weights of a stage's folder, a ``model.safetensors``, or a shipped student."""
    return hashlib.sha256(read_bytes(weights_file(path))).hexdigest()


def refuse_not_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Keeps weights from being used or saved of which some are NaN or infinite.

    Raises:
        UserError: there are such; the first is named.
    """
    for name, value in weights.items():
        if not is_finite(value):
            raise UserError(f"{where}: {name} holds values that are not finite: its training has diverged")


def is_finite(value: Tensor) -> bool:
    """Whether all of a tensor's values are finite numbers."""
    if not value.is_floating_point() and not value.is_complex():
        return True
    value = value.float() if value.element_size() == 1 else value
    # The sum, ten times as fast, is finite only if all values are; it may overflow though they are.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def load_detector(path: str | Path, expected: str | None = None) -> tuple[Detector, dict[str, Any]]:
    """A trained detector in eval mode and its card, from a stage folder or a ``model.safetensors``.

    Raises:
        UserError: the file is none of ours, is of another detector than ``expected``, or its weights do not fit.
    """
    path = Path(path)
    weights, card = load_weights(path)
    require(card, path, "detector", "config")
    if expected is not None and card["detector"] != expected:
        raise UserError(f"{path} is of detector {card['detector']!r}, expected {expected!r}")
    shapes = outline(card, str(path))
    refuse_misfit(shapes, weights, str(path))
    detector = build_detector(shapes.config)
    detector.load_state_dict(weights)
    return detector.eval(), card


def looks_around(path: Path) -> bool:
    """Whether the card in the header of a stage's weights is of surround views, by a look at that alone; False where it
    cannot be read, of which ``load_detector`` tells."""
    try:
        with open(weights_file(path), "rb", opener=at_once) as file:
            size = min(int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size)
            return is_surround(json.loads(json.loads(file.read(size))["__metadata__"]["card"]))
    except Exception:  # there is no list of what a foreign file raises
        return False


def is_surround(card: Mapping[str, Any]) -> bool:
    """Whether a card is of a data set in nuScenes' layout."""
    return "version" in card


def outline(card: Mapping[str, Any], where: str) -> Detector:
    """The detector that a card speaks of, without any memory for its weights (device ``meta``).

    Raises:
        UserError: nobody knows the detector, or the settings make none; the sentence begins with ``where``.
    """
    entry = detector_entry(card["detector"], where)
    try:
        config = from_plain(entry.config_type, untrained(card["config"]), where)
        with torch.device("meta"):
            return build_detector(config)
    except UserError:
        raise
    except Exception as error:  # whatever the parts of a detector say to settings that make none
        raise UserError(f"{where}: the settings in its card make no {entry.build.name} ({error})") from None


def untrained(config: dict[str, Any]) -> dict[str, Any]:
    """The settings with no pretrained weights asked for: the checkpoint brings all of them."""
    return {k: untrained(v) if isinstance(v, dict) else (False if k == "pretrained" else v) for k, v in config.items()}


def untrained_detector(config: DetectorConfig) -> DetectorConfig:
    """``untrained`` of a detector's settings."""
    return from_plain(type(config), untrained(to_plain(config)), "")


def load_matching(module: torch.nn.Module, weights: dict[str, Tensor], parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Copies what agrees in name, shape and type, of some ``parts`` (its modules' names) or of all; says how many
    tensors those are, and which of the others there are.

    Returns ``{"taken": count, "left": names in the weights that found no place}``.
    """
    own = module.state_dict()
    alike = {(name, value.shape, value.dtype) for name, value in own.items()}
    begins = tuple(f"{part}." for part in parts) or ("",)
    fits = {
        name: value
        for name, value in weights.items()
        if name.startswith(begins) and (name, value.shape, value.dtype) in alike
    }
    module.load_state_dict(own | fits)
    return {"taken": len(fits), "left": sorted(weights.keys() - fits.keys())}


def load_into(module: torch.nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copies weights into a module.

    Raises:
        UserError: names, shapes or types differ; the first difference is named.
    """
    refuse_misfit(module, weights, where)
    module.load_state_dict(weights)


def refuse_misfit(module: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Compares weights with what a module has.

    Raises:
        UserError: names, shapes or types differ; the first difference is named.
    """
    own = module.state_dict()
    for name in sorted(set(own) | set(weights)):
        if name not in weights:
            raise UserError(f"{where}: lacks {name}, which this detector has")
        if name not in own:
            raise UserError(f"{where}: holds {name}, which this detector does not have")
        if own[name].shape != weights[name].shape:
            shapes = tuple(weights[name].shape), tuple(own[name].shape)
            raise UserError(f"{where}: {name} has shape {shapes[0]}, this detector's is {shapes[1]}")
        if own[name].dtype != weights[name].dtype:
            types = weights[name].dtype, own[name].dtype
            raise UserError(f"{where}: {name} has values of type {types[0]}, this detector's are {types[1]}")
