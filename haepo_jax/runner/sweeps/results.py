"""What a sweep found: arrays for Python, a table on disk, and the command that trains a configuration alone."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.runner.run_dir import json_text, write_atomically

if TYPE_CHECKING:
    import pandas

    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.runner.sweeps.builder import Builder
    from haepo_jax.runner.sweeps.study import Study

Floats = npt.NDArray[np.float64]


class SweepResult:
    """The trials of a sweep by index: N trials, S seeds each, P curve points. Unknown numbers are NaN, counts -1.

    Attributes:
      values: every swept key, (N,): numbers where all are numbers, else objects; None where a trial's algorithm has no
        such key.
      returns: (N, S) final evaluation return, sampled actions; of a trial that halving stopped, that at its last rung;
        NaN for a seed that diverged.
      value: (N,) what is maximised: the mean return over a trial's seeds; NaN for one that failed.
      state: (N,) `complete`; `stopped` by halving; `failed`: a seed diverged or its return is not finite; `running`.
      env_steps, updates: (N, S) done.
      diverged_at: (N, S) the update at which a seed was frozen because it was not finite, or -1.
      curve_steps: (N, P) valid steps at the end of each part of the run.
      curves: (N, P, S) mean training return in each part.
      configs: (N,) each trial's values as the command line names them.
      rows: the table, as in `trials.csv`.
      study: Optuna's study.
    """

    def __init__(self, study: Study, builder: Builder) -> None:
        """Reads the results so far, of all workers."""
        settings = builder.plan.settings
        seeds, points = settings.num_seeds, settings.curve_points
        nothing: dict[str, Any] = {
            "return_per_seed": [None] * seeds,
            **dict.fromkeys(("env_steps_per_seed", "updates_per_seed", "diverged_at_per_seed"), [-1] * seeds),
            "curve_steps": [],
            "curve_return_per_seed": [[None] * points] * seeds,
        }
        trials = [trial for _, trial in sorted(study.by_index().items()) if trial.state.name != "WAITING"]
        self._builder, self.study, self.envs = builder, study.optuna, builder.plan.envs
        self.dimensions = builder.plan.dimensions
        self.configs = [study.values(trial) for trial in trials]
        self.values = {d.key: _column([config.get(d.key) for config in self.configs]) for d in builder.plan.dimensions}
        totals = [config.get("total_steps", settings.total_steps) for config in self.configs]
        parts = np.arange(1, points + 1)
        results = [
            nothing | {"curve_steps": (total * parts / points).tolist()} | study.result(trial)
            for total, trial in zip(totals, trials, strict=True)
        ]

        def stacked(name: str, *shape: int) -> Floats:
            # None stands for a number that is not finite, which JSON does not have.
            return np.array([result[name] for result in results], np.float64).reshape(len(trials), *shape)

        self.state = np.array([study.state(trial) for trial in trials], np.str_)
        self.returns = stacked("return_per_seed", seeds)
        self.value: Floats = self.returns.mean(axis=1)
        self.env_steps = stacked("env_steps_per_seed", seeds).astype(np.int64)
        self.updates = stacked("updates_per_seed", seeds).astype(np.int64)
        self.diverged_at = stacked("diverged_at_per_seed", seeds).astype(np.int64)
        self.curve_steps = stacked("curve_steps", points)
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

    def best(self, env: str | None = None) -> int | None:
        """The index of the best complete trial, in one environment of several; None: there is none."""
        ended = (self.state == "complete") & np.isfinite(self.value)
        if env is not None and "env" in self.values:
            ended &= self.values["env"] == env
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
        states = ", ".join(f"{(self.state == state).sum()} {state}" for state in dict.fromkeys(self.state.tolist()))
        best = self.best()
        found = "" if best is None else f"; best: trial {best}, return {self.value[best]:.4g}, {self.configs[best]}"
        return f"SweepResult({len(self.configs)} trials of {', '.join(self.values)}: {states}{found})"

    def to_pandas(self) -> pandas.DataFrame:
        """One row per trial, as in `trials.csv` but for the curves; needs pandas."""
        import pandas

        rows = [{key: value for key, value in row.items() if not key.startswith("curve")} for row in self.rows]
        return pandas.DataFrame(rows).set_index("index")


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values)
    return np.fromiter(values, object, len(values))


def write_table(result: SweepResult, directory: Path) -> None:
    """Writes `trials.csv`, its lists as JSON, in one step."""
    text = io.StringIO()
    names = dict.fromkeys(key for row in result.rows for key in row) or ["index"]
    writer = csv.DictWriter(text, [*names], lineterminator="\n")
    writer.writeheader()
    for row in result.rows:
        writer.writerow({key: json_text(x) if isinstance(x, list | tuple | dict) else x for key, x in row.items()})
    write_atomically(directory / "trials.csv", text.getvalue())
