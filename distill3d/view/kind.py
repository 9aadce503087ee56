"""What a report needs to know of a kind of run: how it is judged, and what can be shown of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from distill3d.view.headline import Measures
from distill3d.view.palette import Look
from distill3d.view.runs import Stage

#: Sections by their id: title and content (HTML).
Sections = dict[str, tuple[str, str]]


class Kind(ABC):
    """Runs on data sets of one layout. Stages and looks (``palette``) come in the same order."""

    @abstractmethod
    def measures(self, stages: Sequence[Stage]) -> Measures:
        """The two numbers by which stages are compared."""

    @abstractmethod
    def settings(self, stages: Sequence[Stage]) -> dict[str, str]:
        """What the header says of the data and the evaluation beyond what all kinds of runs have."""

    @abstractmethod
    def cautions(self, stages: Sequence[Stage]) -> list[str]:
        """What keeps the numbers from being compared with others, one sentence each."""

    @abstractmethod
    def results(self, stages: Sequence[Stage], palette: Sequence[Look], remark: str) -> str:
        """The tables, where at least one stage is finished; ``remark`` (HTML) stands below the first of them."""

    @abstractmethod
    def progress(self, stages: Sequence[Stage], palette: Sequence[Look]) -> str:
        """The metrics over the epochs, with a heading."""

    @abstractmethod
    def sections(self, stages: Sequence[Stage], palette: Sequence[Look], gallery: int) -> Sections:
        """What comes between training and the stages' cards; the last is a gallery of ``gallery`` frames."""
