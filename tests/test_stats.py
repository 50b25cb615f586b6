"""Statistics over seeds, against values worked by hand."""

import itertools

import numpy as np
import pytest

from lab.stats import bootstrap_interval, iqm


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([100, 1, 3, 2, -50], 2),  # of five the middle three
        ([0, 1, 3, 1000], 2),  # of four the middle two
        ([0, 0, 9], 3),  # of three all
        ([7], 7),
        ([0, 0, 1, 2, 3, 4, 99, 99], 2.5),  # of eight the middle four
    ],
)
def test_iqm_by_hand(scores, expected):
    assert iqm(scores) == pytest.approx(expected)


def test_iqm_takes_the_axis_of_the_seeds():
    scores = np.array([[0, 10], [1, 20], [3, 40], [1000, -1000]])  # (seeds, points)
    np.testing.assert_allclose(iqm(scores), [2, 15])
    np.testing.assert_allclose(iqm(scores.T, axis=1), [2, 15])


def test_interval_of_two_seeds_by_hand():
    """Of two seeds 0 and 1 the mean is 0, 1/2 or 1 with probability 1/4, 1/2 and 1/4: the middle
    95% reach from 0 to 1, the middle 40% are 1/2 alone."""
    assert bootstrap_interval([0, 1], np.mean) == (0, 1)
    assert bootstrap_interval([0, 1], np.mean, level=0.4) == (0.5, 0.5)


def test_interval_against_all_resamples_of_four_seeds():
    scores = np.array([3.0, -1.0, 10.0, 4.0])
    exact = [np.sort(drawn)[1:3].mean() for drawn in itertools.product(scores, repeat=4)]
    interval = bootstrap_interval(scores, resamples=50_000)
    np.testing.assert_allclose(interval, np.percentile(exact, [2.5, 97.5]), atol=0.01)


def test_rows_of_a_seed_stay_together():
    """Two columns that differ by 1 in every seed do so in every resample; drawn apart not."""
    column = np.random.default_rng(0).normal(size=5)
    scores = np.stack([column, column + 1], axis=1)  # (seeds, 2)
    low, high = bootstrap_interval(scores, resamples=20)
    assert low.shape == high.shape == (2,)
    np.testing.assert_allclose([low[1] - low[0], high[1] - high[0]], 1)
    assert (low < iqm(scores)).all() and (iqm(scores) < high).all()


def test_repeatable_and_dependent_on_its_seed():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    first = bootstrap_interval(scores, resamples=50)
    np.testing.assert_array_equal(first, bootstrap_interval(scores, resamples=50))
    assert not np.array_equal(first, bootstrap_interval(scores, resamples=50, seed=1))


def test_one_seed_has_no_width_and_none_is_refused():
    assert bootstrap_interval([3.0]) == (3, 3)
    with pytest.raises(ValueError, match="no seed"):
        bootstrap_interval(np.zeros((0, 4)))
