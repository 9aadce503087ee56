"""Weights that image networks start from, learned on ImageNet or COCO: fetched, or from a file."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from torch import nn

from distill3d.errors import UserError

#: ImageNet statistics of RGB in 0..1.
RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
#: Seconds after which a server counts as out of reach.
PATIENCE = 5.0


def timm_trunk(name: str, pretrained: bool, weights: Path | None, **settings: Any) -> Any:
    """One of timm's networks as maps; with ``pretrained`` its weights are fetched, or read from the file ``weights``.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    import timm

    fetched = pretrained and weights is None
    try:
        network = timm.create_model(name, features_only=True, pretrained=fetched, **settings)
    except Exception as error:  # of a download anything
        if not fetched:
            raise
        raise UserError(f"the weights of {name} cannot be fetched: {error}") from error
    if pretrained and weights is not None:
        load_file(network, weights)
    return network


def load_file(network: nn.Module, weights: Path) -> None:
    """Fills a network from a file of a state dict, which may hold more, a classifier for instance.

    Raises:
        UserError: it cannot be read, or lacks a weight of the network's.
    """
    import safetensors.torch
    import torch

    try:
        if weights.suffix == ".safetensors":
            found = safetensors.torch.load_file(weights)
        else:
            found = torch.load(weights, map_location="cpu", weights_only=True)
        network.load_state_dict({name: found[name] for name in network.state_dict()})
    except Exception as error:  # there is no list of what unpickling raises
        raise UserError(f"{weights}: is no file of this network's weights: {type(error).__name__}: {error}") from error


def missing_of_timm(name: str, weights: Path | None) -> str | None:
    """Why the weights of one of timm's networks cannot be had, from the file ``weights`` or where that is None from
    their server; None where they are there already, or in reach."""
    if weights is not None:
        return _missing_file(weights)
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if repository and isinstance(try_to_load_from_cache(repository.strip("/"), constants.SAFETENSORS_SINGLE_FILE), str):
        return None
    return _missing_at(constants.ENDPOINT)


def missing_of_torchvision(name: str, weights: Path | None) -> str | None:
    """``missing_of_timm`` of one of torchvision's networks."""
    if weights is not None:
        return _missing_file(weights)
    import torch
    from torchvision.models import get_model_weights

    url = get_model_weights(name)["DEFAULT"].url
    there = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    return None if there.is_file() else _missing_at(url)


def _missing_at(url: str) -> str | None:
    """Why a server cannot be asked."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return None  # it answers
    except (OSError, ValueError) as error:
        return f"{url.split('/')[2]} is out of reach: {getattr(error, 'reason', error)}"
    return None


def _missing_file(weights: Path) -> str | None:
    return None if weights.is_file() else f"{weights} is no file"
