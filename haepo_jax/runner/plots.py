"""Learning curves. Figures are objects of their own: no pyplot, no display, no global state."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.run_dir import RunDir, write_atomically
from haepo_jax.runner.statistics import bootstrap_interval, interquartile_mean


@dataclasses.dataclass(frozen=True)
class Curve:
    """Returns against live steps.

    Attributes:
      label: for the legend.
      steps: (rows,) live steps per seed.
      returns: (rows, seeds), NaN where there is none.
    """

    label: str
    steps: npt.NDArray[np.float64]
    returns: npt.NDArray[np.float64]


def read_curve(directory: RunDir, label: str | None = None) -> Curve:
    """The curve of a run, finished or not: evaluation returns, or where it has no evaluation those of training."""
    rows = directory.read_metrics()
    if not rows:
        raise ConfigError(f"run_dir={str(directory.path)!r} has no rows in its metrics yet")
    if label is None:
        config = directory.read_config(own=True)
        label = f"{config.algo.name} on {config.env} ({directory.path.name})"
    try:
        name = "eval_return" if "eval_return" in rows[0] else "episode_return"
        returns = np.array([row["seeds"][name] for row in rows], np.float64)
        steps = np.array([row["env_steps"] for row in rows], np.float64)
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{str(directory.metrics)!r} holds no returns that can be drawn") from None
    # Not every row of a short run is evaluated.
    known = ~np.isnan(returns).all(axis=1) if name == "eval_return" else np.ones(len(rows), bool)
    return Curve(label, steps[known], returns[known]) if known.any() else Curve(label, steps, returns)


def draw_curve(axes: Axes, curve: Curve, colour: str | None = None) -> None:
    """Draws the interquartile mean over seeds, with its 95% bootstrap interval where there are at least two."""
    middle = np.array(
        [interquartile_mean(known) if len(known := row[~np.isnan(row)]) else np.nan for row in curve.returns]
    )
    # A line through a single point cannot be seen.
    marker = "o" if np.isfinite(middle).sum() < 2 else None
    (line,) = axes.plot(curve.steps, middle, label=curve.label, color=colour, marker=marker, linewidth=1.8)
    if curve.returns.shape[1] > 1:
        low, high = bootstrap_interval(curve.returns)
        axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def curves_figure(curves: Sequence[Curve], title: str = "") -> Figure:
    """One figure with every curve; a single curve's label is its title where none is given."""
    title = title or (curves[0].label if len(curves) == 1 else "")
    several = max(curve.returns.shape[1] for curve in curves) > 1
    band = "interquartile mean and 95% interval over seeds" if several else "one seed"
    xlabel = "environment steps per seed" if several else "environment steps"
    figure, axes = panel(xlabel, "return", f"{title}\n({band})" if title else band)
    for curve in curves:
        draw_curve(axes, curve)
    axes.set_xlim(left=0)
    if len(curves) > 1:
        axes.legend()
    return figure


def panel(xlabel: str, ylabel: str, title: str, size: tuple[float, float] = (7, 4.2)) -> tuple[Figure, Axes]:
    """A figure of a size in inches and its only axes."""
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    return figure, axes


def figure_png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def write_figure(figure: Figure, file: Path) -> None:
    """Writes a PNG, replacing the file in one step."""
    write_atomically(file, figure_png(figure))
