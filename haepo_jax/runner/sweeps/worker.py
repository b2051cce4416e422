"""A sweep from beginning to end: `sweep` for Python, `run` for the command line; several processes may share one."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.messages import duration, number
from haepo_jax.runner.config import ConfigError, hyperparameter_fields
from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.devices import describe_device, device_errors
from haepo_jax.runner.program import final_size
from haepo_jax.runner.run_dir import json_text, write_atomically
from haepo_jax.runner.sweeps.builder import Builder, custom_of
from haepo_jax.runner.sweeps.cohort import Candidate, Group, Outcome, Rules, group_candidates, train_cohort
from haepo_jax.runner.sweeps.compiled import Programs, Shape
from haepo_jax.runner.sweeps.display import Display
from haepo_jax.runner.sweeps.plan import SweepPlan, key_of_number, parse, read_sweep
from haepo_jax.runner.sweeps.results import ROUNDING, SweepResult, read_results, write_table

CPU_COHORT, CPU_BATCH = 64, 8
"""Lanes of a cohort, and of a call on each device, on a CPU: beyond 8 its throughput no longer grows (PPO on CartPole),
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
      run_dir: where the table, figures and the study are kept, so that the sweep can be resumed or shared; None: nowhere.
      **settings: of `python -m haepo_jax.sweep`: num_configs, num_seeds, search, halving, pbt and so on.

    Returns:
      Arrays of every trial's values and returns. Where every trial failed, `best()` is None.

    Raises:
      ConfigError: for a setting or value that cannot be used.
      RunError: where the device runs out of memory.
    """
    base: Algorithm | None = None
    if isinstance(algo, Algorithm):
        base = algo if env is None else algo.replace(env=env)
        env = base.env
    custom = custom_of(env, base)
    names = hyperparameter_fields(str(algo)) if base is None else (custom.fields or {}) if custom else {}
    arguments: dict[str, str] = {}
    for key, value in {**(space or {}), **settings}.items():
        if custom is not None and (key == "env" or key.startswith("env_kwargs")):
            raise ConfigError(f"{key}= cannot be set beside an environment or algorithm that is an object: change that")
        arguments[f"algo.{key}" if key in names else key] = _argument(value)
    if base is None:
        arguments = {"algo": str(algo), **arguments}
    else:
        arguments.setdefault("total_steps", value_text(base.total_steps))
    # An object stands in the settings under a name that can be checked; it is never looked up.
    arguments["env"] = "haepo/bandit" if custom is not None else env
    plan = read_sweep(parse([f"{key}={text}" for key, text in arguments.items()]).overrides, custom)
    directory = None if run_dir is None else Path(run_dir)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    builder = Builder(plan, env=None if isinstance(env, str) else env, algorithm=base)
    return run(plan, directory, Display(io.StringIO()), builder=builder)


def _argument(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return value_text(value)
    texts = ",".join(value_text(item) for item in value)
    # A list of one is a list too.
    return texts if len(value) > 1 else f"choice({texts})"


def run(
    plan: SweepPlan,
    directory: Path | None,
    display: Display,
    *,
    command: str | None = None,
    builder: Builder | None = None,
) -> SweepResult:
    """Works on a sweep until every trial has ended, here or elsewhere.

    Args:
      plan: what is asked for.
      directory: where the study is and what was found is written; None: nowhere.
      display: is told how it goes.
      command: to be kept beside the plan in `sweep.json`.
      builder: of the trials' algorithms; None: as the plan says.
    """
    # Not before the plan has been read, which reports a missing Optuna.
    from haepo_jax.runner.sweeps.study import Study, open_storage

    builder = builder or Builder(plan)
    storage = open_storage(plan.settings.storage, directory, plan.settings.worker_timeout)
    study = Study(plan, storage, "sweep" if directory is None else directory.resolve().name)
    if directory is not None and command is not None and not (directory / "sweep.json").exists():
        asked = {"command": command, **json.loads(plan.identity()), "num_configs": plan.num_configs}
        write_atomically(directory / "sweep.json", json_text(asked, indent=2) + "\n")
    begin = time.perf_counter()
    try:
        with study.heartbeats():
            _Worker(study, builder, display, directory).work()
    finally:
        display.close()
        result = read_results(study, builder)
        if directory is not None:
            write_table(result, directory)
    if directory is not None:
        _report(result, directory, display, time.perf_counter() - begin)
    return result


def _report(result: SweepResult, directory: Path, display: Display, seconds: float) -> None:
    """Writes the summary and the figures, and says what was found."""
    from haepo_jax.runner.sweeps.figures import write_figures

    best = {env: index for env in result.envs if (index := result.best(env)) is not None}
    states = {state: int((result.state == state).sum()) for state in sorted(set(result.state.tolist()))}
    steps = int(result.env_steps[result.env_steps >= 0].sum())
    summary = {
        "trials": len(result.configs),
        "states": states,
        "env_steps": steps,
        "best": {
            env: {
                "index": index,
                "return": float(result.value[index]),
                "values": result.configs[index],
                "command": result.command(index),
            }
            for env, index in best.items()
        },
        "note": f"{ROUNDING}; compare it over several seeds",
    }
    write_atomically(directory / "summary.json", json_text(summary, indent=2) + "\n")
    figures = write_figures(result, directory)

    counts = [f"{states.get('complete', 0)} trials trained to their end"]
    counts += [f"{states['stopped']} stopped early"] if "stopped" in states else []
    if "failed" in states:
        diverged = int((result.diverged_at >= 0).any(axis=1).sum())
        counts.append(f"{states['failed']} failed{f' ({diverged} diverged)' if diverged else ''}")
    display.say(f"{', '.join(counts)}: {steps:,} steps, here {duration(seconds)}")
    for env, index in best.items():
        where = f" on {env}" if len(result.envs) > 1 else ""
        spread = result.returns[index]
        seeds = f" (seeds {number(float(spread.min()))} to {number(float(spread.max()))})" if len(spread) > 1 else ""
        display.say(f"best{where}: trial {index}, return {number(float(result.value[index]))}{seeds}; alone:")
        display.say(f"  {result.command(index)}")
        if result.plan.settings.pbt:
            display.say("  (as it began: its numbers changed with the population, see pbt_values in trials.csv)")
    if best:
        display.say(f"  ({ROUNDING})")
    display.say(f"results in {directory}: {', '.join(['trials.csv', 'summary.json', *figures])}")


class _Worker:
    """Trains the trials that this process claims: the programs compiled so far, by shape, and the display."""

    def __init__(self, study: Any, builder: Builder, display: Display, directory: Path | None) -> None:
        self._study, self._builder, self._display, self._directory = study, builder, display, directory
        self._plan: SweepPlan = study.plan
        self._programs: dict[Shape, Programs] = {}

    def work(self) -> None:
        """Takes cohorts of trials from the study until none is left, and waits for those of other workers."""
        total = self._plan.num_configs
        done, best = self._ended()
        if done >= total:
            return  # of a finished sweep nothing is built
        self._builder.check()
        self._announce()
        self._display.start(total, done, best)
        waiting = 0
        while True:
            if claimed := self._study.claim(self._cohort_size()):
                waiting = 0
                with device_errors("give a smaller batch_size="):
                    self._train(claimed)
                if self._directory is not None:
                    write_table(read_results(self._study, self._builder), self._directory)
            elif others := self._study.others_at_work():
                if not waiting:
                    seconds = self._plan.settings.worker_timeout
                    self._display.say(
                        f"waiting for {others} trials of other workers (given up after {seconds} s of silence)"
                    )
                waiting = others
                time.sleep(POLL_SECONDS)
            else:
                return

    def _announce(self) -> None:
        device = describe_device(local=True)
        plan = self._plan
        seeds = f" of {plan.settings.num_seeds} seeds" if plan.settings.num_seeds > 1 else ""
        what = f"{plan.num_configs} configurations{seeds} ({plan.search} search)"
        self._display.say(f"sweeping {what} on {device} (JAX {jax.__version__})")

    def _ended(self) -> tuple[int, float]:
        """How many trials have ended, and the best return of those that trained to their end."""
        results = [r for trial in self._study.by_index().values() if (r := self._study.result(trial)) is not None]
        return len(results), max((r["value"] for r in results if r["state"] == "complete"), default=math.nan)

    def _cohort_size(self) -> int:
        settings, configs = self._plan.settings, self._plan.num_configs
        if settings.cohort is not None:
            return settings.cohort
        if settings.halving is not None or settings.pbt:
            return configs
        if self._plan.search in ("tpe", "cmaes"):
            return max(4, configs // 8)  # the search learns between cohorts, so it needs several
        lanes = CPU_COHORT if jax.local_devices()[0].platform == "cpu" else ACCELERATOR_COHORT
        return max(1, lanes // settings.num_seeds, settings.batch_size or 0)

    def _rules(self) -> Rules:
        settings, custom = self._plan.settings, self._plan.custom
        if not settings.pbt:
            return Rules(settings.halving, settings.halving_rungs)
        numbers = {name: d.bounds() for d in self._plan.dimensions if (name := key_of_number(d, custom))}
        ranges = {name: bounds for name, bounds in numbers.items() if bounds}
        return Rules(pbt_rounds=settings.pbt_rounds, pbt_ranges=ranges, seed=settings.search_seed)

    def _train(self, claimed: Sequence[Any]) -> None:
        """Trains the trials and records each result in the study as soon as it is known."""
        study, settings, rules = self._study, self._plan.settings, self._rules()
        by_number = {claim.trial.number: claim for claim in claimed}
        candidates = [
            Candidate(
                claim.trial.number,
                self._builder(claim.values),
                int(claim.values.get("seed", settings.seed)),
                claim.values.get("env", settings.env),
            )
            for claim in claimed
        ]
        groups = [
            Group(members, self._programs_of(shape, members), settings.num_seeds)
            for shape, members in group_candidates(candidates).items()
        ]
        ended_before, _ = self._ended()
        expected = sum(group.total_steps * group.real for group in groups) * _share_of_steps(rules)
        done = 0

        def on_call(steps: int, training_return: float) -> None:
            nonlocal done
            done += steps
            share = (ended_before + len(claimed) * min(1.0, done / expected)) / self._plan.num_configs
            self._display.advanced(steps, share, training_return)

        def on_outcome(outcome: Outcome) -> None:
            described = {name: _plain(value) for name, value in dataclasses.asdict(outcome).items()}
            state, value = described.pop("state"), _plain(float(outcome.returns.mean()))
            study.finish(by_number[described.pop("number")], value, state, described)
            self._display.ended(*self._ended())

        train_cohort(
            groups,
            rules,
            on_call=on_call,
            on_rung=lambda number, steps, value: by_number[number].trial.report(value, steps),
            on_outcome=on_outcome,
        )

    def _programs_of(self, shape: Shape, members: Sequence[Candidate]) -> Programs:
        settings, devices = self._plan.settings, len(jax.local_devices())
        lanes = len(members) * settings.num_seeds
        per_device = CPU_BATCH if jax.local_devices()[0].platform == "cpu" else ACCELERATOR_BATCH
        most = per_device * devices if settings.batch_size is None else settings.batch_size * settings.num_seeds
        programs = self._programs.get(shape)
        # A batch no larger than the first group of its shape; compiled again where a later one is much larger.
        if programs is None or programs.asked * 2 <= min(most, lanes):
            example = members[0].algorithm
            programs = Programs(
                example,
                varying=self._builder.varying(example),
                points=settings.curve_points,
                episodes=max(1, final_size(settings.final_eval_episodes, example).episodes),
                size=min(most, lanes),
            )
            self._programs[shape] = programs
        return programs


def _share_of_steps(rules: Rules) -> float:
    """The share of all steps that a cohort takes, those that halving saves left out."""
    if rules.halving is None:
        return 1.0
    shares = rules.shares()
    gains = [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]
    return sum(gain * rules.halving**-rung for rung, gain in enumerate(gains))


def _plain(value: Any) -> Any:
    """As the study keeps it: plain numbers, None where one is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        # Eight digits hold a float32.
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
