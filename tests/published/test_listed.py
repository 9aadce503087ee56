"""The page of published weights names every system and part, and no other."""

import re
from pathlib import Path

from distill3d.published.systems import SYSTEMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "published-weights.md"


def test_the_page_lists_what_there_is() -> None:
    told = set()
    for cell in re.findall(r"\| (`--as [^|]*) \|", PAGE.read_text(encoding="utf-8")):
        name = re.findall(r"--as (\w+)", cell)[0]
        parts = re.findall(r"--part (\w+)", cell)
        if f"`--as {name}`" in cell:  # the first, which need not be named
            parts.append(next(iter(SYSTEMS[name].parts)))
        told |= {(name, part) for part in parts}
    assert told == {(name, part) for name, system in SYSTEMS.items() for part in system.parts}
