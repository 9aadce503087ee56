"""From the released names to ours and back."""

from pathlib import Path

import torch
from made_checkpoints import listing, weights_of

from distill3d.detectors.released import from_released, plain_names, to_released
from distill3d.published.importing import fitted
from distill3d.published.systems import SYSTEMS


def check_round_trip(path: Path, system: str, part: str) -> None:
    """Nothing that has a place here is lost, and what is written is what the authors' loader asks for."""
    theirs, of = plain_names(weights_of(path)), SYSTEMS[system].parts[part]
    taken = fitted(theirs, of, torch.float64)[2]
    form = of.form(taken.config)
    back = to_released(taken.weights, form, taken.config)
    asked = {name: tuple(shape) for name, shape in listing(path)["state"].items()}
    assert {name: tuple(value.shape) for name, value in back.items()} == asked
    for name in theirs.keys() - form.unused.keys():
        torch.testing.assert_close(back[name].double(), theirs[name].double(), rtol=1e-6, atol=0, msg=name)
    again = from_released(back, form, taken.weights, taken.config)
    assert again.config == taken.config and again.dropped.keys() == taken.dropped.keys()
    assert again.weights.keys() == taken.weights.keys()
    assert all(torch.equal(again.weights[name], value) for name, value in taken.weights.items())
