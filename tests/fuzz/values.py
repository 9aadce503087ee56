"""What mutations put in place of sound values: the extreme, the absent, and what belongs elsewhere."""

from typing import Any

#: Stand for what no JSON or YAML writer would write; replaced in the text that was written.
DEEP_LISTS, DEEP_OBJECTS, TWICE = "@deep-lists@", "@deep-objects@", "@twice@"
DEPTH = 100_000

#: Spellings of numbers.
NUMBERS = (
    "0", "-1", "1", "-0.0", "0.5", "2", "-7", "1e308", "-1e308", "1e-320", "1e39", "1e400", "nan", "-nan", "inf",
    "-inf", "9223372036854775807", "9223372036854775808", "-9223372036854775809", "4294967296", "18446744073709551616",
    "999999999999", "1e-30", "1e10", "+5", "0x10", "1_000", "1,5", "\N{FULLWIDTH DIGIT ONE}",
    "\N{ARABIC-INDIC DIGIT TWO}", "\N{SUPERSCRIPT TWO}", "1e", "--1", "1.2.3", "-1e-3",
)  # fmt: skip
#: Spellings of anything else.
WORDS = (
    "", "Car", "car", "DontCare", "Van", "None", "null", "true", "../x", "..", ".", "a/b", "000000", "000001", "-",
    "--", "#", ":", ",", "{", "[", "'", '"', "%s", "{0}", "\\", "é", "\N{CJK UNIFIED IDEOGRAPH-65E5}",
    "\N{RIGHT-TO-LEFT OVERRIDE}x", "\N{ZERO WIDTH SPACE}", "\x1b[31mred", "\x07", "\t", "\x0b", "\x85", "\u2028",
    "\x00", "x" * 300, "[bold]", "[/]", "<script>", "C:\\x", "CON", "~",
)  # fmt: skip
#: Spellings that only a command line can hold, and paths there.
ARGUMENTS = (
    "../in", "../out", "../out/new", "../out/new/deep", "x" * 5000, "a\0b", "\udcff", "--help", "-h", "--version", "-1",
    "--", "---", "--=", "-x", "@x", "*", "1,2,3", "1,2,3,4", "nowhere", "no where", "0 0", "None", "True", "False",
)  # fmt: skip

#: Values of JSON, YAML and training states by name; the names stand in cases.
VALUES: dict[str, Any] = {
    "null": None, "true": True, "false": False, "0": 0, "-1": -1, "1": 1, "2": 2, "0.5": 0.5, "-0.0": -0.0,
    "1e308": 1e308, "-1e308": -1e308, "1e-320": 1e-320, "1e39": 1e39, "nan": float("nan"), "inf": float("inf"),
    "-inf": float("-inf"), "2**63": 2**63, "-2**63-1": -(2**63) - 1, "2**64": 2**64, "10**400": 10**400,
    "1000000000": 10**9, "empty": "", "x": "x", "number in text": "1.5", "NaN in text": "NaN", "override": "\u202ex",
    "zero byte": "a\x00b", "lone surrogate": "\ud800", "control": "\x1b[31mred\x07", "5000 letters": "x" * 5000,
    "markup": "[/bold]<script>", "climbing": "../../x", "absolute": "/nonexistent/x", "[]": [], "{}": {}, "[[]]": [[]],
    "[null]": [None], "[0]": [0], "[nan]": [float("nan")], "['x']": ["x"], "[1, 2, 3]": [1, 2, 3],
    "[-1, -1]": [-1, -1], "{'a': 1}": {"a": 1}, "{'': null}": {"": None}, "1000 zeros": [0] * 1000,
    "lists in lists": [[[[[[]]]]]], "deep lists": DEEP_LISTS, "deep objects": DEEP_OBJECTS,
}  # fmt: skip
