"""Intervals and p-values, beside closed forms, enumeration and their own nominal level."""

import itertools
import math

import numpy as np
import pytest

from src.metrics.bleu import bleu, bleu_counts, bleu_of
from src.significance import Measured, bootstrap, holm, interval, mean_of, randomization, ratio, wilson


def test_the_interval_of_a_share_is_the_binomial_one():
    """The drawn mean of k ones among n is Binomial(n, k / n) / n, exactly."""
    n, k = 40, 12
    drawn = bootstrap([mean_of(np.array([1.0] * k + [0.0] * (n - k)))], draws=40_000)[0]
    chances = [math.comb(n, i) * (k / n) ** i * (1 - k / n) ** (n - i) for i in range(n + 1)]
    for i in range(n + 1):
        assert (np.abs(drawn - i / n) < 1e-9).mean() == pytest.approx(chances[i], abs=0.01)
    summed = np.cumsum(chances)
    expected = [int((summed < share).sum()) / n for share in (0.025, 0.975)]
    assert interval(drawn) == pytest.approx(expected, abs=1e-9)


def test_the_interval_of_a_paired_mean_is_the_normal_one():
    random = np.random.default_rng(1)
    first = random.normal(0.5, 0.3, 2000)
    other = first + random.normal(0.02, 0.1, 2000)  # pairs go together: far narrower than either's own
    drawn = bootstrap([mean_of(first), mean_of(other)], draws=5000)
    difference = other - first
    half = 1.959964 * difference.std() / math.sqrt(2000)
    low, high = interval(drawn[1] - drawn[0])
    assert (low, high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.1 * half)
    own = interval(drawn[0], level=0.9)
    half = 1.644854 * first.std() / math.sqrt(2000)
    assert own == pytest.approx((first.mean() - half, first.mean() + half), abs=0.1 * half)


def counts(random: np.random.Generator, pictures: int) -> np.ndarray:
    """BLEU's counts of captions of random words, one folding."""
    words = np.array(["a", "dog", "runs", "on", "grass"])
    captions = {str(i): [" ".join(random.choice(words, random.integers(3, 9)))] for i in range(pictures)}
    references = {str(i): [" ".join(random.choice(words, 7))] for i in range(pictures)}
    return bleu_counts(references, captions)[:, None]


def bleu_2(sums: np.ndarray) -> np.ndarray:
    return bleu_of(sums)[..., 1]


def test_a_corpus_score_is_drawn_as_a_corpus():
    random = np.random.default_rng(2)
    captions = {str(i): [" ".join(random.choice(["a", "b", "c"], random.integers(2, 9)))] for i in range(12)}
    references = {name: [" ".join(random.choice(["a", "b", "c"], 6))] for name in captions}
    system = Measured(bleu_counts(references, captions)[:, None], bleu_2)
    assert system.whole == pytest.approx(bleu(references, captions)[0][1])
    drawn = bootstrap([system], draws=5, seed=3)[0]
    times = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=5)
    for score, row in zip(drawn, times, strict=True):
        names = [f"{i}.{k}" for i, count in enumerate(row) for k in range(count)]
        again = [{name: table[name.split(".")[0]] for name in names} for table in (references, captions)]
        assert score == pytest.approx(bleu(*again)[0][1])


def test_foldings_are_averaged():
    statistics = np.array([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [1.0, 4.0]]])  # 2 pictures, 2 foldings
    assert Measured(statistics, ratio).whole == pytest.approx((2 / 4 + 4 / 8) / 2)


def test_the_p_value_of_few_pictures_is_that_of_all_exchanges():
    random = np.random.default_rng(4)
    first, other = random.normal(size=9), random.normal(0.5, size=9)
    seen = abs((other - first).mean())
    signs = np.array(list(itertools.product([-1, 1], repeat=9)))
    exact = (np.abs(signs @ (other - first) / 9) >= seen - 1e-12).mean()
    (p,) = randomization(mean_of(first), [mean_of(other)], draws=40_000)
    assert p == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("kind", ["mean", "bleu"])
def test_false_alarms_on_identical_systems_are_near_their_nominal_level(kind):
    random = np.random.default_rng(5)
    p_values = []
    for trial in range(600):
        if kind == "mean":
            of_picture = random.gamma(2, 0.3, 80)
            pair = [mean_of(of_picture + random.exponential(0.3, 80)) for _ in range(2)]
        else:
            pair = [Measured(counts(random, 40), bleu_2) for _ in range(2)]
        p_values += randomization(pair[0], pair[1:], draws=200, seed=trial)
    for level in (0.05, 0.2):
        spread = 3.5 * math.sqrt(level * (1 - level) / 600)
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=spread)


def test_a_system_beside_itself_and_one_that_is_better():
    values = np.random.default_rng(6).normal(0.5, 0.3, 300)
    same, better = mean_of(values), mean_of(values + np.random.default_rng(7).normal(0.05, 0.1, 300))
    assert randomization(same, [same, better], draws=999) == [1.0, pytest.approx(1 / 1000)]
    drawn = bootstrap([same, same, better], draws=500)
    assert interval(drawn[1] - drawn[0]) == (0, 0)
    assert interval(drawn[2] - drawn[0]).low > 0


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_wilsons_interval_is_scipys():
    from scipy.stats import binomtest

    for times, of in ((0, 7), (3, 7), (62, 219), (40, 40)):
        theirs = binomtest(times, of).proportion_ci(method="wilson")
        assert wilson(times, of) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert wilson(0, 0) == (0, 1)
