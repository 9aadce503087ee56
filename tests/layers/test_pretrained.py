"""Weights learned on other pictures: from a file, or refused at once where they cannot be fetched."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from streets import CANVAS
from torchvision.models import segmentation

from distill3d.detectors.caddn import DeepLabTrunk, DepthTrunkConfig
from distill3d.errors import UserError
from distill3d.layers.image.dla import DLAConfig, dla_trunk
from distill3d.layers.image.resnet import RESNET101, ResNet, ResNetConfig
from distill3d.recipes import get_recipe
from distill3d.train.loop import RunOptions
from distill3d.train.stages import run_recipe


def test_a_file_of_timms_weights(tmp_path: Path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model("dla34")
    torch.save(whole.state_dict(), tmp_path / "dla34.pth")
    config = DLAConfig(pretrained=True, weights=tmp_path / "dla34.pth")
    assert config.missing() is None
    trunk, theirs = dla_trunk(config).state_dict(), whole.state_dict()
    assert len(trunk) > 100 and all(torch.equal(value, theirs[name]) for name, value in trunk.items())
    other = timm.create_model("resnet18")
    torch.save(other.state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="resnet18.pth: is no file of this network's weights"):
        dla_trunk(replace(config, weights=tmp_path / "resnet18.pth"))
    assert replace(config, weights=tmp_path / "absent").missing() == f"{tmp_path / 'absent'} is no file"


def test_a_file_of_resnets_weights(tmp_path: Path) -> None:
    whole = timm.create_model("resnet50")
    torch.save(whole.state_dict(), tmp_path / "resnet50.pth")
    body = ResNet(ResNetConfig(pretrained=True, weights=tmp_path / "resnet50.pth")).body.state_dict()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in body.items())


def test_a_file_of_deeplabs_weights(tmp_path: Path) -> None:
    whole = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    torch.save(whole.state_dict(), tmp_path / "deeplab.pth")
    config = DepthTrunkConfig(pretrained=True, weights=tmp_path / "deeplab.pth")
    trunk = DeepLabTrunk(config, 10).backbone.state_dict()
    assert all(torch.equal(value, whole.backbone.state_dict()[name]) for name, value in trunk.items())
    (tmp_path / "deeplab.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="deeplab.pth: is no file"):
        DeepLabTrunk(config, 10)


def test_a_recipe_that_cannot_have_them_stops_at_once(
    streets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the options; nothing is written."""
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    recipe = get_recipe("monodle")
    data = replace(recipe.dataset, root=streets, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242)
    options = RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, accelerator="cpu")
    small = tuple(replace(s, schedule=replace(s.schedule, batch_size=4)) for s in recipe.stages)
    with pytest.raises(UserError, match=r"'baseline' starts .* 127.0.0.1:9 is out of reach.*trunk.weights FILE"):
        run_recipe(replace(recipe, stages=small, dataset=data), options)
    assert not (tmp_path / "runs").exists()
    assert ResNetConfig(layers=RESNET101, pretrained=True).missing() is not None
    assert ResNetConfig().missing() is None and DLAConfig().missing() is None
    assert DepthTrunkConfig(network="small", pretrained=True).missing() is None
