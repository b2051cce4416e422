"""Training from a program or a notebook: `haepo_jax.train(algo, ...)`, the loop and the files of the command line."""

from __future__ import annotations

import dataclasses
import operator
import signal
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.other_names import hint
from haepo_jax.algorithms.state import TrainState
from haepo_jax.messages import number, short
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.values import checked_value
from haepo_jax.runner.describe import describe
from haepo_jax.runner.errors import Interrupted, warn
from haepo_jax.runner.loading import TrainedPolicy, load_run, seed_index
from haepo_jax.runner.loop import run
from haepo_jax.runner.observers import Observer, Row, divergence_text
from haepo_jax.runner.program import check_registered
from haepo_jax.runner.progress import Progress
from haepo_jax.runner.session import ended_text, run_in_directory

if TYPE_CHECKING:
    import pandas

Callback = Callable[[Row, TrainState], bool | None] | Observer

NEEDS_RUN_DIR = ("checkpoint_minutes", "keep_checkpoints", "tensorboard", "wandb", "completions")
SETTINGS = ("final_eval_episodes", "init_from", "shard", *NEEDS_RUN_DIR)
"""Settings of the command line that a program may give as they are."""


@dataclasses.dataclass(frozen=True, repr=False)
class TrainResult:
    """The result of a training run with S seeds and R logged rows.

    Attributes:
      algorithm: the trained algorithm.
      seeds: (S,), the seeds.
      state: the final train state; every leaf has the seeds as its first axis, one seed included.
      metrics: an (S, R) array for each metric, NaN where a seed has no value; `update` and `env_steps` are int64, and
        `wall_seconds` is the same for every seed.
      summary: how the run ended, as in `summary.json`.
    """

    algorithm: Algorithm
    seeds: list[int]
    state: TrainState
    metrics: dict[str, npt.NDArray[Any]]
    summary: dict[str, Any]

    def __repr__(self) -> str:
        about = f"{self.summary['algo']} on {self.summary['env']}, seeds={short(self.seeds)}"
        return f"TrainResult({about}, final return {number(self.summary['final_return_mean'])})"

    def policy(self, seed: int | None = None) -> TrainedPolicy:
        """The trained policy of a seed, as from `hx.load`; None: the first. Raises ValueError for an unknown seed."""
        index = seed_index(self.seeds, seed)
        return TrainedPolicy(self.algorithm, jax.tree.map(lambda x: x[index], self.state))

    def to_pandas(self) -> pandas.DataFrame:
        """The metrics as a table: one row per seed and logged row; columns `seed`, `row` and one per metric."""
        import pandas

        count, rows = next(iter(self.metrics.values())).shape if self.metrics else (len(self.seeds), 0)
        index = {"seed": np.repeat(self.seeds, rows), "row": np.tile(np.arange(rows), count)}
        return pandas.DataFrame({**index, **{name: values.ravel() for name, values in self.metrics.items()}})


def train(
    algo: Algorithm,
    *,
    seeds: int | Sequence[int] = 1,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool | str = False,
    progress: bool = True,
    **settings: Any,
) -> TrainResult:
    """Trains an algorithm with the training loop of `python -m haepo_jax.train`: progress display, files and resuming.

    Examples:
      >>> result = hx.train(hx.PPO("CartPole-v1", total_steps=50_000), seeds=4, run_dir="runs/mine")
      >>> result.metrics["eval_return"].shape
      (4, 50)

    The algorithm may be any `Algorithm`, also with a custom class, environment or networks; all metrics that its `update`
    returns are logged. If everything in it is built in, as in this example, the run can also be evaluated, rendered and
    resumed from the command line.

    Training runs in a separate thread, so that Ctrl-C takes effect promptly. JAX's context managers, such as
    `jax.debug_nans(True)`, do not apply there; `jax.config.update` does.

    Args:
      algo: for example `hx.HAEPO("CartPole-v1", total_steps=50_000)`; all seeds train in one compiled call.
      seeds: the number of seeds, counted from 0, or a list such as `[3, 5, 8]`. The random numbers of a seed do not
        depend on the other seeds, but rounding does, so a seed trained alone and with others diverges after a while.
      run_dir: directory for the files; None: no files are written.
      callbacks: called in turn after every logged row: functions `(row, state) -> bool | None`, where True stops the
        run (with the final evaluation); or an `Observer`, which sees more of the run. `row` is a
        `haepo_jax.runner.observers.Row`; in `state` every leaf has the seeds as its first axis.
      resume: resume the run in `run_dir`, with the same algorithm. The results are the same as
        without the interruption. A finished run, including one stopped by a callback, is returned unchanged, with a
        warning, unless `algo.total_steps` has grown. "auto": resume, or start a run if there is none.
      progress: show the progress display.
      **settings: settings of the command line: final_eval_episodes, init_from (a run's directory, or a policy from `hx.load`),
        shard; with `run_dir` also checkpoint_minutes, keep_checkpoints, tensorboard, wandb, completions.

    Raises:
      ConfigError (a ValueError): a setting or directory is invalid; the message is one line.
      RunError (a RuntimeError): the device is out of memory, or the files cannot be written.
      KeyboardInterrupt: at Ctrl-C; with `run_dir`, after saving a checkpoint.
    """
    if not isinstance(algo, Algorithm):
        raise ConfigError(f"train takes an algorithm, such as hx.HAEPO('CartPole-v1'), not {short(algo)}")
    check_registered(algo)
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks={short(callbacks)} must be a list, such as [callback]")
    numbers = _seeds(seeds)
    start = settings.get("init_from")
    if isinstance(start, TrainedPolicy):
        settings["init_from"] = "<a policy given in Python>"
    else:
        settings |= {"init_from": str(start)} if isinstance(start, Path) else {}
        start = None
    config = describe(algo, _settings(numbers, run_dir, resume, settings))
    observers = [*map(_observer, callbacks), Progress() if progress else _Warnings()]
    if config.run_dir is None:
        if config.resume != "false":
            raise ConfigError(f"resume={resume!r} needs run_dir=<the directory of the run>")
        if unused := [f"{name}={short(value)}" for name, value in settings.items() if name in NEEDS_RUN_DIR]:
            raise ConfigError(f"{', '.join(unused)} needs run_dir=<where the files of the run go>")
        logged = _Rows()
        summary, state = run(config, None, [logged, *observers], algorithm=algo, start=start)
        rows = logged.rows
    else:
        try:
            directory, summary, final = run_in_directory(
                config, algorithm=algo, observers=observers, embedded=True, start=start
            )
        except Interrupted as interruption:
            if interruption.signum == signal.SIGINT:
                raise KeyboardInterrupt(str(interruption)) from None
            warn(str(interruption))
            raise SystemExit(128 + interruption.signum) from None
        # The rows before a resumed run's are there, too.
        rows = directory.read_metrics()
        if final is None:
            observers[-1].on_warning(f"{ended_text(directory, summary)}; nothing was trained, its result is returned")
        state = final or load_run(directory, "last", algo)[2]
    if len(numbers) == 1 and state.update.ndim == 0:
        state = jax.tree.map(lambda x: x[None], state)
    return TrainResult(algo, numbers, state, _metrics(rows), summary)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool) else seeds
    try:
        numbers = [operator.index(number) for number in numbers]  # type: ignore[union-attr]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len({*numbers}) < len(numbers) or min(numbers) < 0:
        raise ConfigError(
            f"seeds={short(seeds)} must be how many, or different numbers such as [3, 5, 8] or range(4, 8)"
        )
    return list(checked_value("seeds", RunConfig.__dataclass_fields__["seeds"], numbers))


def _settings(
    seeds: list[int], run_dir: str | Path | None, resume: bool | str, settings: dict[str, Any]
) -> dict[str, Any]:
    for key in settings:
        if key not in SETTINGS:
            near = hint(key, SETTINGS) or f" (there are: {', '.join(SETTINGS)})"
            near = "; did you mean 'seeds'?" if key in ("seed", "num_seeds") else near
            raise ConfigError(f"train has no setting {short(key)}{near}")
    fields = RunConfig.__dataclass_fields__
    given = settings | {"run_dir": None if run_dir is None else str(run_dir), "resume": resume}
    checked = {key: checked_value(key, fields[key], value) for key, value in given.items()}
    consecutive = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    return checked | ({"seed": seeds[0], "num_seeds": len(seeds)} if consecutive else {"seeds": seeds})


def _observer(callback: Callback) -> Observer:
    if isinstance(callback, Observer):
        return callback
    if callable(callback):
        return _Callback(callback)
    raise ConfigError(f"callbacks: {short(callback)} is neither a function (row, state) -> bool nor an Observer")


class _Callback(Observer):
    def __init__(self, function: Callable[[Row, TrainState], bool | None]) -> None:
        self._function = function

    def on_row(self, row: Row, state: TrainState) -> bool | None:
        # A copy may be kept: the loop's own buffers are used up by the next call.
        one = len(row.update) == 1
        ended = self._function(row, jax.tree.map(lambda x: x[None] if one else jnp.copy(x), state))
        if ended is None or (hasattr(ended, "__bool__") and np.asarray(ended).dtype == np.dtype(bool)):
            return ended
        raise TypeError(f"a callback returns True to end the run, or False or None, not {short(ended)}")


class _Warnings(Observer):
    """In place of the display."""

    def on_warning(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)

    def on_end(self, summary: dict[str, Any]) -> None:
        if len(summary["diverged"]) == len(summary["seeds"]):  # of others the run has warned
            self.on_warning(f"{divergence_text(summary['diverged'][0])}; it stayed as it was before")


class _Rows(Observer):
    """Keeps the rows of a run without a directory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def on_row(self, row: Row, state: TrainState) -> None:
        self.rows.append(row.to_json())


def _metrics(rows: list[dict[str, Any]]) -> dict[str, npt.NDArray[Any]]:
    """The rows of `metrics.jsonl` as arrays (seeds, rows)."""
    each = [{"wall_seconds": [row["wall_seconds"]] * len(row["seeds"]["update"]), **row["seeds"]} for row in rows]
    missing = [None] * (len(each[0]["update"]) if each else 0)
    kinds = {"update": np.int64, "env_steps": np.int64}
    return {
        name: np.array([row.get(name, missing) for row in each], kinds.get(name, np.float64)).T
        for name in dict.fromkeys(name for row in each for name in row)
    }
