"""The two figures of a sweep, drawn without pyplot, a backend or global state.

Optuna's own figures need pyplot, change its style for the whole process, and leave failed and stopped trials out; they are
a line away through `SweepResult.study` (see docs/sweeps.md).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.plots import Curve, draw_curve, panel, write_figure
from haepo_jax.runner.sweeps.results import Floats, SweepResult
from haepo_jax.runner.sweeps.space import Interval

BEST_CURVES = 5
Bools = npt.NDArray[np.bool_]


def write_figures(result: SweepResult, directory: Path) -> list[str]:
    """Writes every figure that the results allow as PNG; returns the files' names."""
    written = []
    for env in result.envs:
        part = f"-{env.replace('/', '-')}" if len(result.envs) > 1 else ""
        here = result.values["env"] == env if "env" in result.values else np.ones(len(result.configs), bool)
        figures = {"returns": returns_figure(result, here), "curves": curves_figure(result, here)}
        for name, figure in figures.items():
            if figure is not None:
                write_figure(figure, directory / f"{name}{part}.png")
                written.append(f"{name}{part}.png")
    return written


def returns_figure(result: SweepResult, here: Bools) -> Figure | None:
    """The return against every swept key, a point per trial; None where no trial has a return."""
    value = result.value
    complete, stopped = (here & (result.state == state) & np.isfinite(value) for state in ("complete", "stopped"))
    failed = here & (result.state == "failed")
    if not (complete | stopped).any():
        return None
    keys = [key for key in result.values if key != "env"]
    shares = importance(result) if len(result.envs) == 1 else {}
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(max(5.5, 1 + 3.4 * columns), 1 + 2.9 * rows), layout="constrained")
    jittered = False
    for place, key in enumerate(keys):
        axes = figure.add_subplot(rows, columns, place + 1)
        dimension = next(d for d in result.plan.dimensions if d.key == key)
        if isinstance(dimension, Interval):
            where = np.array([np.nan if v is None else v for v in result.values[key]], np.float64)
            axes.set_xscale("log" if dimension.log else "linear")
            # The whole interval: the marks of failed trials do not widen the axis by themselves.
            axes.set_xlim(dimension.low, dimension.high)
        else:
            order = {v: float(index) for index, v in enumerate(dimension.values)}
            where = np.array([order.get(v, np.nan) for v in result.values[key]])
            if crowded := (here & np.isfinite(where)).sum() > len(order):
                # Points of one value would cover each other; the shift is the trial's own, so a figure repeats.
                where = where + 0.3 * (np.random.default_rng(0).random(len(where)) - 0.5)
            jittered |= bool(crowded)
            axes.set_xticks(range(len(order)), list(map(value_text, order)), rotation=30 if len(order) > 4 else 0)
            axes.set_xlim(-0.5, len(order) - 0.5)
        axes.scatter(
            where[complete], value[complete], s=16, color="tab:blue", alpha=0.7, linewidths=0, label="complete"
        )
        if stopped.any():
            axes.scatter(
                where[stopped], value[stopped], s=14, facecolors="none", edgecolors="tab:gray", label="stopped early"
            )
        if failed.any():
            low = np.full(int(failed.sum()), 0.02)  # it has no return: its mark stands at the bottom
            axes.scatter(
                where[failed],
                low,
                s=24,
                marker="x",
                color="tab:red",
                transform=axes.get_xaxis_transform(),
                label="failed",
            )
        axes.set_xlabel(f"{key}\n(importance {shares[key]:.0%})" if key in shares else key)
        axes.set_ylabel("return" if place % columns == 0 else "")
        axes.grid(alpha=0.3)
        if place == 0 and (stopped | failed).any():
            figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    seeds = result.returns.shape[1]
    parts = [f"final return, {f'mean over {seeds} seeds' if seeds > 1 else 'one seed'}"]
    parts += ["listed values spread sideways so that points do not overlap"] if jittered else []
    figure.suptitle("\n".join(parts), fontsize=10)
    return figure


def curves_figure(result: SweepResult, here: Bools) -> Figure | None:
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
    _draw(axes, f"all {int(shown.sum())} trials", result.curve_steps[shown].max(axis=0), every, "tab:gray")
    ended = shown & (result.state == "complete")
    best = [index for index in np.argsort(-np.where(ended, result.value, -np.inf))[:BEST_CURVES] if ended[index]]
    for index in best:
        label = " ".join(f"{key.removeprefix('algo.')}={_short(value)}" for key, value in result.configs[index].items())
        _draw(axes, label, result.curve_steps[index], result.curves[index])
    axes.set_xlim(left=0)
    axes.legend(fontsize=7)
    return figure


def _draw(axes: Axes, label: str, steps: Floats, returns: Floats, colour: str | None = None) -> None:
    known = np.isfinite(returns).any(axis=1)  # a line through the parts in which an episode ended
    draw_curve(axes, Curve(label, steps[known], returns[known]), colour=colour)


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
