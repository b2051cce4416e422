"""A sweep from beginning to end: `sweep` for Python, `run` for the command line; several processes may share one."""

from __future__ import annotations

import dataclasses
import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.messages import duration, number, short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import read_arguments, value_text
from haepo_jax.runner.devices import describe_device, device_errors
from haepo_jax.runner.program import check_registered, final_size
from haepo_jax.runner.progress import PLAIN_LINES, live_line
from haepo_jax.runner.run_dir import as_config_error, check_sweep_dir, json_text, write_atomically
from haepo_jax.runner.sweeps.batch import Programs, shape_of
from haepo_jax.runner.sweeps.cohort import Group, train_cohort
from haepo_jax.runner.sweeps.plan import SweepConfig, SweepPlan, read_sweep
from haepo_jax.runner.sweeps.results import ROUNDING, SweepResult, write_figures, write_summary, write_table
from haepo_jax.runner.sweeps.space import Values

CPU_COHORT, CPU_BATCH = 64, 8
"""Runs of a cohort, and of a call on each device, on a CPU: beyond 8 its throughput no longer grows (PPO on CartPole),
and a cohort of several batches lets those with episodes of equal length train together."""
ACCELERATOR_COHORT = ACCELERATOR_BATCH = 1024
POLL_SECONDS = 0.5


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
      run_dir: directory for the table, figures and study, needed to resume or share the sweep; None: none is written.
      **settings: settings of `python -m haepo_jax.sweep`: num_configs, num_seeds, search, halving and so on.

    Returns:
      Arrays of every trial's values and returns. If every trial failed, `best()` is None.

    Raises:
      ConfigError: a setting or value is invalid.
      RunError: the device runs out of memory.
    """
    base = algo if isinstance(algo, Algorithm) else None
    if base is None and not isinstance(algo, str):
        raise ConfigError(f"algo={short(algo)} must be the name of an algorithm, or an algorithm such as hx.PPO(env)")
    if env is None and base is None:
        raise ConfigError("env=None needs an algorithm that is an object, and stands for its environment; name one")
    if base is not None:
        check_registered(base)
        base = base if env is None else base.replace(env=env)
        env = base.env
    arguments = {"algo": str(algo)} if base is None else {"total_steps": value_text(base.total_steps)}
    custom = not isinstance(env, str)
    for key, value in {**(space or {}), **settings}.items():
        if custom and key.startswith("env"):
            raise ConfigError(f"{key}= cannot be set beside an environment or algorithm that is an object: change that")
        whole = "." in key or key in SweepConfig.__dataclass_fields__
        if any(map(callable, value if isinstance(value, list | tuple) else [value])):
            raise ConfigError(f"{key}={short(value)} cannot be swept: give numbers, and set functions in the algorithm")
        arguments[key if whole else f"algo.{key}"] = _argument(value)
    # An object stands in the settings under a name that can be checked; it is never looked up.
    arguments["env"] = "haepo/bandit" if custom else env
    overrides = read_arguments([f"{key}={text}" for key, text in arguments.items()]).overrides
    plan = read_sweep(overrides, env if custom else None, base)
    plan.check()
    if plan.settings.dry_run:
        raise ConfigError("dry_run=true is for the command line")
    directory = None if run_dir is None else Path(run_dir)
    if directory is not None:
        check_sweep_dir(str(directory))
        with as_config_error(str(directory)):
            directory.mkdir(parents=True, exist_ok=True)
    return run(plan, directory, io.StringIO())


def _argument(value: Any) -> str:
    value = value.tolist() if hasattr(value, "tolist") else value  # an array
    if isinstance(value, list):
        texts = ",".join(map(value_text, value))
        return texts if len(value) > 1 else f"choice({texts})"
    return value if isinstance(value, str) else value_text(value)


def run(plan: SweepPlan, directory: Path | None, stream: TextIO) -> SweepResult:
    """Works on a sweep until every trial has ended, here or elsewhere, and shows progress in the stream; the study and the
    results are in the directory, if there is one."""
    # Not before the plan has been read, which reports a missing Optuna.
    from haepo_jax.runner.sweeps.study import Study

    begin = time.perf_counter()
    study, display = Study(plan, directory), Display(stream)
    if directory is not None:
        write_atomically(directory / "sweep.json", json_text(plan.identity(), indent=2) + "\n")
    try:
        with study.heartbeats():
            _Worker(study, display, directory).work()
    finally:
        display.close()
        result = SweepResult(study)
        if directory is not None:
            write_table(result, directory)
    if directory is not None:
        _report(result, directory, display, time.perf_counter() - begin)
    return result


def _report(result: SweepResult, directory: Path, display: Display, seconds: float) -> None:
    """Writes the summary and the figures, and prints the best configuration."""
    summary, figures = write_summary(result, directory), write_figures(result, directory)
    states = ", ".join(f"{count} {state}" for state, count in summary["states"].items())
    display.say(f"{summary['trials']} trials: {states}; {summary['env_steps']:,} steps, here {duration(seconds)}")
    if (best := summary["best"]) is not None:
        returns = result.returns[best["index"]]
        spread = f" (seeds {number(returns.min())} to {number(returns.max())})" if len(returns) > 1 else ""
        display.say(f"best: trial {best['index']}, return {number(best['return'])}{spread}; alone:")
        display.say(f"  {best['command']}\n  ({ROUNDING})")
    display.say(f"results in {directory}: {', '.join(['trials.csv', 'summary.json', *figures])}")


class Display:
    """Trials done, best return so far, steps per second and time left: a live line on a terminal, at most about twenty plain
    lines elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._printed = stream, 0
        self._begin: tuple[float, float, int] | None = None
        self._live = live_line(stream, "sweep", 1.0, "compiling") if stream.isatty() else None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def show(self, trials: str, best: float, share: float, steps: int) -> None:
        """How many trials have ended and the best return, the share of the sweep that all workers have done, and the steps
        that this one has."""
        now = time.perf_counter()
        # The clock starts after the first call, which compiles.
        self._begin = self._begin or (now, share, steps)
        elapsed, gained, taken = now - self._begin[0], share - self._begin[1], steps - self._begin[2]
        parts = [trials, f"{share:.0%} of the steps"]
        if math.isfinite(best):
            parts.append(f"best {number(best)}")
        if taken and gained > 0:
            parts += [f"{taken / elapsed:,.0f} steps/s", f"{duration(elapsed * (1 - share) / gained)} left"]
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=share, status="  ".join(parts))
        elif (line := int(share * PLAIN_LINES)) > self._printed:
            self._printed = line
            self.say("  ".join(parts))

    def close(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()


class _Worker:
    """Trains the trials that this process claims."""

    def __init__(self, study: Any, display: Display, directory: Path | None) -> None:
        self._study, self._display, self._directory = study, display, directory
        self._plan: SweepPlan = study.plan
        self._settings = study.plan.settings
        self._on_cpu = jax.local_devices()[0].platform == "cpu"
        self._programs: dict[Any, Programs] = {}
        self._steps = 0

    def work(self) -> None:
        """Takes cohorts of trials from the study until none is left, and waits for those of other workers."""
        configs, seeds = self._plan.num_configs, self._settings.num_seeds
        if self._ended()[0] >= configs:
            return
        what = f"{configs} configurations{f' of {seeds} seeds' if seeds > 1 else ''} ({self._plan.search} search)"
        self._display.say(f"sweeping {what} on {describe_device()} (JAX {jax.__version__})")
        waiting = False
        while True:
            if claimed := self._study.claim(self._cohort_size()):
                with device_errors("give a smaller batch_size="):
                    self._train(claimed)
                if self._directory is not None:
                    write_table(SweepResult(self._study), self._directory)
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
        if self._plan.search in ("tpe", "cmaes"):  # the search learns between cohorts, so it needs several
            return max(configs // 8, 4 if settings.halving is None else settings.halving**settings.halving_rungs)
        if settings.halving is not None:
            return configs
        runs = CPU_COHORT if self._on_cpu else ACCELERATOR_COHORT
        return max(1, runs // settings.num_seeds, settings.batch_size or 0)

    def _train(self, claimed: dict[int, Values]) -> None:
        """Trains the trials and records each result in the study as soon as it is known."""
        settings, configs = self._settings, self._plan.num_configs
        by_shape: dict[Any, dict[int, Algorithm]] = {}
        for trial, values in claimed.items():
            algorithm = self._plan.build(values)
            by_shape.setdefault(shape_of(algorithm), {})[trial] = algorithm
        groups = [self._group(shape, algorithms) for shape, algorithms in by_shape.items()]
        ended_before, steps_before = self._ended()[0], self._steps

        def on_call(steps: int) -> None:
            self._steps += steps
            trained = (self._steps - steps_before) / (settings.total_steps * settings.num_seeds)
            ended, best = self._ended()
            share = max(ended, ended_before + min(trained, len(claimed))) / configs
            self._display.show(f"{ended}/{configs} trials", best, share, self._steps)

        train_cohort(groups, settings, on_call=on_call, on_rung=self._study.survivors, on_end=self._study.finish)
        on_call(0)

    def _group(self, shape: Any, algorithms: dict[int, Algorithm]) -> Group:
        settings, example = self._settings, next(iter(algorithms.values()))
        if shape not in self._programs:
            self._programs[shape] = Programs(
                example,
                points=settings.curve_points,
                **dataclasses.asdict(final_size(settings.final_eval_episodes, example)),
                vary_env=any(dimension.key.startswith("env_kwargs") for dimension in self._plan.dimensions),
            )
        most = (CPU_BATCH if self._on_cpu else ACCELERATOR_BATCH) * len(jax.local_devices())
        if settings.batch_size is not None:
            most = settings.batch_size * settings.num_seeds
        seeds = range(settings.seed, settings.seed + settings.num_seeds)
        return Group(algorithms, self._programs[shape], seeds, most)
