"""What a sweep found: arrays for Python, and a table, a summary and figures on disk."""

from __future__ import annotations

import collections
import contextlib
import csv
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.runner.run_dir import json_text, write_atomically

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.runner.sweeps.builder import Builder
    from haepo_jax.runner.sweeps.study import Study

ROUNDING = "rounding differs between one run and many in a batch, so a repeated run drifts apart after a few updates"
"""Why the best trial, trained again by its command, does not end at the same return."""


class SweepResult:
    """The trials of a sweep by index: N trials, S seeds each, P curve points. Unknown numbers are NaN, counts -1.

    Attributes:
      values: every swept key, (N,): numbers where all are numbers, else objects.
      returns: (N, S) final evaluation return, sampled actions; of a trial that halving stopped, that at its last rung;
        NaN for a seed that diverged.
      value: (N,) what is maximised: the mean return over a trial's seeds; NaN for one that failed.
      state: (N,) `complete`; `stopped` by halving; `failed`: a seed diverged or its return is not finite; `running`.
      env_steps: (N, S) done.
      diverged_at: (N, S) the update at which a seed was frozen because it was not finite, or -1.
      curve_steps: (P,) valid steps at the end of each segment of the run.
      curves: (N, P, S) mean training return in each segment.
      configs: (N,) each trial's values as the command line names them.
      rows: the table, as in `trials.csv`.
      study: Optuna's study.
    """

    def __init__(self, study: Study, builder: Builder) -> None:
        """Reads the results so far, of all workers."""
        settings = builder.plan.settings
        seeds, points = settings.num_seeds, settings.curve_points
        self._builder, self.study = builder, study.optuna
        self.curve_steps = settings.total_steps * np.arange(1, points + 1) / points
        trials = [trial for _, trial in sorted(study.by_index().items()) if trial.state.name != "WAITING"]
        self.configs = [study.values(trial) for trial in trials]
        self.values = {d.key: _column([config.get(d.key) for config in self.configs]) for d in builder.plan.dimensions}
        unknown: dict[str, Any] = {
            "return_per_seed": [None] * seeds,
            **dict.fromkeys(("env_steps_per_seed", "updates_per_seed", "diverged_at_per_seed"), [-1] * seeds),
            "curve_steps": self.curve_steps.tolist(),
            "curve_return_per_seed": [[None] * points] * seeds,
        }
        results = [unknown | study.result(trial) for trial in trials]

        def stacked(name: str, *shape: int) -> npt.NDArray[np.float64]:
            # None stands for a number that is not finite, which JSON does not have.
            return np.array([result[name] for result in results], np.float64).reshape(len(trials), *shape)

        self.state = np.array([study.state(trial) for trial in trials], np.str_)
        self.returns = stacked("return_per_seed", seeds)
        self.value = self.returns.mean(axis=1)
        self.env_steps = stacked("env_steps_per_seed", seeds).astype(np.int64)
        self.diverged_at = stacked("diverged_at_per_seed", seeds).astype(np.int64)
        self.curves = stacked("curve_return_per_seed", seeds, points).transpose(0, 2, 1)
        self.rows = [
            {
                "index": index,
                "trial": trial.number,
                "state": study.state(trial),
                "return": float(self.value[index]),
                **{key: self.configs[index].get(key) for key in self.values},
                **results[index],
            }
            for index, trial in enumerate(trials)
        ]

    def best(self) -> int | None:
        """The index of the best complete trial; None: there is none."""
        ended = (self.state == "complete") & np.isfinite(self.value)
        return int(np.argmax(np.where(ended, self.value, -np.inf))) if ended.any() else None

    def algorithm(self, index: int) -> Algorithm:
        """A trial's algorithm on its environment, as `hx.train` takes it."""
        return self._builder(self.configs[index])

    def command(self, index: int) -> str:
        """The command line that trains a trial's configuration alone, on the same seeds; a comment that says why if there
        is none, because its environment or algorithm is a custom object.

        In exact arithmetic it is the same run; rounding differs, so the two drift apart after a few updates.
        """
        return self._builder.command(self.configs[index])

    def __repr__(self) -> str:
        states = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        best = self.best()
        found = "" if best is None else f"; best: trial {best}, return {self.value[best]:.4g}, {self.configs[best]}"
        return f"SweepResult({len(self.configs)} trials of {', '.join(self.values)}: {states}{found})"

    def counts(self) -> dict[str, int]:
        """How many trials there are of each state."""
        return dict(sorted(collections.Counter(self.state.tolist()).items()))


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values)
    return np.fromiter(values, object, len(values))


def write_table(result: SweepResult, directory: Path) -> None:
    """Writes `trials.csv`, its lists as JSON, in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, result.rows[0] if result.rows else ["index"], lineterminator="\n")
    writer.writeheader()
    for row in result.rows:
        writer.writerow({key: json_text(x) if isinstance(x, list | tuple) else x for key, x in row.items()})
    write_atomically(directory / "trials.csv", text.getvalue())


def write_summary(result: SweepResult, directory: Path) -> None:
    """Writes `summary.json`, with the best configuration and its command."""
    index = result.best()
    best = None
    if index is not None:
        value, command = float(result.value[index]), result.command(index)
        best = {"index": index, "return": value, "values": result.configs[index], "command": command}
    summary = {
        "trials": len(result.configs),
        "states": result.counts(),
        "env_steps": int(result.env_steps[result.env_steps >= 0].sum()),
        "best": best,
        "note": f"{ROUNDING}; compare it over several seeds",
    }
    write_atomically(directory / "summary.json", json_text(summary, indent=2) + "\n")


def write_figures(result: SweepResult, directory: Path) -> list[str]:
    """Writes Optuna's figures as PNG: the return against each key, the best return so far, and the importance of the keys
    (PED-ANOVA). Returns the files' names; none where no trial has trained to its end.

    Optuna draws with pyplot, whose style and backend stay those of the caller.
    """
    if "complete" not in result.state:
        return []
    import optuna
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances, plot_slice

    from haepo_jax.runner.plots import figure_png

    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    figures: dict[str, Any] = {
        "slice.png": lambda: plot_slice(result.study, target_name="return"),
        "history.png": lambda: plot_optimization_history(result.study, target_name="return"),
        "importance.png": lambda: plot_param_importances(result.study, evaluator=evaluator, target_name="return"),
    }
    backend = pyplot.get_backend()
    pyplot.switch_backend("agg")
    try:
        with pyplot.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, draw in figures.items():
                figure = np.ravel(draw())[0].figure
                write_atomically(directory / name, figure_png(figure))
                pyplot.close(figure)
    finally:
        with contextlib.suppress(ImportError):  # of a backend that needs a display, where there is none
            pyplot.switch_backend(backend)
    return [*figures]
