"""Cards: read back as written, and refused with one sentence whatever else is in their place."""

import json
from pathlib import Path

import pytest

from distill3d.errors import UserError
from distill3d.train.card import CARD, CHECKSUM, parse_card, read_card, require, write_card

WHOLE = {
    "recipe": "demo", "detector": "monodle", "config": {"trunk": {"levels": [1, 1]}}, "method": None, "seed": 2**64 - 1,
    "canvas": [320, 96], "focal": 186.0, "file_focal": 721, "placement": "fit", "epochs": 3, "note": "naïve",
    "lidar_to_camera": [[1, 0, 0, 0.5]] * 4, "trained_on": {"count": 1, "frames": ["kitti/000001"]}, "own": [1, None],
}  # fmt: skip


def test_a_card_comes_back(tmp_path: Path) -> None:
    write_card(tmp_path / CARD, WHOLE)
    assert read_card(tmp_path / CARD) == WHOLE
    write_card(tmp_path / CARD, json.loads((tmp_path / CARD).read_text()))  # a checksum in it is none of the card's
    assert read_card(tmp_path / CARD) == WHOLE


def test_a_changed_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / CARD
    write_card(path, WHOLE)
    text = path.read_text()
    path.write_text(text.replace("721", "731"))
    with pytest.raises(UserError, match=r"card\.json: was damaged or changed after .* \(its checksum differs\)"):
        read_card(path)
    path.write_text(text.replace("\n", "\n\n"))  # means the same
    assert read_card(path) == WHOLE
    path.write_text(json.dumps(WHOLE))  # written by hand, without a checksum
    assert read_card(path) == WHOLE and CHECKSUM not in WHOLE


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is no JSON"), ("{", "is no JSON"), ("[]", "no JSON object"), ("[" * 100_000, "too deeply"),
     ('{"config": ' + '{"a": ' * 40 + "1" + "}" * 41, "too deeply"), ("\ufeffnull", "no JSON object"),
     ("\ufeff{", "is no JSON"), ('{"focal": NaN}', "the number nan"), ('{"config": {"a": 1e999}}', "the number inf"),
     ('{"seed": 1' + "0" * 5000 + "}", "too long"), ('{"seed": 1' + "0" * 50 + "}", "too long")],
)  # fmt: skip
def test_what_is_no_card_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"card.json.*{sentence}"):
        read_card(tmp_path / CARD)


@pytest.mark.parametrize(
    ("key", "value"),
    [("detector", None), ("detector", 3), ("config", []), ("canvas", [1]), ("canvas", [0, 3]), ("canvas", [1.5, 3]),
     ("focal", 0), ("focal", -1.0), ("focal", True), ("epochs", "3"), ("epochs", -1), ("epochs", True),
     ("placement", "left"), ("lidar_to_camera", [[1, 2, 3]] * 4), ("trained_on", {"frames": [1]}),
     ("trained_on", {"frames": None}), ("fingerprint", 5), ("teachers", "teacher"), ("versions", {"torch": 2})],
)  # fmt: skip
def test_wrong_types_are_named(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"^here: {key}"):
        parse_card(json.dumps({**WHOLE, key: value}), "here")


def test_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / CARD).write_bytes(b'{\n"note": "\xe9"}')
    with pytest.raises(UserError, match=r"card\.json:2: byte 0xe9 is no UTF-8"):
        read_card(tmp_path / CARD)
    with pytest.raises(UserError, match="no such file"):
        read_card(tmp_path / "absent" / CARD)


def test_what_a_command_needs_is_asked_for() -> None:
    require(WHOLE, "here", "canvas", "focal")
    with pytest.raises(UserError, match="here: the card says nothing of 'fingerprint'"):
        require(WHOLE, "here", "canvas", "fingerprint")
