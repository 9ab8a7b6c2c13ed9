"""Mean, spread and the paired bootstrap, against closed forms."""

from statistics import NormalDist

import numpy as np
import pytest

from learnable_memory.experiments.significance import Spread, paired_bootstrap


def test_spread_is_the_mean_and_the_sample_standard_deviation():
    assert Spread.of([0.25]) == Spread(0.25, None, 1)
    spread = Spread.of([1.0, 2.0, 6.0])  # deviations -2, -1, 3: (4 + 1 + 9) / 2 = 7
    assert (spread.mean, spread.runs) == (3.0, 3) and spread.deviation == pytest.approx(7**0.5, rel=1e-12)


def answers(runs: int, images: int, rate: float, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).rand(runs, images) < rate


def test_a_big_sample_is_as_the_normal_distribution_says():
    of, to = answers(3, 20_000, 0.80, 1), answers(2, 20_000, 0.797, 2)
    each = of.mean(0) - to.mean(0)
    error = each.std() / len(each) ** 0.5
    found = paired_bootstrap(of, to)
    assert found.mean == pytest.approx(each.mean(), abs=1e-12)
    # The ends of an interval from 10,000 resamples scatter by 0.027 standard errors (the quantile's own error).
    assert found.low == pytest.approx(each.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(each.mean() + 1.96 * error, abs=0.1 * error)
    p = 2 * NormalDist().cdf(-abs(each.mean()) / error)
    assert 0.001 < p < 0.1 and found.p == pytest.approx(p, abs=4 * 2 * (p / 2 / 10_000) ** 0.5)


def test_resampling_values_is_resampling_images():
    """The same by its definition: images drawn with replacement, one by one."""
    of, to = answers(3, 200, 0.7, 3), answers(3, 200, 0.6, 4)
    each = of.mean(0) - to.mean(0)
    drawn = each[np.random.RandomState(5).randint(200, size=(20_000, 200))].mean(1)
    found = paired_bootstrap(of, to)
    error = drawn.std()
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.12 * error)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.12 * error)


def test_equal_answers_say_nothing():
    same = answers(3, 100, 0.5, 0)
    found = paired_bootstrap(same, same[[2, 0, 1]])
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_always_better_has_the_smallest_p_that_there_is():
    found = paired_bootstrap(np.ones((1, 50), bool), np.zeros((2, 50), bool))
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.p == 2 / 10_001


def test_the_other_way_round_turns_the_sign():
    of, to = answers(3, 300, 0.7, 3), answers(2, 300, 0.6, 4)
    one, other = paired_bootstrap(of, to), paired_bootstrap(to, of)
    assert other.mean == -one.mean and one.mean > 0
    error = (one.high - one.low) / 4
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=0.15 * error)


def test_thirds_that_cancel_are_zero():
    """1/3 of one image and 2/3 of another against 1/3 + 1/3 + 1/3 of others: a sum of floats would miss 0."""
    of = np.array([[1, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    to = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=bool)
    found = paired_bootstrap(of, to, resamples=2000)
    assert found.mean == 0.0
    share = np.mean(_exact_sums([1, 2, -1, -1, -1]) <= 0)
    above = np.mean(_exact_sums([1, 2, -1, -1, -1]) >= 0)
    assert found.p == pytest.approx(min(1.0, 2 * min(share, above)), abs=0.05)


def _exact_sums(values: list[int]) -> np.ndarray:
    """The sums of all 5^5 ways to draw with replacement."""
    places = np.stack(np.meshgrid(*[values] * len(values)), -1).reshape(-1, len(values))
    return places.sum(1)


def test_the_same_answers_give_the_same_numbers_each_time():
    of, to = answers(3, 4000, 0.7, 3), answers(3, 4000, 0.69, 4)
    assert paired_bootstrap(of, to) == paired_bootstrap(of, to)
    assert paired_bootstrap(of, to) != paired_bootstrap(of, to, seed=1)


@pytest.mark.parametrize(
    ("of", "to"), [((2, 3), (2, 4)), ((3,), (3,)), ((0, 3), (1, 3)), ((1, 0), (1, 0))], ids=str
)  # fmt: skip
def test_other_shapes_are_refused(of, to):
    with pytest.raises(ValueError, match=r"the answers are .*, but they have to be \[runs, images\]"):
        paired_bootstrap(np.ones(of, bool), np.ones(to, bool))
