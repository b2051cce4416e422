"""Figures of returns: what is drawn of few updates, of missing values, and of histograms."""

from __future__ import annotations

import numpy as np
import pytest

from haepo_jax.runner.plots import (
    Curve,
    curves_figure,
    figure_png,
    histogram_figure,
    over_seeds,
)
from haepo_jax.statistics import bootstrap_interval, interquartile_mean


def curve(returns: object, label: str = "haepo") -> Curve:
    array = np.array(returns, float)
    return Curve(label, 100.0 * np.arange(1, len(array) + 1), array)


def test_a_single_update_is_marked() -> None:
    line = curves_figure([curve(np.ones((1, 1)))]).axes[0].lines[0]
    assert line.get_marker() == "o" and len(line.get_xdata()) == 1


def test_updates_without_a_return_do_not_break_the_line() -> None:
    nan = np.nan
    axes = curves_figure([curve([[nan, nan], [1, 3], [nan, nan], [5, nan], [nan, np.inf]])]).axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[200, 2], [400, 5]])


def test_the_line_and_the_band_are_the_statistics_that_the_title_names() -> None:
    returns = np.random.default_rng(0).normal(size=(30, 6))
    figure = curves_figure([curve(returns)], "title")
    axes = figure.axes[0]
    assert figure.get_suptitle() == "title\n(interquartile mean and 95% interval over 6 seeds)"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), interquartile_mean(returns))
    band = axes.collections[0].get_paths()[0].vertices
    for limit in bootstrap_interval(returns):
        assert np.isin(limit, band[:, 1]).all()


def test_a_curve_without_a_return_is_drawn() -> None:
    assert figure_png(curves_figure([curve([[np.nan, np.nan]])])).startswith(b"\x89PNG")


def test_dollars_in_names_are_no_mathematics() -> None:
    figure = curves_figure([curve([[1]], r"a $\frac$ b"), curve([[2]], "c $x^$")], r"title $\frac$")
    assert figure_png(figure).startswith(b"\x89PNG")
    assert figure_png(histogram_figure({"greedy": [1.0]}, r"$\frac$")).startswith(b"\x89PNG")


def test_what_a_title_says_of_the_seeds() -> None:
    assert over_seeds([1, 1]) == "one seed"
    assert over_seeds([2]) == "mean and 95% interval over 2 seeds"
    assert over_seeds([20]) == "interquartile mean and 95% interval over 20 seeds"
    assert over_seeds([1, 5]).endswith("over 1 to 5 seeds")


def test_evaluation_and_training_returns_are_named_on_the_axis() -> None:
    one, two = curve([[1]]), Curve("b", np.array([1.0]), np.ones((1, 1)), "return in training")
    assert curves_figure([one, two]).axes[0].get_ylabel() == "return or return in training"


def test_curves_have_colours_and_a_legend() -> None:
    several = [curve([[index]], f"run {index}") for index in range(5)]
    figure = curves_figure(several)
    assert len({line.get_color() for line in figure.axes[0].lines}) == 5
    assert len(figure.legends) == 1 and figure.axes[0].get_legend() is None
    assert not curves_figure(several[:1]).legends


@pytest.mark.parametrize(
    "values", [[5.0], [500.0] * 100, [1e30, 1e30], [-1e9, 0, 1e9], list(range(100)), [1.0, 1.0 + 1e-15], [np.nan]]
)
def test_histograms_of_anything(values: list[float]) -> None:
    figure = histogram_figure({"sampled": [values], "greedy": [[np.inf, 3.0]]}, "title")
    assert figure_png(figure).startswith(b"\x89PNG")
    sampled, greedy = figure.axes
    known = int(np.isfinite(values).any())
    assert sum(bar.get_height() for bar in sampled.patches) == pytest.approx(known)  # type: ignore[attr-defined]
    assert sum(bar.get_height() for bar in greedy.patches) == pytest.approx(1)  # type: ignore[attr-defined]


def test_equal_returns_stand_on_an_axis_as_wide_as_they_are_large() -> None:
    axes = histogram_figure({"sampled": [[500.0] * 10]}, "title").axes[0]
    low, high = axes.get_xlim()
    assert low < 451 and high > 549
    (bar,) = (patch for patch in axes.patches if patch.get_height())  # type: ignore[attr-defined]
    assert bar.get_x() + bar.get_width() / 2 == pytest.approx(500)
