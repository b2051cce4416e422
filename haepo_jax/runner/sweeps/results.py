"""What a sweep found: arrays for Python, a table on disk, and the command that repeats the best."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haepo_jax.runner.run_dir import json_text, write_atomically
from haepo_jax.runner.sweeps.settings import SweepPlan
from haepo_jax.runner.sweeps.space import Values

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from haepo_jax.runner.sweeps.study import Study

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Optuna's names of a trial's states, which is not imported here: this module is loaded before it is known to be there.
STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The trials of a sweep by index: N trials, S seeds each, P curve points. Unknown numbers are NaN, counts -1.

    Attributes:
      values: every swept key, (N,): numbers where all are numbers, else objects; None where a trial's algorithm has no
        such key.
      returns: (N, S) final evaluation return, sampled actions; of a trial that halving stopped, that at its last rung.
      state: (N,) `complete`, `stopped` by halving, `failed` (its return is not finite), `running` elsewhere.
      env_steps, updates: (N, S) done.
      diverged_at: (N, S) the update at which a seed was frozen because it was not finite, or -1.
      curve_steps: (N, P) live steps at the end of each part of the run.
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

    @property
    def value(self) -> Floats:
        """What is maximised: the mean return over a trial's seeds (N,)."""
        return self.returns.mean(axis=1)

    def best(self, env: str | None = None) -> int | None:
        """The index of the best trial that ran to its end, in one environment of several; None: there is none."""
        ended = (self.state == "complete") & np.isfinite(self.value)
        if env is not None and "env" in self.values:
            ended &= self.values["env"] == env
        return int(np.argmax(np.where(ended, self.value, -np.inf))) if ended.any() else None

    @property
    def envs(self) -> list[str]:
        """The environments of the sweep."""
        found = self.values["env"].tolist() if "env" in self.values else [self.plan.settings.env]
        return list(dict.fromkeys(found))

    def command(self, index: int) -> str:
        """The command line that trains a trial's configuration by itself, on the same seeds."""
        return self.plan.command(self.configs[index])

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


def read_results(study: Study) -> SweepResult:
    """The results so far, of all workers."""
    plan, found = study.plan, sorted(study.by_index().items())
    trials = [trial for _, trial in found if trial.state.name != "WAITING"]
    seeds, points = plan.settings.num_seeds, plan.settings.curve_points
    results = [study.result(trial) or {} for trial in trials]
    configs = [study.values(trial) for trial in trials]
    totals = np.array([config.get("total_steps", plan.settings.total_steps) for config in configs], np.float64)
    return SweepResult(
        values={
            dimension.key: _column([config.get(dimension.key) for config in configs]) for dimension in plan.dimensions
        },
        returns=_stacked(results, "returns", (seeds,), np.nan),
        state=np.array([_state(trial) for trial in trials], np.str_),
        env_steps=_stacked(results, "env_steps", (seeds,), -1).astype(np.int64),
        updates=_stacked(results, "updates", (seeds,), -1).astype(np.int64),
        diverged_at=_stacked(results, "diverged_at", (seeds,), -1).astype(np.int64),
        curve_steps=totals[:, None] * np.arange(1, points + 1) / points,
        curves=_stacked(results, "curve", (points, seeds), np.nan),
        changed=[result.get("changed", {}) for result in results],
        number=np.array([trial.number for trial in trials], np.int64),
        configs=configs,
        study=study.optuna,
        plan=plan,
    )


def _state(trial: FrozenTrial) -> str:
    return STATES.get(trial.state.name, "waiting")


def _column(values: list[Any]) -> npt.NDArray[Any]:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values)
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _stacked(results: list[dict[str, Any]], name: str, shape: tuple[int, ...], missing: float) -> Floats:
    # None stands for a number that is not finite, which JSON does not have.
    rows = [
        np.array(result[name], np.float64).reshape(shape) if name in result else np.full(shape, missing)
        for result in results
    ]
    return np.array(rows, np.float64).reshape(len(results), *shape)


def write_tables(result: SweepResult, directory: Path) -> None:
    """Writes `trials.csv`, its lists as JSON, and `trials.parquet`, each in one step."""
    rows = result.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["index"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: json_text(value) if isinstance(value, list | tuple) else value for key, value in row.items()}
        for row in rows
    )
    write_atomically(directory / "trials.csv", text.getvalue())
    write_atomically(directory / "trials.parquet", _parquet(rows))


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    for name, column in columns.items():
        # A column has one type: values of several, such as a number beside the word auto, become text.
        if len({type(value) for value in column if value is not None}) > 1:
            columns[name] = [None if value is None else str(value) for value in column]
    buffer = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(columns), buffer)
    content: bytes = buffer.getvalue().to_pybytes()
    return content
