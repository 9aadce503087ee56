"""The page of published weights names every system and part, and no other."""

import re
from pathlib import Path

from distill3d.published.systems import SYSTEMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published-weights.md"


def test_the_page_lists_what_there_is() -> None:
    told = set()
    for command in re.findall(r"`--as [^|]*\|", PAGE.read_text()):
        system = re.search(r"--as (\w+)", command)
        assert system is not None
        parts = re.findall(r"--part (\w+)", command)
        first = next(iter(SYSTEMS[system[1]].parts))
        told |= {(system[1], part) for part in parts} | ({(system[1], first)} if "`--as " + system[1] + "`" in command else set())
    assert told == {(name, part) for name, system in SYSTEMS.items() for part in system.parts}
