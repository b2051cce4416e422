"""What a sweep found: arrays for Python, a table on disk, and the command that trains a configuration alone."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.runner.run_dir import json_text, write_atomically
from haepo_jax.runner.sweeps.plan import SweepPlan
from haepo_jax.runner.sweeps.space import Values

if TYPE_CHECKING:
    import pandas

    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.runner.sweeps.builder import Builder
    from haepo_jax.runner.sweeps.study import Study

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDING = "rounding differs between one run and many in a batch, so a repeated run drifts apart after a few updates"
"""Why the best trial, trained again by its command, does not end at the same return."""


@dataclasses.dataclass(frozen=True, repr=False)
class SweepResult:
    """The trials of a sweep by index: N trials, S seeds each, P curve points. Unknown numbers are NaN, counts -1.

    Attributes:
      values: every swept key, (N,): numbers where all are numbers, else objects; None where a trial's algorithm has no
        such key.
      returns: (N, S) final evaluation return, sampled actions; of a trial that halving stopped, that at its last rung;
        NaN for a seed that diverged.
      state: (N,) `complete`; `stopped` by halving; `failed`: a seed diverged or its return is not finite; `running`.
      env_steps, updates: (N, S) done.
      diverged_at: (N, S) the update at which a seed was frozen because it was not finite, or -1.
      curve_steps: (N, P) valid steps at the end of each part of the run.
      curves: (N, P, S) mean training return in each part.
      changed: population-based training: the numbers of each trial after each round.
      number: (N,) of the trial in the study.
      configs: (N,) each trial's values as the command line names them.
      study: Optuna's study.
    """

    values: dict[str, npt.NDArray[Any]]
    returns: Floats
    state: npt.NDArray[np.str_]
    env_steps: Ints
    updates: Ints
    diverged_at: Ints
    curve_steps: Floats
    curves: Floats
    changed: list[dict[str, list[float]]]
    number: Ints
    configs: list[Values]
    study: Any
    plan: SweepPlan
    builder: Builder

    @property
    def value(self) -> Floats:
        """What is maximised: the mean return over a trial's seeds (N,); NaN for one that failed."""
        return self.returns.mean(axis=1)

    def best(self, env: str | None = None) -> int | None:
        """The index of the best complete trial, in one environment of several; None: there is none."""
        ended = (self.state == "complete") & np.isfinite(self.value)
        if env is not None and "env" in self.values:
            ended &= self.values["env"] == env
        return int(np.argmax(np.where(ended, self.value, -np.inf))) if ended.any() else None

    @property
    def envs(self) -> list[str]:
        """The environments of the sweep."""
        found = self.values["env"].tolist() if "env" in self.values else [self.plan.settings.env]
        return list(dict.fromkeys(found))

    def algorithm(self, index: int) -> Algorithm:
        """A trial's algorithm on its environment, as `hx.train` takes it."""
        return self.builder(self.configs[index])

    def command(self, index: int) -> str:
        """The command line that trains a trial's configuration alone, on the same seeds; a comment that says why where
        there is none, because its environment or algorithm is a custom object.

        In exact arithmetic it is the same run; rounding differs, so the two drift apart after a few updates.
        """
        return self.builder.command(self.configs[index])

    def __repr__(self) -> str:
        states = ", ".join(f"{(self.state == state).sum()} {state}" for state in dict.fromkeys(self.state.tolist()))
        best = self.best()
        found = "" if best is None else f"; best: trial {best}, return {self.value[best]:.4g}, {self.configs[best]}"
        return f"SweepResult({len(self.configs)} trials of {', '.join(self.values)}: {states}{found})"

    def to_pandas(self) -> pandas.DataFrame:
        """One row per trial, as in `trials.csv` but for the curves; needs pandas."""
        import pandas

        rows = [{key: value for key, value in row.items() if not key.startswith("curve")} for row in self.rows()]
        return pandas.DataFrame(rows).set_index("index")

    def rows(self) -> list[dict[str, Any]]:
        """The table: one row per trial."""
        return [
            {
                "index": index,
                "trial": int(self.number[index]),
                "state": str(self.state[index]),
                "return": float(self.value[index]),
                **{key: self.configs[index].get(key) for key in self.values},
                "return_per_seed": self.returns[index].tolist(),
                "env_steps_per_seed": self.env_steps[index].tolist(),
                "updates_per_seed": self.updates[index].tolist(),
                "diverged_at_per_seed": self.diverged_at[index].tolist(),
                "curve_steps": self.curve_steps[index].tolist(),
                "curve_return_per_seed": self.curves[index].T.tolist(),
                **({"pbt_values": json_text(self.changed[index])} if any(self.changed) else {}),
            }
            for index in range(len(self.configs))
        ]


def read_results(study: Study, builder: Builder) -> SweepResult:
    """The results so far, of all workers."""
    plan = study.plan
    trials = [trial for _, trial in sorted(study.by_index().items()) if trial.state.name != "WAITING"]
    seeds, points = plan.settings.num_seeds, plan.settings.curve_points
    results = [study.result(trial) or {} for trial in trials]
    configs = [study.values(trial) for trial in trials]
    totals = np.array([config.get("total_steps", plan.settings.total_steps) for config in configs], np.float64)

    def stacked(name: str, shape: tuple[int, ...], missing: float) -> Floats:
        # None stands for a number that is not finite, which JSON does not have.
        rows = [np.array(r[name], np.float64).reshape(shape) if name in r else np.full(shape, missing) for r in results]
        return np.array(rows, np.float64).reshape(len(results), *shape)

    return SweepResult(
        values={d.key: _column([config.get(d.key) for config in configs]) for d in plan.dimensions},
        returns=stacked("returns", (seeds,), np.nan),
        state=np.array([result.get("state", "running") for result in results], np.str_),
        env_steps=stacked("env_steps", (seeds,), -1).astype(np.int64),
        updates=stacked("updates", (seeds,), -1).astype(np.int64),
        diverged_at=stacked("diverged_at", (seeds,), -1).astype(np.int64),
        curve_steps=totals[:, None] * np.arange(1, points + 1) / points,
        curves=stacked("curve", (points, seeds), np.nan),
        changed=[result.get("changed", {}) for result in results],
        number=np.array([trial.number for trial in trials], np.int64),
        configs=configs,
        study=study.optuna,
        plan=plan,
        builder=builder,
    )


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def write_table(result: SweepResult, directory: Path) -> None:
    """Writes `trials.csv`, its lists as JSON, in one step."""
    rows = result.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["index"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: json_text(value) if isinstance(value, list | tuple) else value for key, value in row.items()}
        for row in rows
    )
    write_atomically(directory / "trials.csv", text.getvalue())
