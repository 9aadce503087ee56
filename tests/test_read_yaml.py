"""Settings from anybody: what is no plain YAML of a sane size is one sentence with file and line."""

import json
from pathlib import Path

import pytest
import yaml

from distill3d.errors import UserError
from distill3d.files import read_json, read_yaml

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\nb: [", [":3", "no YAML"]),
        (b"a: 1\n\xff: 2\n", [":2", "0xff", "UTF-8"]),
        ("a: 1\n".encode("utf-16"), ["UTF-16"]),
        (b"{" * 100_000, [":1", "nested deeper"]),
        (b"[" * 100_000, [":1", "nested deeper"]),
        (b"- " * 100_000, [":1", "nested deeper"]),
        (b"".join(b" " * n + b"a:\n" for n in range(900)), [":51", "nested deeper"]),
        (LAUGHS.encode(), [":5", "more than 100000 values"]),
        (b"a: &a [*a]\n", [":1", "'a'", "stands within"]),
        (b"a: *nobody\n", [":1", "no YAML"]),
        (b'a: 1\nb: !!python/object/apply:os.system ["touch executed"]\n', [":2", "tag", "os.system"]),
        (b"a: !!timestamp x\n", [":1", "tag"]),
        (b"a: 2024-99-99\n", ["cannot be read"]),
        (b"a: 0x_\n", ["cannot be read"]),
        (b"[1]: 2\n{a: 1}: 3\n", [":", "no YAML"]),
        (b"a: 1\n---\nb: 1\n", [":2", "no YAML"]),
        (b"a: \x00\n", [":1: ", "NUL"]),
        (b'a: "\\ud800"\n', ["\\ud800|no YAML"]),
        (b"#" * 2_000_000, ["2000000 bytes"]),
        (b"a: " + b"9" * 5000, ["cannot be read"]),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else "",
)
def test_refused(content: bytes, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_yaml(path)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 400
    assert all(any(part in message for part in word.split("|")) for word in words), message
    assert not (tmp_path / "executed").exists()


def test_folder_and_absent_file(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "nothing.yaml", "no such file"),
        (Path("a\0b"), "no path"),
    ):
        with pytest.raises(UserError, match=words):
            read_yaml(path)


def test_what_is_sound_is_read(tmp_path: Path) -> None:
    """A byte order mark, line ends of any system, and aliases that somebody wrote by hand."""
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbfbase: &b {epochs: 3, name: Stra\xc3\x9fe}\r\nother: *b\r\nlist: []\r\n")
    base = {"epochs": 3, "name": "Straße"}
    assert read_yaml(path) == {"base": base, "other": base, "list": []}
    path.write_text(yaml.safe_dump({"a": [1, 2.5, None, True, "x: y"], "b": {}}))
    assert read_yaml(path) == {"a": [1, 2.5, None, True, "x: y"], "b": {}}
    path.write_text("")
    assert read_yaml(path) is None


def test_json_with_half_a_character(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text('{"note": "\\ud83d"}')
    with pytest.raises(UserError, match="half a character"):
        read_json(path)
    path.write_text(json.dumps({"note": "\U0001f600"}))
    assert read_json(path) == {"note": "\U0001f600"}
