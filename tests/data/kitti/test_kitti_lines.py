"""The rules of label and result lines: one set for a single line and for whole tables."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill3d.boxes import KITTI_CLASSES
from distill3d.data.kitti.labels import parse_labels, read_labels
from distill3d.data.kitti.lines import line_faults, sound_numbers, sound_table
from distill3d.errors import UserError
from distill3d.evaluate.kitti import KNOWN_NAMES, Annotations

CAR = "Car 0.0 0 0.1 100 100 200 160 1.5 1.6 4.0 0.0 1.6 20.0 0.2"
REGION = "DontCare -1 -1 -10 100 100 200 160 -1 -1 -1 -1000 -1000 -1000 -10"
IMAGE_ONLY = "Car -1 -1 0.1 100 100 200 160 -1 -1 -1 -1000 -1000 -1000 -10 0.5"
many = settings(max_examples=60, deadline=None)


def changed(line: str, field: int, word: str) -> str:
    words = line.split()
    words[field] = word
    return " ".join(words)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (changed(CAR, 8, "0"), "height is 0 m, expected a positive size"),
        (changed(CAR, 10, "-4"), "length is -4 m, expected a positive size"),
        (changed(CAR, 8, "1e-45"), "height is 1e-45 m, expected a positive size"),
        (changed(CAR, 6, "99"), "the 2D box has right 99 before left 100"),
        (changed(CAR, 7, "99"), "the 2D box has bottom 99 above top 100"),
        (changed(REGION, 7, "99"), "the 2D box has bottom 99 above top 100"),
        (changed(CAR, 11, "1e308"), "x is '1e308', expected a finite number of at most 3.4e38"),
        (changed(CAR, 11, "-3.5e38"), "x is '-3.5e38', expected a finite number of at most 3.4e38"),
        (changed(CAR, 3, "-inf"), "alpha is '-inf', expected a finite number of at most 3.4e38"),
        (changed(CAR, 14, "nan"), "rotation_y is 'nan', expected a finite number of at most 3.4e38"),
        (changed(CAR, 8, "1_5"), "height is '1_5', expected a finite number of at most 3.4e38"),
        (changed(CAR, 0, "C" * 65), "the class name has 65 characters"),
        (CAR + " 0.9", "expected 15 fields, found 16 (labels have no score)"),
        (CAR[:-4], "expected 15 fields, found 14"),
    ],
)
def test_every_reader_refuses_with_file_and_line(tmp_path: Path, line: str, sentence: str) -> None:
    assert list(line_faults(line.split(), scored=False)) == [sentence]
    (tmp_path / "a.txt").write_text(f"{CAR}\n\n{line}\n{CAR}\n")
    with pytest.raises(UserError) as raised:
        Annotations.from_folder(tmp_path, scored=False)
    assert str(raised.value) == f"{tmp_path}/a.txt:3: {sentence}"
    assert sentence in [fault.sentence for fault in parse_labels(f"{CAR}\n\n{line}\n", scored=False)[1]]


@pytest.mark.parametrize("line", [CAR, changed(CAR, 1, "-1"), changed(CAR, 2, "-1"), REGION, changed(CAR, 6, "100")])
def test_what_detectors_and_converters_write_is_sound(line: str) -> None:
    assert list(line_faults(line.split())) == []
    assert parse_labels(line)[1] == []
    assert len(Annotations.from_lines({"a": line}, scored=False).frame) == 1


def test_results_may_have_no_3d_box_and_any_visibility() -> None:
    lines = [IMAGE_ONLY, changed(IMAGE_ONLY, 1, "7"), changed(IMAGE_ONLY, 2, "0.5")]
    assert len(Annotations.from_lines({"a": "\n".join(lines)}, scored=True).frame) == 3
    assert parse_labels("\n".join(lines))[1] == []
    with pytest.raises(UserError, match="height is -1 m"):
        Annotations.from_lines({"a": IMAGE_ONLY.removesuffix(" 0.5")}, scored=False)


def test_class_names_in_any_case_are_read() -> None:
    lines, faults = parse_labels(CAR.replace("Car", "cAR") + "\n" + REGION.replace("DontCare", "dontcare"))
    assert faults == [] and [line.name for line in lines] == ["Car", "DontCare"]
    assert set(KNOWN_NAMES) == {name.lower() for name in KITTI_CLASSES}


NUMBERS = st.one_of(
    st.floats(-2, 2).map(str),
    st.sampled_from(["-1000", "nan", "inf", "1e308", "1_0", "x", "-1", "0", "1", "3", "1e38"]),
)
LINES = st.lists(
    st.tuples(st.sampled_from(["Car", "DontCare", "dontcare", "x_y"]), st.lists(NUMBERS, min_size=13, max_size=15)),
    min_size=1, max_size=4,
).map(lambda rows: [[name, *numbers] for name, numbers in rows])  # fmt: skip


@many
@given(LINES, st.booleans())
def test_one_line_and_whole_tables_are_judged_alike(rows: list[list[str]], scored: bool) -> None:
    text = "\n".join(map(" ".join, rows))
    faults = [list(line_faults(row, scored, visibility=False)) for row in rows]
    assert (sound_table(rows, text.count("_"), scored) is None) == any(faults)
    for row in rows:
        # The sum of sound numbers may be too large; then the line is looked at anew.
        numbers = sound_numbers(row, scored)
        assert numbers is None or not list(line_faults(row, scored))
        if not any("e38" in word for word in row):
            assert (numbers is None) == bool(list(line_faults(row, scored)))


@many
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"{CAR}\n{text}".encode())))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-labels" / "000000.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    for read in (lambda: read_labels(path), lambda: Annotations.from_folder(path.parent, scored=False)):
        try:
            read()
        except UserError as error:
            assert str(error).startswith(f"{path}")


@many
@given(st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.text(" \t\n", max_size=3), st.text(" \t", max_size=3))
def test_equal_content_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, end: str, mark: bool, blanks: str, before: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "equal-labels"
    folder.mkdir(exist_ok=True)
    plain = Annotations.from_lines({"000000": f"{CAR}\n{REGION}\n"}, scored=False)
    text = f"{before}{CAR}{blanks}\n{REGION}{blanks}".replace("\n", end)
    (folder / "000000.txt").write_bytes(text.encode("utf-8-sig" if mark else "utf-8"))
    read = Annotations.from_folder(folder, scored=False)
    assert read.name.tolist() == plain.name.tolist() and (read.box3d == plain.box3d).all()
