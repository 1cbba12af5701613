"""docs/claims.md is what its tables give, and says no more than the intervals do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import claims, statistics_iou
from gflv2 import GFLV2
from gflv2.data import CocoDetection, shapes
from gflv2.engine.analysis import analyze
from gflv2.engine.study.statistics import estimate


def test_the_page_is_what_the_tables_give() -> None:
    assert claims.PAGE.read_text() == claims.page(), "python -m benchmarks.claims writes it anew"


@pytest.mark.parametrize(
    "values, says",
    [
        ([0.02, 0.021, 0.019], "shown: +0.020 [+0.018, +0.022], 3 seeds"),
        ([-0.02, -0.021, -0.019], "**the contrary is shown**: −0.020 [−0.022, −0.018], 3 seeds"),
        ([0.02, 0.0, -0.01], "not shown: +0.003 [−0.035, +0.041], 3 seeds"),
        ([0.02], "not to be judged: +0.020, 1 seed"),
    ],
)
def test_a_verdict_goes_no_further_than_its_interval(values: list[float], says: str) -> None:
    assert claims.verdict(estimate(values)) == says


@pytest.mark.parametrize(
    "ratio, noise, says",
    [
        ((1.05, 1.08), (0.98, 1.01), "slower"),
        ((0.90, 0.97), (0.98, 1.01), "faster"),
        ((1.005, 1.02), (0.98, 1.01), "no more than noise"),
        ((0.95, 0.99), (0.97, 0.99), "no more than noise"),
        ((0.99, 0.999), (1.01, 1.02), "faster"),
    ],
)
def test_a_pace_is_judged_beside_the_same_row_again(ratio: tuple, noise: tuple, says: str) -> None:
    assert claims.pace(ratio, noise) == says


def test_the_runs_have_five_seeds_on_both_sets() -> None:
    runs = claims.read_runs(claims.RESULTS / "baselines" / "runs.csv")
    for data in ("shapes", "bccd"):
        for row in ("ATSS", "GFLV1", "GFLV2"):
            chosen = [run for run in runs if (run["data"], run["row"]) == (data, row)]
            assert len({run["seed"] for run in chosen}) >= 5
            assert all(run["AP"] > 0.2 for run in chosen), "what has learnt nothing compares nothing"


def test_the_interval_of_a_correlation_is_that_of_its_images() -> None:
    """Of independent points it is Fisher's; copies of a point within its image say nothing new."""
    random = np.random.default_rng(3)
    n, rho = 400, 0.6
    x = random.normal(size=n)
    y = rho * x + math.sqrt(1 - rho**2) * random.normal(size=n)
    image = np.arange(n)
    low, high = statistics_iou.interval(x, y, image, draws=4000)
    centre, half = math.atanh(np.corrcoef(x, y)[0, 1]), 1.96 / math.sqrt(n - 3)
    assert (low, high) == pytest.approx((math.tanh(centre - half), math.tanh(centre + half)), abs=0.02)
    copies = statistics_iou.interval(np.repeat(x, 5), np.repeat(y, 5), np.repeat(image, 5), draws=4000)
    assert copies == pytest.approx((low, high), abs=1e-9)


def test_the_statistics_are_those_that_analyze_sees(tmp_path) -> None:
    data = shapes.generate(tmp_path, seed=1, train=1, val=3, size=64)
    settings = {"model__num_classes": 5, "data__long_side": 64, "data__test_short_side": 64}
    model = GFLV2("gflv2_lite0", **settings).eval()
    names = list(shapes.CLASS_NAMES)
    dataset = CocoDetection(data.val, data.val_images, config=model.config.data, train=False, class_names=names)
    found = statistics_iou.statistics_of(model, dataset)
    seen = analyze(model, dataset, workers=0, progress=False).observations.points
    for name, other in (("top 1", "top1"), ("score", "score"), ("iou", "iou"), ("image", "image")):
        np.testing.assert_allclose(found[name], seen[other], rtol=1e-5, atol=1e-6)
    rows = {row["statistic"]: row for row in statistics_iou.rows_of(found)}
    assert {"score", "top 1", "mean of top 4", "variance of top 4", "negative entropy"} <= set(rows)
    assert all(float(row["low"]) <= float(row["high"]) for row in rows.values())
