"""What a few seeds say: a mean that one bad seed does not decide, and how far it can be trusted.

Both as "Deep RL at the Edge of the Statistical Precipice" (Agarwal et al., 2021, arXiv 2108.13264)
recommends for comparisons over a handful of runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def iqm(scores: ArrayLike, axis: int = 0) -> np.ndarray:
    """Interquartile mean along `axis`: the mean of what is left when the lowest and the highest
    quarter are cut away, each rounded down to whole scores. Of five, the middle three; of fewer
    than four, all."""
    return stats.trim_mean(np.asarray(scores, float), 0.25, axis=axis)


def bootstrap_interval(
    scores: ArrayLike,
    statistic: Callable[..., np.ndarray] = iqm,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic over seeds: its (low, high) end.

    scores: (seeds, ...), one row for each seed. Whole rows are drawn with replacement, so that
    what belongs to one seed (the points of its curve, its tasks) stays together. statistic:
    called with an array and `axis`, that of the seeds, which it reduces. low and high have the
    shape of `statistic(scores, axis=0)`. One seed gives an interval of no width:
    that says nothing about other seeds. Raises ValueError where there is no seed.
    """
    scores = np.asarray(scores, float)
    if scores.ndim == 0 or len(scores) == 0:
        raise ValueError(f"scores of shape {scores.shape} hold no seed")
    if len(scores) == 1:  # scipy refuses it
        value = statistic(scores, axis=0)
        return value, value
    found = stats.bootstrap(
        (scores,),
        statistic,
        axis=0,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=level,
        method="percentile",
        rng=seed,
    )
    return found.confidence_interval.low, found.confidence_interval.high
