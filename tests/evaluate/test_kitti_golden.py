"""The whole evaluation against the recorded output of the official C++ program."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden import golden_root

from distill3d.evaluate.kitti import evaluate_folders

AP_TOLERANCE = 0.01  # percent
PRECISION_TOLERANCE = 1e-3
DIFFICULTIES = 3

ROOT = golden_root()
if ROOT is None:
    pytest.skip("no recorded results (set DISTILL3D_GOLDEN)", allow_module_level=True)
SETS = sorted(folder for folder in (ROOT / "kitti_eval").glob("*") if folder.is_dir())


@pytest.mark.golden
@pytest.mark.parametrize("folder", SETS, ids=[f"kitti_eval/{folder.name}" for folder in SETS])
def test_equals_the_official_program(folder: Path) -> None:
    ours = evaluate_folders(folder / "label_2", folder / "pred").to_json()
    for overlap, file in (("strict", "official.json"), ("loose", "official_loose.json")):
        official = json.loads((folder / file).read_text())
        # The official program leaves out what it does not evaluate; we say zero.
        assert set(official) <= set(ours[overlap])
        for key, values in ours[overlap].items():
            expected = official.get(key, {"AP_R40": [0.0] * 3, "precision41": np.zeros((3, 41))})
            curve = np.array(expected["precision41"], dtype=float)
            if curve.shape[0] != DIFFICULTIES:  # one row per recall point: recall, easy, moderate, hard
                curve = curve[:, -DIFFICULTIES:].T
            np.testing.assert_allclose(values["AP_R40"], expected["AP_R40"], rtol=0, atol=AP_TOLERANCE, err_msg=key)
            np.testing.assert_allclose(
                values["precision41"], curve, rtol=0, atol=PRECISION_TOLERANCE, err_msg=f"{overlap} {key}"
            )
