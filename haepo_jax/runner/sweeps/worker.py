"""A sweep from beginning to end: `sweep` for Python, `run` for the command line; several processes may share one."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.messages import duration, number
from haepo_jax.runner.config import ConfigError, hyperparameter_fields
from haepo_jax.runner.config.arguments import read_arguments, value_text
from haepo_jax.runner.devices import describe_device, device_errors
from haepo_jax.runner.program import final_size
from haepo_jax.runner.run_dir import json_text, write_atomically
from haepo_jax.runner.sweeps.builder import Builder, identity
from haepo_jax.runner.sweeps.cohort import Group, Trial, share_of_steps, train_cohort
from haepo_jax.runner.sweeps.display import Display
from haepo_jax.runner.sweeps.lanes import Programs, shape_of
from haepo_jax.runner.sweeps.plan import NOT_HYPERPARAMETERS, read_sweep
from haepo_jax.runner.sweeps.results import SweepResult, write_table
from haepo_jax.runner.sweeps.space import Values

CPU_COHORT, CPU_BATCH = 64, 8
"""Lanes of a cohort, and of a call on each device, on a CPU: beyond 8 its throughput no longer grows (PPO on CartPole),
and a cohort of several batches lets those with episodes of equal length train together."""
ACCELERATOR_COHORT = ACCELERATOR_BATCH = 1024
POLL_SECONDS = 0.5
ROUNDING = "rounding differs between one run and many in a batch, so a repeated run drifts apart after a few updates"
"""Why the best trial, trained again by its command, does not end at the same return."""


def sweep(
    env: Any,
    algo: str | Algorithm = "haepo",
    space: Mapping[str, Any] | None = None,
    *,
    run_dir: str | None = None,
    **settings: Any,
) -> SweepResult:
    """Trains many configurations in few compiled programs.

    Examples:
      >>> import haepo_jax as hx
      >>> found = hx.sweep(
      ...     "CartPole-v1", "haepo", {"learning_rate": "tag(log,interval(1e-4,1e-2))", "entropy_coef": [0, 0.001, 0.01]},
      ...     num_configs=64, num_seeds=4, total_steps=200_000,
      ... )
      >>> found.returns.shape, found.values["algo.learning_rate"][found.best()]

    Args:
      env: an environment, or its name; None: that of the algorithm.
      algo: the name of an algorithm or preset; or an algorithm, whose other hyperparameters and networks are kept.
      space: hyperparameters and other keys by name. A string is read in Hydra's sweep language, a list holds the values
        to try, anything else is one fixed value. The `algo.` of a hyperparameter's name may be left out.
      run_dir: where the table, figures and the study are kept, so that the sweep can be resumed or shared; None: nowhere.
      **settings: of `python -m haepo_jax.sweep`: num_configs, num_seeds, search, halving, pbt and so on.

    Returns:
      Arrays of every trial's values and returns. If every trial failed, `best()` is None.

    Raises:
      ConfigError: for a setting or value that cannot be used.
      RunError: the device runs out of memory.
    """
    base = algo if isinstance(algo, Algorithm) else None
    if base is not None:
        if jax.tree_util.all_leaves([base]):
            name = type(base).__name__
            raise ConfigError(f"{name} is not a pytree: put @jax.tree_util.register_dataclass above the class")
        base = base if env is None else base.replace(env=env)
        env = base.env
        names = {*vars(base)} - {*NOT_HYPERPARAMETERS}
        arguments = {"total_steps": value_text(base.total_steps)}
    else:
        names, arguments = {*hyperparameter_fields(str(algo))}, {"algo": str(algo)}
    custom = not isinstance(env, str)
    for key, value in {**(space or {}), **settings}.items():
        if custom and (key == "env" or key.startswith("env_kwargs")):
            raise ConfigError(f"{key}= cannot be set beside an environment or algorithm that is an object: change that")
        arguments[f"algo.{key}" if key in names else key] = _argument(value)
    # An object stands in the settings under a name that can be checked; it is never looked up.
    arguments["env"] = "haepo/bandit" if custom else env
    overrides = read_arguments([f"{key}={text}" for key, text in arguments.items()]).overrides
    builder = Builder(read_sweep(overrides, env if custom else None, base))
    builder.check()
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    return run(builder, None if run_dir is None else Path(run_dir), Display(io.StringIO()))


def _argument(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return value_text(value)
    texts = ",".join(value_text(item) for item in value)
    # A list of one is a list too.
    return texts if len(value) > 1 else f"choice({texts})"


def run(builder: Builder, directory: Path | None, display: Display, command: str | None = None) -> SweepResult:
    """Works on a sweep until every trial has ended, here or elsewhere.

    Args:
      builder: of what is asked for.
      directory: where the study is and the results are written; None: nowhere.
      display: shows progress.
      command: to be kept beside the plan in `sweep.json`.
    """
    # Not before the plan has been read, which reports a missing Optuna.
    from haepo_jax.runner.sweeps.study import Study, open_storage

    plan, begin = builder.plan, time.perf_counter()
    described = identity(plan)
    storage = open_storage(plan.settings.storage, directory, plan.settings.worker_timeout)
    name = "sweep" if directory is None else directory.resolve().name
    study = Study(plan, json_text(described), storage, name)
    if directory is not None and command is not None and not (directory / "sweep.json").exists():
        asked = {"command": command, **described, "num_configs": plan.num_configs}
        write_atomically(directory / "sweep.json", json_text(asked, indent=2) + "\n")
    try:
        with study.heartbeats():
            _Worker(study, builder, display, directory).work()
    finally:
        display.close()
        result = SweepResult(study, builder)
        if directory is not None:
            write_table(result, directory)
    if directory is not None:
        _report(result, directory, display, time.perf_counter() - begin)
    return result


def _report(result: SweepResult, directory: Path, display: Display, seconds: float) -> None:
    """Writes the summary and the figures, and prints the best configurations."""
    from haepo_jax.runner.sweeps.figures import write_figures

    found = [(env, index) for env in result.envs if (index := result.best(env)) is not None]
    states = dict(zip(*(x.tolist() for x in np.unique(result.state, return_counts=True)), strict=True))
    steps = int(result.env_steps[result.env_steps >= 0].sum())
    best = {
        env: {
            "index": index,
            "return": float(result.value[index]),
            "values": result.configs[index],
            "command": result.command(index),
        }
        for env, index in found
    }
    note = f"{ROUNDING}; compare it over several seeds"
    summary = {"trials": len(result.configs), "states": states, "env_steps": steps, "best": best, "note": note}
    write_atomically(directory / "summary.json", json_text(summary, indent=2) + "\n")
    figures = write_figures(result, directory)

    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    display.say(f"{len(result.configs)} trials: {counts}; {steps:,} steps, here {duration(seconds)}")
    for env, index in found:
        where = f" on {env}" if len(result.envs) > 1 else ""
        spread = result.returns[index]
        seeds = f" (seeds {number(float(spread.min()))} to {number(float(spread.max()))})" if len(spread) > 1 else ""
        display.say(f"best{where}: trial {index}, return {number(float(result.value[index]))}{seeds}; alone:")
        display.say(f"  {best[env]['command']}")
        if "pbt_values" in result.rows[index]:
            display.say("  (as it began: its numbers changed with the population, see pbt_values in trials.csv)")
    if found:
        display.say(f"  ({ROUNDING})")
    display.say(f"results in {directory}: {', '.join(['trials.csv', 'summary.json', *figures])}")


class _Worker:
    """Trains the trials that this process claims: the programs compiled so far, by shape, and the display."""

    def __init__(self, study: Any, builder: Builder, display: Display, directory: Path | None) -> None:
        self._study, self._builder, self._display, self._directory = study, builder, display, directory
        self._plan, self._settings = builder.plan, builder.plan.settings
        self._on_cpu = jax.local_devices()[0].platform == "cpu"
        self._programs: dict[Any, Programs] = {}

    def work(self) -> None:
        """Takes cohorts of trials from the study until none is left, and waits for those of other workers."""
        ended, best = self._ended()
        if ended >= self._plan.num_configs:
            return  # nothing is built for a finished sweep
        device = describe_device()
        seeds = f" of {self._settings.num_seeds} seeds" if self._settings.num_seeds > 1 else ""
        what = f"{self._plan.num_configs} configurations{seeds} ({self._plan.search} search)"
        self._display.say(f"sweeping {what} on {device} (JAX {jax.__version__})")
        self._display.start(self._plan.num_configs, ended, best)
        waiting = False
        while True:
            if claimed := self._study.claim(self._cohort_size()):
                waiting = False
                with device_errors("give a smaller batch_size="):
                    self._train(claimed)
                if self._directory is not None:
                    write_table(SweepResult(self._study, self._builder), self._directory)
            elif others := self._study.others_at_work():
                if not waiting:
                    limit = f"given up after {self._settings.worker_timeout} s of silence"
                    self._display.say(f"waiting for {others} trials of other workers ({limit})")
                waiting = True
                time.sleep(POLL_SECONDS)
            else:
                return

    def _ended(self) -> tuple[int, float]:
        """How many trials have ended, and the best return of those that trained to their end."""
        ended = [trial for trial in self._study.by_index().values() if trial.state.is_finished()]
        complete = [trial.value for trial in ended if self._study.state(trial) == "complete"]
        return len(ended), max(complete, default=math.nan)

    def _cohort_size(self) -> int:
        settings, configs = self._settings, self._plan.num_configs
        if settings.cohort is not None:
            return settings.cohort
        if settings.halving is not None or settings.pbt:
            return configs
        if self._plan.search in ("tpe", "cmaes"):
            return max(4, configs // 8)  # the search learns between cohorts, so it needs several
        lanes = CPU_COHORT if self._on_cpu else ACCELERATOR_COHORT
        return max(1, lanes // settings.num_seeds, settings.batch_size or 0)

    def _train(self, claimed: dict[int, Values]) -> None:
        """Trains the trials and records each result in the study as soon as it is known."""
        study, settings, plan = self._study, self._settings, self._plan
        by_shape: dict[Any, list[Trial]] = {}
        for trial_number, values in claimed.items():
            algorithm, seed = self._builder(values), int(values.get("seed", settings.seed))
            trial = Trial(trial_number, algorithm, seed, values.get("env", settings.env))
            by_shape.setdefault(shape_of(algorithm), []).append(trial)
        groups = [Group(own, self._compiled(shape, own), settings.num_seeds) for shape, own in by_shape.items()]
        before, _ = self._ended()
        expected = sum(group.total_steps * group.real for group in groups) * share_of_steps(settings)
        done = 0

        def on_call(steps: int) -> None:
            nonlocal done
            done += steps
            share = (before + len(claimed) * min(1.0, done / expected)) / plan.num_configs
            self._display.advanced(steps, share)

        def on_end(trial_number: int, state: str, result: dict[str, Any]) -> None:
            study.finish(trial_number, state, result)
            self._display.ended(*self._ended())

        train_cohort(groups, settings, plan.ranges(), on_call=on_call, on_rung=study.report, on_end=on_end)

    def _compiled(self, shape: Any, trials: list[Trial]) -> Programs:
        """The programs of a shape: for no more lanes than its first group has, and again if a later one has many more."""
        settings, devices = self._settings, len(jax.local_devices())
        most = (CPU_BATCH if self._on_cpu else ACCELERATOR_BATCH) * devices
        size = min(
            most if settings.batch_size is None else settings.batch_size * settings.num_seeds,
            len(trials) * settings.num_seeds,
        )
        if shape not in self._programs or self._programs[shape].size * 2 <= size:
            example = trials[0].algorithm
            self._programs[shape] = Programs(
                example,
                points=settings.curve_points,
                episodes=max(1, final_size(settings.final_eval_episodes, example).episodes),
                size=size,
                vary_env=any(dimension.key.startswith("env_kwargs") for dimension in self._plan.dimensions),
            )
        return self._programs[shape]
