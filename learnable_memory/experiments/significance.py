"""Mean, spread, and whether a difference between two methods is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

RESAMPLES = 10_000
SEED = 0
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Of the same measurement over several data seeds.

    Attributes:
        mean: their mean.
        deviation: sample standard deviation (divisor n - 1); None of one alone.
        runs: how many.
    """

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value or more."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Difference:
    """Top-1 of one method less that of another, in [-1, 1].

    Attributes:
        mean: the difference.
        low: the lower end of its 95 % interval.
        high: the upper end.
        p: two-sided, in (0, 1].
    """

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    of: np.ndarray, to: np.ndarray, resamples: int = RESAMPLES, seed: int = SEED, level: float = LEVEL
) -> Difference:
    """Whether `of` answers the images of a split better than `to`, by resampling the images.

    Image i counts d_i = mean over the runs of `of` - mean over the runs of `to` of whether i was answered rightly: both
    methods meet the same images, so what makes an image hard cancels. The images are drawn anew with replacement, and
    the interval is that of the percentiles of the mean of d (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13). p is 2 min(P(mean <= 0), P(mean >= 0)), at most 1: one minus the level of the widest percentile
    interval on one side of 0. Each P is (1 + hits) / (1 + resamples), so that it is never 0 (Davison and Hinkley,
    Bootstrap Methods and their Application, 1997, chapter 4).

    It speaks of other images of this kind; the spread over data seeds speaks of other trainings.

    Args:
        of, to: bool [runs, images], of any numbers of runs and of the same images in the same order.

    Raises ValueError for other shapes, or without images or runs.
    """
    of, to = np.asarray(of), np.asarray(to)
    if of.ndim != 2 or to.ndim != 2 or of.shape[1] != to.shape[1] or not (of.size and to.size):
        raise ValueError(f"the answers are {list(of.shape)} and {list(to.shape)}, but they have to be [runs, images].")
    # Whole numbers: sums of thirds would miss an exact 0. d_i is whole[i] / unit.
    unit = len(of) * len(to)
    whole = len(to) * of.sum(0, dtype=np.int64) - len(of) * to.sum(0, dtype=np.int64)  # [images]
    values, counts = np.unique(whole, return_counts=True)  # at most 1 + runs * runs: all that a resample can draw
    images = len(whole)
    # RandomState, whose stream NumPy promises to keep: reports have to come out the same, byte for byte.
    drawn = np.random.RandomState(seed).multinomial(images, counts / images, size=resamples)  # [resamples, values]
    sums = drawn @ values  # [resamples]
    low, high = np.quantile(sums, [(1 - level) / 2, (1 + level) / 2]) / (unit * images)
    below, above = int((sums <= 0).sum()), int((sums >= 0).sum())
    p = min(1.0, 2 * (1 + min(below, above)) / (1 + resamples))
    return Difference(float(whole.sum() / (unit * images)), float(low), float(high), p)
