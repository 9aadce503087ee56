"""The label encoder's network against recorded tensors of the released one (set ``labeldistill``)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import constants, golden_file

from distill3d.detectors.label_encoder import LabelBackbone

#: Of float64.
RELATIVE, ABSOLUTE = 1e-8, 1e-10


@pytest.mark.golden
@golden_file("labeldistill/label_encoder")
def test_levels_and_gradients(path: Path) -> None:
    with np.load(path) as data:
        g = {k: torch.from_numpy(data[k]) for k in data}
    stated = constants(path)
    network = LabelBackbone(
        g["in.label"].shape[-1], stated["hidden"], tuple(stated["out"]), tuple(stated["stride"]), (stated["size"],) * 2
    ).double()
    network.load_state_dict(
        {k: v for k, v in network.state_dict().items() if k.endswith("num_batches_tracked")}
        | {k.removeprefix("param."): v for k, v in g.items() if k.startswith("param.")}
    )
    for mode in ("eval", "train"):
        network.train(mode == "train")
        box, label = (g[f"in.{name}"].clone().requires_grad_() for name in ("box", "label"))
        levels = network.levels(network.embed(box, label))
        for i, level in enumerate(levels):
            torch.testing.assert_close(level, g[f"out.{mode}.level{i}"], rtol=RELATIVE, atol=ABSOLUTE)
        total = torch.stack([(level * g[f"in.cotangent{i}"]).sum() for i, level in enumerate(levels)]).sum()
        for name, gradient in zip(("box", "label"), torch.autograd.grad(total, (box, label)), strict=True):
            torch.testing.assert_close(gradient, g[f"grad.{mode}.{name}"], rtol=RELATIVE, atol=ABSOLUTE)
