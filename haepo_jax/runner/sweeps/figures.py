"""The two figures of a sweep, drawn without pyplot, a backend or global state.

Optuna's own figures need pyplot, change its style for the whole process, and leave failed and stopped trials out; they are
a line away through `SweepResult.study` (see docs/sweeps.md).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.plots import Curve, draw_curve, panel, write_figure
from haepo_jax.runner.sweeps.results import SweepResult
from haepo_jax.runner.sweeps.space import Interval

BEST_CURVES = 5
MARKS: dict[str, dict[str, Any]] = {
    "complete": {"s": 16, "color": "tab:blue", "label": "complete", "alpha": 0.7, "linewidths": 0},
    "stopped": {"s": 14, "facecolors": "none", "edgecolors": "tab:gray", "label": "stopped early"},
    "failed": {"s": 24, "color": "tab:red", "marker": "x", "label": "failed"},
}
"""How the trials of each state are drawn."""


def write_figures(result: SweepResult, directory: Path) -> list[str]:
    """Writes every figure that the results allow as PNG; returns the files' names."""
    written = []
    for env in result.envs:
        part = f"-{env.replace('/', '-')}" if len(result.envs) > 1 else ""
        here = result.values["env"] == env if "env" in result.values else np.ones(len(result.configs), bool)
        for name, draw in (("returns", returns_figure), ("curves", curves_figure)):
            figure = draw(result, here)
            if figure is not None:
                write_figure(figure, directory / f"{name}{part}.png")
                written.append(f"{name}{part}.png")
    return written


def returns_figure(result: SweepResult, here: npt.NDArray[np.bool_]) -> Figure | None:
    """The return against every swept key, a point per trial; None where no trial has a return."""
    value, states = result.value, np.where(here, result.state, "")
    if not (np.isin(states, ("complete", "stopped")) & np.isfinite(value)).any():
        return None
    dimensions = [dimension for dimension in result.dimensions if dimension.key != "env"]
    shares = importance(result) if len(result.envs) == 1 else {}
    columns = min(3, len(dimensions))
    rows = -(-len(dimensions) // columns)
    figure = Figure(figsize=(max(5.5, 1 + 3.4 * columns), 1 + 2.9 * rows), layout="constrained")
    crowded = False
    for number, dimension in enumerate(dimensions):
        key = dimension.key
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.set_xlabel(f"{key}\n(importance {shares[key]:.0%})" if key in shares else key)
        axes.set_ylabel("return" if number % columns == 0 else "")
        axes.grid(alpha=0.3)
        if isinstance(dimension, Interval):
            where = result.values[key].astype(np.float64)  # None, of another algorithm's trials, becomes NaN
            axes.set_xscale("log" if dimension.log else "linear")
            # The whole interval: the marks of failed trials do not widen the axis by themselves.
            axes.set_xlim(dimension.low, dimension.high)
        else:
            order = {listed: index for index, listed in enumerate(dimension.values)}
            where = np.array([order.get(listed, np.nan) for listed in result.values[key]], np.float64)
            axes.set_xticks(range(len(order)), list(map(value_text, order)), rotation=30 if len(order) > 4 else 0)
            axes.set_xlim(-0.5, len(order) - 0.5)
            if (here & np.isfinite(where)).sum() > len(order):
                # Points of one value would cover each other; the shift is the trial's own, so a figure repeats.
                crowded, where = True, where + 0.3 * (np.random.default_rng(0).random(len(where)) - 0.5)
        for state, style in MARKS.items():
            if (shown := states == state).any():
                # One that failed has no return: its mark stands at the bottom.
                position, height = axes.transData, value[shown]
                if state == "failed":
                    position, height = axes.get_xaxis_transform(), np.full(shown.sum(), 0.02)
                axes.scatter(where[shown], height, transform=position, **style)
    if np.isin(states, ("stopped", "failed")).any():
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False
        )
    seeds = result.returns.shape[1]
    title = f"final return, {f'mean over {seeds} seeds' if seeds > 1 else 'one seed'}"
    note = "\nlisted values spread sideways so that points do not overlap" if crowded else ""
    figure.suptitle(title + note, fontsize=10)
    return figure


def curves_figure(result: SweepResult, here: npt.NDArray[np.bool_]) -> Figure | None:
    """Returns in training: of the best trials over their seeds, and over all trials; None where no episode ended."""
    shown = here & np.isin(result.state, ("complete", "stopped")) & np.isfinite(result.curves).any(axis=(1, 2))
    if not shown.any():
        return None
    seeds = result.returns.shape[1]
    title = f"interquartile mean and 95% interval over {f'{seeds} seeds, and ' if seeds > 1 else ''}all trials"
    figure, axes = panel("environment steps per seed", "return in training", title)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of parts of a run in which no episode ended
        every = np.nanmean(result.curves[shown], axis=2).T
    steps = result.curve_steps[shown].max(axis=0)
    draw_curve(axes, Curve(f"all {int(shown.sum())} trials", steps, every), colour="tab:gray")
    ended = np.flatnonzero(shown & (result.state == "complete"))
    for index in ended[np.argsort(-result.value[ended], kind="stable")][:BEST_CURVES]:
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
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            return dict(optuna.importance.get_param_importances(result.study, evaluator=evaluator))
        except (ValueError, RuntimeError, ImportError):  # no key that all trials share, or each with one value only
            return {}
