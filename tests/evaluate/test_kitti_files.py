"""The KITTI evaluation on anybody's files: encodings, names, crowds and what it says of them."""

from pathlib import Path

import numpy as np
import pytest

from distill3d.errors import UserError
from distill3d.evaluate.greedy import choose_in_turn, match_in_order
from distill3d.evaluate.kitti import Annotations, Result, evaluate, evaluate_folders, result_frames
from distill3d.evaluate.matching import match_in_image

CAR = "Car 0.0 0 0.0 100 100 200 160 1.5 1.6 4.0 0.0 1.6 20 0"


def write(folder: Path, names: list[str], text: str) -> Path:
    for name in names:
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def first_precision(result: Result) -> float:
    return float(result.precision("car", "3d")[1, 0])


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    names = [f"{i:06d}" for i in range(3)]
    return write(tmp_path / "gt", names, f"{CAR}\n{CAR}\n"), write(tmp_path / "pr", names, f"{CAR} 0.5\n")


def test_byte_order_marks_lose_no_label(folders: tuple[Path, Path]) -> None:
    before = evaluate_folders(*folders)
    for path in [*folders[0].iterdir(), *folders[1].iterdir()]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b" \r\n")
    after = evaluate_folders(*folders)
    assert after.explanation == before.explanation and after.explanation.classes["car"].labels == 6
    assert all(np.array_equal(curve, after.curves["strict"][key]) for key, curve in before.curves["strict"].items())


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b"Car", b"C\xe4r", "000001.txt:1: byte 0xe4 is no UTF-8 text"),
        (b"Car", b"Car\0", "000001.txt:1: holds a NUL character"),
        (b"1.5 1.6", b"1.5 0", "000001.txt:1: width is 0 m"),
        (b"200", b"20", "000001.txt:1: the 2D box has right 20 before left 100"),
        (b"20 0", b"1e308 0", "000001.txt:1: z is '1e308'"),
    ],
)
def test_faults_are_named(folders: tuple[Path, Path], side: int, old: bytes, new: bytes, sentence: str) -> None:
    path = folders[side] / "000001.txt"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(UserError, match=sentence):
        evaluate_folders(*folders)


def test_unknown_classes_and_visibility_of_labels_are_told(folders: tuple[Path, Path]) -> None:
    write(folders[0], ["000001"], f"{CAR.replace('Car', 'cra')}\n{CAR.replace('0.0 0', '2.0 7', 1)}\n")
    told = evaluate_folders(*folders).explanation
    assert told.unknown_label_names == {"cra": 1} and told.odd_labels == 1
    assert "names in the labels, whose objects so do not count: 'cra' x 1 (did you mean 'car'?)" in told.text()
    assert "1 labels have a truncation other than 0..1" in told.text()


@pytest.mark.parametrize("name", ["cam0_{}", "seq1/{}", "{}"])
def test_frames_of_any_name(tmp_path: Path, name: str) -> None:
    names = [name.format(f"{i:06d}") for i in range(3)]
    labels = write(tmp_path / "gt", names, CAR)
    for folder in (tmp_path / "pr", tmp_path / "run" / "data"):
        write(folder, names, CAR + " 0.5")
        write(folder, ["notes", "seq1/notes"], "no frame")
        told = evaluate_folders(labels, folder.parent if folder.name == "data" else folder).explanation
        assert told.frames == 3 and told.other_files == ("notes", "seq1/notes")
    split = tmp_path / "val.txt"
    split.write_text("\n".join(names[1:]))
    assert evaluate_folders(labels, tmp_path / "pr", split).explanation.results_outside_split == (names[0],)
    assert result_frames(tmp_path / "pr", labels) == names


def test_without_frames_in_common_an_example_is_named(tmp_path: Path) -> None:
    labels, results = write(tmp_path / "gt", ["a_1"], CAR), write(tmp_path / "pr", ["b_1"], CAR + " 0.5")
    with pytest.raises(UserError, match="holds no result files such as 000000.txt"):
        evaluate_folders(labels, results)


def crowd(labels: list[str], results: list[str]) -> tuple[Annotations, Annotations]:
    return tuple(
        Annotations.from_lines({"000000": "\n".join(lines)}, scored=scored)
        for lines, scored in ((labels, False), (results, True))
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("labels", "results", "precision"), [(5, 20_000, 0.00025), (20_000, 5, 1.0), (20_000, 20_000, 1.0)]
)
def test_crowds_of_equal_objects(labels: int, results: int, precision: float) -> None:
    truth, found = crowd([CAR] * labels, [f"{CAR} 0.5"] * results)
    assert first_precision(evaluate(truth, found)) == pytest.approx(precision)
    matched = match_in_image(truth, found, 0.5)
    assert matched[: min(labels, results)].tolist() == list(range(min(labels, results)))
    assert (matched[results:] == -1).all()


def test_equal_labels_choose_as_if_they_differed() -> None:
    def moved(line: str, step: float) -> str:
        return line.replace(" 20 0", f" {20 + step:g} 0")

    results = [f"{moved(CAR, 0.03 * i)} {score}" for i, score in enumerate((0.3, 0.9, 0.5, 0.7))]
    equal = [moved(CAR, 0.1), CAR, CAR, CAR, moved(CAR, 0.05)]
    apart = [line.replace("0.0 1.6", f"{1e-9 * i:g} 1.6") for i, line in enumerate(equal)]
    first, second = (evaluate(*crowd(lines, results)) for lines in (equal, apart))
    for key, curve in first.curves["strict"].items():
        np.testing.assert_allclose(curve, second.curves["strict"][key], atol=1e-12)
    matches = [match_in_image(*crowd(lines, results), 0.5).tolist() for lines in (equal, apart)]
    assert matches[0] == matches[1]


def test_crowds_that_would_take_hours_are_refused() -> None:
    labels = [CAR.replace("0.0 1.6", f"{i} 1.6") for i in range(700)]
    with pytest.raises(UserError, match="frame 000000 has 700 objects to compare with 700 others, expected at most"):
        evaluate(*crowd(labels, [f"{line} 0.5" for line in labels]))


def test_choosing_in_turn_is_matching_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill3d.evaluate.greedy._FEW_PAIRS", 0)
    rng = np.random.default_rng(0)
    for groups, most in ((4, 6), (2, 90)):
        rows: list[tuple[int, int, int]] = []
        for group in range(groups):
            lefts, rights = rng.integers(1, most, 2)
            for left in range(lefts):
                chosen = rng.permutation(rights)[: rng.integers(0, rights + 1)]
                rows += [(group, group * most + left, group * most + right) for right in chosen.tolist()]
        group, left, right = np.array(rows).T
        allowed = rng.random((len(rows), 5)) < 0.7
        assert np.array_equal(choose_in_turn(group, left, right, allowed), match_in_order(group, left, right, allowed))
