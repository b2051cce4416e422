"""What a sweep found: arrays for Python, and a table, a summary and figures on disk."""

from __future__ import annotations

import collections
import csv
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.messages import number, short
from haepo_jax.runner.run_dir import json_text, write_atomically

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.runner.sweeps.study import Study

ROUNDING = "rounding differs between a single run and a batch, so training it alone gives slightly different numbers"
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
      curve_steps: (P,) valid steps at the end of each segment of the run.
      curves: (N, P, S) mean training return in each segment.
      configs: (N,) each trial's values as the command line names them.
      rows: the table, as in `trials.csv`.
      study: Optuna's study.
    """

    def __init__(self, study: Study) -> None:
        """Reads the results so far, of all workers."""
        self._plan, self.study = study.plan, study.optuna
        settings, keys = study.plan.settings, [dimension.key for dimension in study.plan.dimensions]
        seeds, points = settings.num_seeds, settings.curve_points
        self.curve_steps = settings.total_steps * np.arange(1, points + 1) / points
        unknown = {
            "return_per_seed": [None] * seeds,
            **dict.fromkeys(("env_steps_per_seed", "updates_per_seed", "diverged_at_per_seed"), [-1] * seeds),
            "curve_steps": self.curve_steps.tolist(),
            "curve_return_per_seed": [[None] * points] * seeds,
        }
        trials = [trial for _, trial in sorted(study.by_index().items())]
        results: list[dict[str, Any]] = [unknown | study.result(trial) for trial in trials]

        def stacked(name: str, *shape: int) -> npt.NDArray[np.float64]:
            # None stands for a number that is not finite, which JSON does not have.
            return np.array([result[name] for result in results], np.float64).reshape(len(trials), *shape)

        self.returns = stacked("return_per_seed", seeds)
        self.value = self.returns.mean(axis=1)
        self.env_steps = stacked("env_steps_per_seed", seeds).astype(np.int64)
        self.curves = stacked("curve_return_per_seed", seeds, points).transpose(0, 2, 1)
        self.state = np.array([study.state(trial) for trial in trials], np.str_)
        self.configs = [study.values(trial) for trial in trials]
        self.values = {key: _column([config.get(key) for config in self.configs]) for key in keys}
        states, returns = self.state.tolist(), self.value.tolist()
        self.rows = [
            {"index": index, "trial": trial.number, "state": states[index], "return": returns[index]}
            | {key: self.configs[index].get(key) for key in keys}
            | results[index]
            for index, trial in enumerate(trials)
        ]

    def __repr__(self) -> str:
        index = self.best()
        best = "" if index is None else f", best return {number(self.value[index])} with {short(self.configs[index])}"
        return f"SweepResult({len(self.configs)} trials{best})"

    def best(self) -> int | None:
        """The index of the best complete trial; None: there is none."""
        ended = (self.state == "complete") & np.isfinite(self.value)
        return int(np.argmax(np.where(ended, self.value, -np.inf))) if ended.any() else None

    def algorithm(self, index: int) -> Algorithm:
        """A trial's algorithm on its environment, as `hx.train` takes it."""
        return self._plan.build(self.configs[index])

    def command(self, index: int) -> str:
        """The command line that trains a trial's configuration alone, on the same seeds; a comment that says why if there
        is none, because its environment or algorithm is a custom object.

        In exact arithmetic it is the same run; rounding differs, so the two drift apart after a few updates.
        """
        return self._plan.command(self.configs[index])


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


def write_summary(result: SweepResult, directory: Path) -> dict[str, Any]:
    """Writes `summary.json`, with the best configuration and its command; returns what it holds."""
    summary: dict[str, Any] = {
        "trials": len(result.configs),
        "states": dict(sorted(collections.Counter(result.state.tolist()).items())),
        "env_steps": int(result.env_steps[result.env_steps >= 0].sum()),
        "best": None,
        "note": f"{ROUNDING}; compare it over several seeds",
    }
    if (index := result.best()) is not None:
        value, command = float(result.value[index]), result.command(index)
        summary["best"] = {"index": index, "return": value, "values": result.configs[index], "command": command}
    write_atomically(directory / "summary.json", json_text(summary, indent=2) + "\n")
    return summary


def write_figures(result: SweepResult, directory: Path) -> list[str]:
    """Writes Optuna's figures as PNG: the return against each key, and the best return so far. Returns the files' names; none
    where no trial has trained to its end.

    Optuna draws with pyplot, whose style stays that of the caller.
    """
    if "complete" not in result.state:
        return []
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_optimization_history, plot_slice

    plots: dict[str, Any] = {"slice.png": plot_slice, "history.png": plot_optimization_history}
    with pyplot.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, plot in plots.items():
            drawn, buffer = plot(result.study, target_name="return"), io.BytesIO()
            figure = np.ravel(np.asarray(drawn, object))[0].figure
            figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
            write_atomically(directory / name, buffer.getvalue())
            pyplot.close(figure)
    return [*plots]
