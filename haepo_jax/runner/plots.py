"""Figures of returns: learning curves, comparisons, histograms. Objects of their own: no pyplot, backend or display.

The figures of a sweep are Optuna's; pictures of episodes and the page of many runs are in `rendering`.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from haepo_jax.messages import number
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.run_dir import RunDir
from haepo_jax.statistics import Array, bootstrap_interval, interquartile_mean_of_known

PANEL_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Curve:
    """Returns against environment steps.

    Attributes:
      label: for the legend.
      steps: (rows,) environment steps per seed.
      returns: (rows, seeds), NaN where there is none.
      quantity: what the returns are of, for the axis.
    """

    label: str
    steps: Array
    returns: Array
    quantity: str = "return"


def read_curve(directory: RunDir, label: str | None = None) -> Curve:
    """The curve of a run, finished or not: evaluation returns, or without evaluations those of training.

    Raises:
      ConfigError: the run has no metrics yet, or none that can be drawn.
    """
    rows = directory.read_metrics()
    if not rows:
        raise ConfigError(f"run_dir={str(directory.path)!r} has no rows in its metrics yet")
    if label is None:
        config = directory.read_config(custom=True)
        label = f"{config.algo.name} on {config.env} ({directory.path.name})"
    evaluated = "eval_return" in rows[0]
    try:
        name = "eval_return" if evaluated else "episode_return"
        returns = np.array([row["seeds"][name] for row in rows], np.float64)
        steps = np.array([row["env_steps"] for row in rows], np.float64)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{str(directory.metrics)!r} holds no returns that can be drawn") from None
    return Curve(label, steps, returns, f"return in {'evaluation' if evaluated else 'training'}")


def over_seeds(counts: Iterable[int]) -> str:
    """What a curve and its band are, given the number of seeds of each run: for titles."""
    low, high = min(counts := list(counts)), max(counts)
    if high == 1:
        return "one seed"
    # With fewer than four values there are no outer quarters to leave out.
    mean = "mean" if high < 4 else "interquartile mean"
    return f"{mean} and 95% interval over {high if low == high else f'{low} to {high}'} seeds"


def draw_curve(axes: Axes, curve: Curve, colour: str | None = None) -> Line2D:
    """Draws the interquartile mean over seeds, with its 95% bootstrap interval where there are at least two; returns the
    line.

    Rows without any return, such as updates in which no episode ended, are left out: the line goes through them.
    """
    returns = np.where(np.isfinite(curve.returns), curve.returns, np.nan)
    known = ~np.isnan(returns).all(axis=1)
    steps, returns = curve.steps[known], returns[known]
    middle = interquartile_mean_of_known(returns)
    # Marked, because through one point there is no line.
    (line,) = axes.plot(
        steps, middle, label=_verbatim(curve.label), color=colour, linewidth=1.8, marker="o", markersize=3
    )
    if returns.shape[1] > 1 and len(steps):
        low, high = bootstrap_interval(returns)
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def curves_figure(curves: Sequence[Curve], title: str = "") -> Figure:
    """One figure with every curve; a single curve's label is its title where none is given."""
    return _panels({"": curves}, title or (curves[0].label if len(curves) == 1 else ""))


def comparison_figure(runs: Sequence[tuple[str, str, RunDir]]) -> Figure:
    """Learning curves of runs (algo, env, directory), one panel per environment and one colour per algorithm."""
    panels: dict[str, list[Curve]] = {}
    for algo, env, run in runs:
        panels.setdefault(env, []).append(read_curve(run, label=algo))
    return _panels(panels)


def _panels(panels: Mapping[str, Sequence[Curve]], title: str = "") -> Figure:
    """Curves by the title of their panel, one colour per label; with a legend where there are several labels."""
    every = [curve for curves in panels.values() for curve in curves]
    labels = list(dict.fromkeys(curve.label for curve in every))
    columns = min(PANEL_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.8 + 5.2 * columns, 0.9 + 3.5 * rows), layout="constrained")
    handles: dict[str, Line2D] = {}
    for index, (name, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        for curve in curves:
            handles[curve.label] = draw_curve(axes, curve, f"C{labels.index(curve.label) % 10}")
        per_seed = " per seed" if any(curve.returns.shape[1] > 1 for curve in curves) else ""
        quantity = " or ".join(dict.fromkeys(curve.quantity for curve in curves))
        axes.set(xlabel=f"environment steps{per_seed}", ylabel=quantity)
        axes.set_title(_verbatim(name), fontsize=11)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    if len(labels) > 1:
        figure.legend(handles=[*handles.values()], loc="outside lower center", ncols=2 * columns, frameon=False)
    seeds = over_seeds(curve.returns.shape[1] for curve in every)
    figure.suptitle(f"{_verbatim(title)}\n({seeds})" if title else seeds, fontsize=11, wrap=True)
    return figure


def _verbatim(text: str) -> str:
    """Names and paths may contain dollar signs, between which matplotlib expects TeX."""
    return text.replace("$", r"\$")


def histogram_figure(returns: Mapping[str, npt.ArrayLike], title: str) -> Figure:
    """How the returns of episodes, of any shape, are spread: for each kind of action an axes, all on one scale."""
    known = {kind: array[np.isfinite(array)] for kind, values in returns.items() for array in [np.asarray(values)]}
    figure = Figure(figsize=(7, 0.8 + 2 * len(known)), layout="constrained")
    figure.suptitle(_verbatim(title), fontsize=11)
    every = np.concatenate(list(known.values())).astype(np.float64)
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 0.0)
    # Returns that are equal but for rounding stand as one bar, on an axis as wide as they are large.
    margin = max(1.0, 0.1 * abs(high)) if high - low <= 1e-6 * max(abs(low), abs(high)) else 0.0
    edges = np.linspace(low - margin, high + margin, 16 if margin else 41)
    rows = figure.subplots(len(known), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (kind, values) in zip(rows, known.items(), strict=True):
        mean = f", mean {number(float(values.mean()))}" if len(values) else ": no finite return"
        axes.set_title(f"{kind} actions{mean}", fontsize=10)
        axes.hist(values, edges.tolist(), weights=np.full(len(values), 1 / max(1, len(values))))
        axes.set_ylabel("share of episodes")
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
    rows[-1].set_xlabel("return of an episode")
    return figure


def figure_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
