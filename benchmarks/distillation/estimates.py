"""Means over seeds, their standard errors, and what is larger than noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

#: Standard errors beyond which a difference counts as larger than noise.
CLEAR = 2.0
#: Of the paired t-test.
LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its standard error (NaN for a single seed)."""

    mean: float
    error: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.fmean(values) if values else math.nan, error, len(values))

    @property
    def clear(self) -> bool:
        """Farther from 0 than ``CLEAR`` standard errors."""
        return abs(self.mean) > CLEAR * self.error

    @property
    def p_value(self) -> float:
        """Of Student's t-test against 0, two-sided: few seeds know their own spread badly, and this takes it into
        account."""
        if self.n < 2 or math.isnan(self.error):
            return math.nan
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return float(2 * student_t.sf(abs(self.mean / self.error), self.n - 1))

    def text(self, digits: int = 1, signed: bool = False) -> str:
        """12.3 ± 0.4"""
        if math.isnan(self.mean):
            return "–"
        mean = f"{self.mean:{'+' if signed else ''}.{digits}f}".replace("-", "−")
        return mean if math.isnan(self.error) else f"{mean} ± {self.error:.{digits}f}"


def paired(values: dict[str, float], baseline: dict[str, float]) -> Estimate:
    """Of the differences of the seeds that both have."""
    return Estimate.of([values[seed] - baseline[seed] for seed in values if seed in baseline])
