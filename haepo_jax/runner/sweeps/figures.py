"""Figures of a sweep: objects of their own, without pyplot, display or global state."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.plots import Curve, draw_curve, panel, write_figure
from haepo_jax.runner.sweeps.results import SweepResult
from haepo_jax.runner.sweeps.space import Interval

BEST_CURVES = 5


def write_figures(result: SweepResult, directory: Path) -> list[str]:
    """Writes every figure that the results allow as PNG; returns the files' names."""
    written = []
    for env in result.envs:
        part = f"-{env.replace('/', '-')}" if len(result.envs) > 1 else ""
        shown = _shown(result, env)
        if not shown.any():
            continue
        figures = {
            "returns": returns_figure(result, shown),
            "parallel": parallel_figure(result, shown),
            "curves": curves_figure(result, shown),
            "importance": importance_figure(result) if len(result.envs) == 1 else None,
        }
        for name, figure in figures.items():
            if figure is not None:
                write_figure(figure, directory / f"{name}{part}.png")
                written.append(f"{name}{part}.png")
    return written


def _shown(result: SweepResult, env: str) -> npt.NDArray[np.bool_]:
    """The trials of an environment that have a return."""
    shown = np.isfinite(result.value)
    return shown & (result.values["env"] == env) if "env" in result.values else shown


def _positions(result: SweepResult, key: str) -> tuple[npt.NDArray[np.float64], list[str] | None, bool]:
    """Where each trial stands on an axis: numbers by value, others by their place in the list; labels; logarithmic."""
    dimension = next(d for d in result.plan.dimensions if d.key == key)
    column = result.values[key]
    if isinstance(dimension, Interval):
        return np.array([np.nan if value is None else value for value in column], np.float64), None, dimension.log
    order = {value: float(place) for place, value in enumerate(dimension.values)}
    return np.array([order.get(value, np.nan) for value in column]), list(map(value_text, order)), False


def returns_figure(result: SweepResult, shown: npt.NDArray[np.bool_]) -> Figure:
    """The return against every swept key, one point per trial; those that halving stopped are hollow."""
    keys = [key for key in result.values if key != "env"]
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(1 + 3.4 * columns, 0.6 + 2.9 * rows), layout="constrained")
    ended = shown & (result.state == "complete")
    for place, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, place + 1)
        where, labels, log = _positions(result, key)
        axes.set_xscale("log" if log else "linear")
        if labels is not None:
            # Points of one category would cover each other; the shift is the trial's own, so a figure repeats.
            where = where + 0.3 * (np.random.default_rng(0).random(len(where)) - 0.5)
            axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
            axes.set_xlim(-0.5, len(labels) - 0.5)
        stopped = shown & ~ended
        axes.scatter(
            where[stopped], result.value[stopped], s=14, facecolors="none", edgecolors="tab:gray", linewidths=0.8
        )
        axes.scatter(where[ended], result.value[ended], s=16, color="tab:blue", alpha=0.7, linewidths=0)
        axes.set_xlabel(key)
        if place % columns == 0:
            axes.set_ylabel("return")
        axes.grid(alpha=0.3)
    hollow = "; hollow: stopped early" if (shown & ~ended).any() else ""
    figure.suptitle(f"final return, mean over {result.returns.shape[1]} seeds{hollow}", fontsize=11)
    return figure


def parallel_figure(result: SweepResult, shown: npt.NDArray[np.bool_]) -> Figure:
    """Parallel coordinates: a line per trial through its values, the best drawn last and brightest."""
    from matplotlib import colormaps

    keys = [key for key in result.values if key != "env"]
    figure = Figure(figsize=(2.5 + 1.7 * len(keys), 4.2), layout="constrained")
    axes = figure.add_subplot()
    value = result.value
    low, high = float(value[shown].min()), float(value[shown].max())
    scaled = (value - low) / (high - low) if high > low else np.full_like(value, 0.5)
    heights = []
    for place, key in enumerate(keys):
        where, labels, log = _positions(result, key)
        where = np.log(where) if log else where
        first, last = float(np.nanmin(where[shown], initial=np.inf)), float(np.nanmax(where[shown], initial=-np.inf))
        heights.append((where - first) / (last - first) if last > first else np.where(np.isnan(where), np.nan, 0.5))
        texts = [
            f"{np.exp(end) if log else end:.3g}" if labels is None else labels[int(end)]
            for end in (first, last)
            if np.isfinite(end)
        ]
        for text, height in zip(texts, (0.0, 1.0), strict=False):
            axes.annotate(text, (place, height), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")
    heights.append(scaled)
    for index in [i for i in np.argsort(scaled) if shown[i]]:
        line = [height[index] for height in heights]
        axes.plot(
            range(len(line)),
            line,
            color=colormaps["viridis"](scaled[index]),
            alpha=0.2 + 0.7 * scaled[index],
            linewidth=1,
        )
    for text, height in ((f"{low:.4g}", 0.0), (f"{high:.4g}", 1.0)):
        axes.annotate(text, (len(keys), height), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")
    axes.set_xticks(range(len(keys) + 1), [*keys, "return"], rotation=20 if len(keys) > 3 else 0)
    axes.set_yticks([])
    for place in range(len(keys) + 1):
        axes.axvline(place, color="black", linewidth=0.6)
    axes.set_xlim(-0.1, len(keys) + 0.4)
    axes.set_title("one line per trial, from low return (dark) to high (bright)", fontsize=11)
    return figure


def curves_figure(result: SweepResult, shown: npt.NDArray[np.bool_]) -> Figure:
    """Training returns: the interquartile mean and 95% interval over seeds of the best trials, and over all trials."""
    title = "interquartile means and 95% intervals: over seeds, and over all trials"
    figure, axes = panel("environment steps per seed", "return in training", title)
    every = result.curves[shown].mean(axis=2).T
    draw_curve(
        axes, Curve(f"all {int(shown.sum())} trials", result.curve_steps[shown].max(axis=0), every), colour="tab:gray"
    )
    ended = shown & (result.state == "complete")
    best = [int(index) for index in np.argsort(-np.where(ended, result.value, -np.inf))[:BEST_CURVES] if ended[index]]
    for index in best:
        label = " ".join(f"{key.removeprefix('algo.')}={_short(value)}" for key, value in result.configs[index].items())
        draw_curve(axes, Curve(label, result.curve_steps[index], result.curves[index]))
    axes.set_xlim(left=0)
    axes.legend(fontsize=7)
    return figure


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value_text(value)


def importance(result: SweepResult) -> dict[str, float]:
    """How much each key matters for the return, in shares of one (PED-ANOVA); empty where too little is known."""
    import optuna

    ended = result.value[(result.state == "complete") & np.isfinite(result.value)]
    if len(ended) < 4 or np.ptp(ended) == 0:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(
                optuna.importance.get_param_importances(
                    result.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
                )
            )
        except (ValueError, RuntimeError, ImportError):  # no key that all trials share, or each with one value only
            return {}


def importance_figure(result: SweepResult) -> Figure | None:
    """A bar for each key; None where importance cannot be told."""
    shares = importance(result)
    if not shares:
        return None
    figure = Figure(figsize=(6, 0.9 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    axes.barh(names, [shares[name] for name in names], color="tab:blue")
    axes.set_xlim(0, 1)
    axes.set_xlabel("importance for the return (PED-ANOVA)")
    return figure
