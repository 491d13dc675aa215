"""The success curve: its interval covers the dim that half of the seeds succeed at as often as it says."""

import math

import numpy as np
import pytest
from scipy import stats

from subspace.study.results.success_curve import SuccessCurve
from subspace.study.results.threshold_search import log_grid, search_thresholds
from tests.support.cases import rest_slow

CURVES = 1000


def covers(rng, seeds, spread, noise):
    """Whether the interval of a whole search covers the middle of a curve whose seeds and trainings vary."""
    middle = rng.uniform(3, 8)
    thresholds = middle + spread * rng.logistic(size=seeds)

    def performance(asked):
        steps = [math.log(dim) - thresholds[seed] for dim, seed in asked]
        return [0.4 + 1 / (1 + math.exp(-step)) + noise * rng.normal() for step in steps]  # 0.9 at the threshold

    searches = search_thresholds(performance, range(seeds), log_grid(1, 200_000), 0.9)
    low, high = SuccessCurve.fit([search.threshold() for search in searches.values()]).interval()
    return low <= math.exp(middle) <= high


@pytest.mark.parametrize("seeds", rest_slow([3, 5, 10], [5]))
@pytest.mark.parametrize(("spread", "noise"), [(0.3, 0.0), (0.15, 0.01), (0.15, 0.03)])
def test_the_interval_of_a_search_covers_in_93_to_97_of_100_curves(seeds, spread, noise):
    rng = np.random.default_rng(seeds)
    assert 0.93 <= np.mean([covers(rng, seeds, spread, noise) for _ in range(CURVES)]) <= 0.97


def test_the_curve_is_the_logistic_distribution_of_the_thresholds():
    rng = np.random.default_rng(0)
    thresholds = 5 + 0.2 * rng.logistic(size=4000)
    curve = SuccessCurve.fit(list(thresholds))
    assert curve.dim == pytest.approx(math.exp(5), rel=0.02)
    dims = np.geomspace(50, 500, 30)
    shares = [curve.share(dim) for dim in dims]
    assert np.all(np.diff(shares) > 0)
    assert shares == pytest.approx(stats.logistic.cdf(np.log(dims), curve.middle, curve.scale), rel=1e-9)
    assert shares == pytest.approx([np.mean(thresholds <= math.log(dim)) for dim in dims], abs=0.03)


def test_one_seed_has_no_interval_and_equal_seeds_one_without_width():
    assert SuccessCurve.fit([2.0]).dim == pytest.approx(math.exp(2))
    assert all(map(math.isnan, SuccessCurve.fit([2.0]).interval()))
    assert SuccessCurve.fit([2.0, 2.0]).interval() == pytest.approx((math.exp(2), math.exp(2)))
    with pytest.raises(ValueError, match=r"^thresholds must be of at least one seed, got none$"):
        SuccessCurve.fit([])


def test_a_higher_level_is_a_wider_interval_around_the_dim():
    curve = SuccessCurve.fit([1.0, 1.4, 1.1, 1.9])
    (a, d), (b, c) = curve.interval(0.95), curve.interval(0.8)
    assert a < b < curve.dim < c < d
