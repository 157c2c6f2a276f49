import json
import math

import numpy as np
import pytest

from src.confidence import BINS, LEAST, Calibration, assess, calibration_error, mean_log_prob, spearman


def sample(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Means, and outcomes drawn by a logistic function of slope 3 and intercept 4."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-3, 0, count)
    return means, rng.random(count) < 1 / (1 + np.exp(-(3 * means + 4)))


def test_the_fit_finds_the_line_that_drew_the_outcomes():
    found = Calibration.fit(*sample(50_000))
    assert found.slope == pytest.approx(3, rel=0.05) and found.intercept == pytest.approx(4, rel=0.05)
    assert found(-4 / 3) == pytest.approx(0.5, abs=0.02)
    assert found(-1.0) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_the_fit_is_the_likeliest_line():
    """Of Platt's targets, against scipy's minimiser."""
    optimize = pytest.importorskip("scipy.optimize")
    means, good = sample(200, seed=1)
    yes, no = good.sum(), (~good).sum()
    targets = np.where(good, (yes + 1) / (yes + 2), 1 / (no + 2))

    def loss(line):
        z = line[0] * means + line[1]
        return (np.logaddexp(0, z) - targets * z).sum()

    expected = optimize.minimize(loss, [0.0, 0.0], tol=1e-12).x
    np.testing.assert_allclose(Calibration.fit(means, good)[:2], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("means", "good"),
    [
        ([-2.0, -1.9, -0.2, -0.1], [False, False, True, True]),  # separable
        ([-1.0] * 4, [False, True, True, True]),  # nothing to tell them by
        ([-2.0, -1.0, -0.5, -0.1], [True] * 4),
    ],
)
def test_the_fit_stays_finite(means, good):
    found = Calibration.fit(np.array(means), np.array(good))
    assert np.isfinite(found).all()
    assert all(0 < found(mean) < 1 for mean in [*means, LEAST, 0.0])
    if len(set(means)) == 1:
        assert found(-1.0) == pytest.approx((3 * 4 / 5 + 1 / 3) / 4)


def test_mean_log_probability():
    assert mean_log_prob([-1.0, -2.0, -0.3]) == pytest.approx(-1.1)
    assert mean_log_prob([]) == mean_log_prob([-math.inf]) == LEAST


def test_calibration_error_by_hand():
    """Two bins of two: |0.15 − 0.5| and |0.8 − 1|."""
    confidence, good = np.array([0.9, 0.1, 0.7, 0.2]), np.array([True, False, True, True])
    assert calibration_error(confidence, good, bins=2) == pytest.approx((0.35 + 0.2) / 2)
    assert calibration_error(np.array([1.0, 0.0]), np.array([False, True])) == 1.0
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_spearman_is_scipy_s():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for span in (3, 10, 10_000):  # many ties, some, hardly any
        a, b = rng.integers(0, span, 60), rng.integers(0, span, 60)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [2, 5, 90]) == pytest.approx(1)
    assert spearman([1, 2, 2, 3], [9, 4, 4, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [4, 4, 4]) is None


def test_assessed_on_captions_that_it_was_not_fitted_on():
    means, good = sample(2_000, seed=2)
    rng = np.random.default_rng(3)
    told = assess(means, good + rng.uniform(0, 0.1, len(good)))
    assert told.scores["confidence_ece"] < 0.06 and told.scores["confidence_spearman"] > 0.3
    assert told.calibration.pictures == 2_000
    noise = assess(means, rng.permutation(good + 0.0) + rng.uniform(0, 0.1, len(good)))
    assert abs(noise.scores["confidence_spearman"]) < 0.06
    # A calibration that is held out knows nothing of what cannot be known.
    few = [assess(rng.normal(-1, 0.3, 40), rng.random(40)).scores["confidence_spearman"] for _ in range(40)]
    assert np.mean(few) < 0.1


def test_what_counts_as_good():
    ciders = [0.0] * 6 + [0.5, 0.6, 0.7, 0.8]
    told = assess(np.linspace(-2, 0, 10), ciders)
    assert told.calibration.threshold == 0.5, "the median is the least: what is above it is good"
    assert assess(np.linspace(-2, 0, 10), np.arange(10.0)).calibration.threshold == 4.5


@pytest.mark.parametrize(
    ("means", "ciders", "reason"),
    [
        ([-1.0] * (BINS - 1), [0.1] * (BINS - 1), "10 pictures or more"),
        ([-1.0] * 20, None, "add it to metrics"),
        (list(np.linspace(-2, 0, 20)), [0.3] * 20, "same CIDEr"),
    ],
)
def test_where_there_is_nothing_to_calibrate(means, ciders, reason):
    told = assess(means, ciders)
    assert told.calibration is None and set(told.scores.values()) == {None}
    assert reason in told.reason


def test_saved_and_loaded(tmp_path):
    calibration = Calibration.fit(*sample(100), threshold=0.4)
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration
    assert set(json.loads((tmp_path / "calibration.json").read_text())) == set(Calibration._fields)
    for damaged in ("{", "[]", '{"slope": 1}', '{"slope": NaN, "intercept": 1, "threshold": 0, "pictures": 9}'):
        (tmp_path / "calibration.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"calibration.json: no calibration .* calibrate=true"):
            Calibration.load(tmp_path / "calibration.json")
