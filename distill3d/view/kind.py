"""What a report needs to know of a kind of run: how it is judged, and what can be shown of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from distill3d.view.headline import Measures
from distill3d.view.pieces import Shown
from distill3d.view.runs import Stage


class Kind(ABC):
    """Runs on data sets of one layout."""

    template: str  # of the report

    @abstractmethod
    def measures(self, stages: Sequence[Stage]) -> Measures:
        """The two numbers by which stages are compared."""

    @abstractmethod
    def settings(self, stages: Sequence[Stage]) -> dict[str, str]:
        """What the head says of the data and the evaluation beyond what all kinds of runs have."""

    @abstractmethod
    def cautions(self, stages: Sequence[Stage]) -> list[str]:
        """What keeps the numbers from being compared with others, one sentence each."""

    @abstractmethod
    def content(self, entries: Sequence[Shown], gallery: int) -> dict[str, Any]:
        """What the template asks for beyond what all kinds have: of the stages that are judged, results, metrics over
        epochs and a gallery of ``gallery`` frames."""
