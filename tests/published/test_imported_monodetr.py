"""Imported MonoDETR answers as the authors' code does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import constants, golden_file
from made_checkpoints import imported, input_of, recorded
from round_trip import check_round_trip
from test_dla_golden import close, rows
from torch import nn

from distill3d.camera import Camera, ImageAffine
from distill3d.data.sample import Batch
from distill3d.detectors import build_detector, monodetr
from distill3d.detectors.monodetr import HEAT_CLASSES, RELEASED_BINS, MonoDETR
from distill3d.detectors.monodle import RGB_MEAN, RGB_STD
from distill3d.detectors.released import from_released, to_released
from distill3d.errors import UserError

#: Relative to the largest value: sine positions without the released 1e-6 in their normalisation differ by 1e-7.
TOLERANCE = 1e-6
#: The heads' names in the recording.
NAMES = {"logits": "logits", "boxes": "boxes", "size_3d": "3d_dim", "heading": "angle", "depth": "depth"}


def results_of(modules: Iterable[nn.Module]) -> list[Any]:
    """What each of the modules gives in the passes that follow, in their order."""
    found: list[Any] = []
    for module in modules:
        module.register_forward_hook(lambda _, __, result: found.append(result))
    return found


@pytest.mark.golden
@torch.no_grad()
@golden_file("released/monodetr/whole_forward")
def test_whole_network(path: Path, tmp_path: Path) -> None:
    g, about = recorded(path), constants(path)
    detector = imported(
        path, "monodetr", "student", tmp_path, classes=HEAT_CLASSES, top_k=about["topk"],
        score_threshold=float(g["in.threshold"]),
    )  # fmt: skip
    assert isinstance(detector, MonoDETR)
    n, size = about["B"], (about["W"], about["H"])
    given = input_of(path, (n, 3, *reversed(size)))
    close(given.flatten()[:8], g["in.input_first8"], 1e-12)
    mean, std = (given.new_tensor(v)[:, None, None] for v in (RGB_MEAN, RGB_STD))
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64).expand(n, 2, 3)
    affine = ImageAffine(identity, torch.zeros(n, dtype=torch.bool), torch.ones(n).double(),
                         g["in.img_size"].double(), torch.tensor(size).double().expand(n, 2))  # fmt: skip
    batch = Batch([str(i) for i in g["in.img_id"].tolist()], given * std + mean, Camera(g["in.P2"]), affine)

    found = [results_of(modules) for modules in ([detector.depth_predictor], [detector.encoder[-1]], detector.decoder)]
    outputs = detector(batch)
    ((_, depth, _),), (memory,), contents = found
    close(depth, g["out.weighted_depth"], TOLERANCE)
    close(memory.mean(-1), g["out.memory_token_mean"], TOLERANCE)
    close(memory.mean(1), g["out.memory_channel_mean"], TOLERANCE)
    close(torch.stack(contents).mean(-1), g["out.hs_mean"], TOLERANCE)
    for i, tap in enumerate(("backbone_8", "backbone_16", "backbone_32")):
        close(outputs.features[tap].tensor.mean((2, 3)), g[f"out.trunk_{i}_channel_mean"], TOLERANCE)
    close(outputs.predictions["depth_map"], g["out.pred_depth_map_logits"], TOLERANCE)
    last = len(detector.decoder) - 1
    for head, name in NAMES.items():
        for layer in range(last + 1):
            expected = g[f"out.pred_{name}" if layer == last else f"out.aux{layer}.pred_{name}"]
            close(outputs.predictions[head][:, layer], expected, TOLERANCE)

    ranked = monodetr.rank_queries({head: outputs.predictions[head][:, -1] for head in NAMES}, about["topk"])
    low, high = monodetr.box_corners(ranked.boxes).split(2, dim=-1)
    dets = torch.cat(
        (ranked.label[..., None], ranked.score[..., None], (low + high) / 2, high - low, ranked.depth[..., None],
         ranked.heading, ranked.size_3d, ranked.boxes[..., :2], ranked.confidence[..., None]), dim=-1,
    )  # fmt: skip
    close(dets, g["out.dets"], TOLERANCE)
    order = [int(i) for image in g["in.img_id"] for i in (g["out.rows"][:, 0] == image).nonzero()]
    close(rows(g["in.img_id"], detector.decode(outputs, batch)), g["out.rows"][order], TOLERANCE)


@pytest.mark.golden
@golden_file("released/monodetr/whole_forward")
def test_round_trip(path: Path) -> None:
    check_round_trip(path, "monodetr", "student")


def test_the_code_of_2022_is_another_network() -> None:
    """It had one group of queries, and plain self-attention without projections of content and position."""
    config = monodetr.tiny()
    own, form = build_detector(config).state_dict(), monodetr.released_form(config)
    old = {name: value for name, value in to_released(own, form, config).items() if ".sa_" not in name}
    old["query_embed.weight"] = old["query_embed.weight"][: config.queries]
    with pytest.raises(UserError, match="lacks .*decoder.layers.0.sa_.* more; query_embed.weight has the shape"):
        from_released(old, form, own, config)


def test_other_bins_are_refused() -> None:
    config = monodetr.tiny()
    own, form = build_detector(config).state_dict(), monodetr.released_form(config)
    theirs = to_released(own, form, config)
    assert from_released(theirs, form, own, config).config == config
    with pytest.raises(UserError, match="max_depth 60"):
        from_released(theirs | {RELEASED_BINS: theirs[RELEASED_BINS] * 1.1}, form, own, config)


def test_projected_values_are_weights() -> None:
    config = monodetr.tiny(self_attention_value="projected")
    own, form = build_detector(config).state_dict(), monodetr.released_form(config)
    theirs = to_released(own, form, config)
    name = "depthaware_transformer.decoder.layers.0.sa_v_proj.weight"
    assert torch.equal(theirs[name], own["decoder.0.value.weight"])
    taken = from_released(theirs, form, own, config)
    assert all(torch.equal(taken.weights[n], value) for n, value in own.items())
