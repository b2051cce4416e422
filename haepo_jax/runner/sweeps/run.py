"""A sweep from beginning to end: `sweep` for Python, `run` for the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.runner.config import hyperparameter_fields
from haepo_jax.runner.config.arguments import read_arguments, value_text
from haepo_jax.runner.devices import describe_device, device_errors
from haepo_jax.runner.program import build
from haepo_jax.runner.progress import duration, number
from haepo_jax.runner.run_dir import json_text, write_atomically
from haepo_jax.runner.sweeps.cohort import Candidate, Group, Outcome, Rules, group_candidates, train_cohort
from haepo_jax.runner.sweeps.display import Display
from haepo_jax.runner.sweeps.program import BatchSize, Programs, Shape
from haepo_jax.runner.sweeps.results import SweepResult, read_results, write_tables
from haepo_jax.runner.sweeps.settings import SweepPlan, key_of_number, read_sweep
from haepo_jax.runner.sweeps.space import Choice, Values

if TYPE_CHECKING:
    from haepo_jax.runner.sweeps.study import Claimed, Study

COHORT_LANES = {"cpu": 64}
"""Lanes that train together where nothing else is asked for: enough to fill batches with lanes alike, few enough that
little is lost with a worker. On accelerators more fit one batch."""
ACCELERATOR_COHORT_LANES = 1024
FIRST_LANES = {"cpu": 4}
"""RolloutState per device in the first batch, from which the batch size climbs."""
ACCELERATOR_FIRST_LANES = 256
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
      env: an environment, or its name.
      algo: the name of an algorithm or preset; or an algorithm, whose other hyperparameters, policy and, where `env` is
        None, environment are kept.
      space: hyperparameters and other keys by name. A string is read in Hydra's sweep language, a list holds the values
        to try, anything else is one fixed value. The `algo.` of a hyperparameter's name may be left out.
      run_dir: where tables, figures and the study are kept, so that the sweep can be resumed or shared; None: nowhere.
      **settings: of `python -m haepo_jax.sweep`: num_configs, num_seeds, search, halving, pbt and so on.

    Returns:
      Arrays of every trial's values and returns.

    Raises:
      ConfigError: for a setting or value that cannot be used.
      RunError: where the device runs out of memory.
    """
    arguments: dict[str, str] = {}
    base: Algorithm | None = None
    if isinstance(algo, Algorithm):
        base = algo if env is None else algo.replace(env=env)
        env, algo = base.env, type(base).__name__.lower()
        fields = hyperparameter_fields(algo)
        arguments |= {
            f"algo.{name}": value_text(getattr(base, name)) for name, f in fields.items() if f.metadata["static"]
        }
        arguments["total_steps"] = value_text(base.total_steps)
    own_env = None if isinstance(env, str) else env
    names = hyperparameter_fields(algo)
    for key, value in {**(space or {}), **settings}.items():
        arguments[f"algo.{key}" if key in names else key] = _argument(value)
    # An environment that has no name stands in the settings as one that has: what is built is the environment itself.
    arguments |= {"env": "haepo/bandit" if own_env is not None else env, "algo": algo}
    plan = read_sweep(read_arguments([f"{key}={text}" for key, text in arguments.items()]).overrides)
    directory = None if run_dir is None else Path(run_dir)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
    return run(plan, directory, Display(io.StringIO()), builder=_Builder(plan, env=own_env, algorithm=base))


def _argument(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return value_text(value)
    texts = ",".join(value_text(item) for item in value)
    # A list of one is a list too.
    return texts if len(value) > 1 else f"choice({texts})"


def check_builds(plan: SweepPlan) -> None:
    """Raises ConfigError where a setting does not fit its environment; loads jax."""
    _Builder(plan).check()


def run(
    plan: SweepPlan,
    directory: Path | None,
    display: Display,
    *,
    command: str | None = None,
    builder: _Builder | None = None,
) -> SweepResult:
    """Works on a sweep until every trial has ended, here or elsewhere.

    Args:
      plan: what is asked for.
      directory: where the study is and what was found is written; None: nowhere.
      display: is told how it goes.
      command: to be kept beside the plan in `sweep.json`.
      builder: of the trials' algorithms; None: as the plan says.
    """
    # Not before the plan has been read, which says so where Optuna is not installed.
    from haepo_jax.runner.sweeps.study import Study, open_storage

    name = "sweep" if directory is None else directory.resolve().name
    study = Study(plan, open_storage(plan.settings.storage, directory), name)
    if directory is not None and command is not None and not (directory / "sweep.json").exists():
        asked = {"command": command, **json.loads(plan.identity()), "num_configs": plan.num_configs}
        write_atomically(directory / "sweep.json", json_text(asked, indent=2) + "\n")
    begin = time.perf_counter()
    try:
        _work(study, builder or _Builder(plan), display, directory)
    finally:
        display.close()
        result = read_results(study)
        if directory is not None:
            write_tables(result, directory)
    if directory is not None:
        _conclude(result, directory, display, time.perf_counter() - begin, _write(result, directory))
    return result


def _write(result: SweepResult, directory: Path) -> list[str]:
    from haepo_jax.runner.sweeps.figures import write_figures

    best = {env: index for env in result.envs if (index := result.best(env)) is not None}
    summary = {
        "trials": len(result.configs),
        "states": {state: int((result.state == state).sum()) for state in sorted(set(result.state.tolist()))},
        "env_steps": int(result.env_steps[result.env_steps >= 0].sum()),
        "best": {
            env: {
                "index": index,
                "return": float(result.value[index]),
                "values": result.configs[index],
                "command": result.command(index),
            }
            for env, index in best.items()
        },
    }
    write_atomically(directory / "summary.json", json_text(summary, indent=2) + "\n")
    return write_figures(result, directory)


def _conclude(result: SweepResult, directory: Path, display: Display, seconds: float, figures: Sequence[str]) -> None:
    states = result.state.tolist()
    stopped = f", {states.count('stopped')} stopped early" if "stopped" in states else ""
    failed = f", {states.count('failed')} failed" if "failed" in states else ""
    steps = int(result.env_steps[result.env_steps >= 0].sum())
    ended = f"{states.count('complete')} trials trained to their end{stopped}{failed}"
    display.say(f"{ended}: {steps:,} steps, here {duration(seconds)}")
    if diverged := int(((result.diverged_at >= 0).any(axis=1)).sum()):
        display.say(f"in {diverged} of them a seed diverged; it stayed as it was before")
    for env in result.envs:
        index = result.best(env)
        if index is None:
            continue
        where = f" on {env}" if len(result.envs) > 1 else ""
        spread = result.returns[index]
        seeds = f" (seeds {number(float(spread.min()))} to {number(float(spread.max()))})" if len(spread) > 1 else ""
        display.say(
            f"best{where}: trial {index}, return {number(float(result.value[index]))}{seeds}; train it alone with"
        )
        display.say(f"  {result.command(index)}")
        if result.plan.settings.pbt:
            display.say("  (as it began: its numbers changed with the population, see pbt_values in trials.csv)")
    display.say(
        f"results in {directory}: trials.csv, trials.parquet, summary.json{''.join(f', {name}' for name in figures)}"
    )


class _Builder:
    """Builds trials' algorithms; environments that are alike are built once."""

    def __init__(self, plan: SweepPlan, *, env: Any = None, algorithm: Algorithm | None = None) -> None:
        self.plan = plan
        self._env, self._algorithm = env, algorithm
        self._envs: dict[str, Any] = {}

    def __call__(self, values: Values) -> Algorithm:
        """The algorithm of a configuration; raises ConfigError where it does not fit its environment."""
        if self._algorithm is not None:
            return self._algorithm.replace(
                **{key.removeprefix("algo."): value for key, value in values.items() if key != "seed"}
            )
        config = self.plan.run_config(values)
        key = json.dumps([config.env, config.env_kwargs], sort_keys=True)
        algorithm = build(config, self._envs.get(key, self._env))
        self._envs[key] = algorithm.env
        return algorithm

    def check(self) -> None:
        """Builds the ends of the space, every environment and every algorithm, so that what does not fit is known
        before anything trains."""
        ends = [
            {d.key: d.values[end] if isinstance(d, Choice) else d.bounds()[end] for d in self.plan.dimensions}
            for end in (0, -1)
        ]
        named = [d for d in self.plan.dimensions if d.key in ("env", "algo") and isinstance(d, Choice)]
        for values in [*ends, *(ends[0] | {d.key: value} for d in named for value in d.values)]:
            self({key: value for key, value in values.items() if self.plan.belongs(key, self.plan.algorithm(values))})

    def varying(self, algorithm: Algorithm) -> list[bool]:
        """Which leaves differ between trials of one shape; the environment's only where `env_kwargs` are swept."""
        env_varies = any(dimension.key.startswith("env_kwargs") for dimension in self.plan.dimensions)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(algorithm)]
        return [env_varies or path[0].name != "env" for path in paths]


def _work(study: Study, builder: _Builder, display: Display, directory: Path | None) -> None:
    """Takes cohorts of trials from the study until none is left, and waits for those of other workers."""
    worker: _Worker | None = None
    waiting = False
    done, best = _ended(study)
    if done < study.plan.num_configs:
        display.start(study.plan.num_configs, done, best)
    with study.signs_of_life() if directory is not None else contextlib.nullcontext():
        while True:
            if worker is None and (study.plan.num_configs > _ended(study)[0]):
                # Not before there is work: of a finished sweep nothing is built.
                worker = _Worker(study, builder, display)
            claimed = study.claim(worker.cohort_size) if worker is not None else []
            if worker is not None and claimed:
                waiting = False
                with device_errors("give a smaller batch_size="):
                    worker.train(claimed)
                if directory is not None:
                    write_tables(read_results(study), directory)
            elif study.others_at_work():
                if not waiting:
                    display.say("nothing is left to start; waiting for other workers")
                waiting = True
                time.sleep(POLL_SECONDS)
            else:
                return


def _ended(study: Study) -> tuple[int, float]:
    """How many trials have ended, and the best return of those that trained to their end."""
    results = [result for trial in study.by_index().values() if (result := study.result(trial)) is not None]
    best = max(
        (result["value"] for result in results if result["complete"] and result["value"] is not None), default=math.nan
    )
    return len(results), best


class _Worker:
    """What trains claimed trials: the programs compiled so far, by shape, and the display."""

    def __init__(self, study: Study, builder: _Builder, display: Display) -> None:
        self._study, self._builder, self._display = study, builder, display
        self._plan = plan = study.plan
        device, fallback = describe_device(local=True)
        self._platform = jax.local_devices()[0].platform
        builder.check()
        seeds = f" of {plan.settings.num_seeds} seeds" if plan.settings.num_seeds > 1 else ""
        what = f"{plan.num_configs} configurations{seeds} ({plan.search} search)"
        display.say(f"sweeping {what} on {device} (JAX {jax.__version__})")
        if fallback:
            display.say(f"note: {fallback}")
        self.programs: dict[Shape, tuple[Programs, BatchSize]] = {}
        settings = plan.settings
        ranges = {name: bounds for d in plan.dimensions if (name := key_of_number(d)) and (bounds := d.bounds())}
        self._rules = Rules(
            halving=settings.halving,
            halving_rungs=settings.halving_rungs,
            pbt_rounds=settings.pbt_rounds if settings.pbt else 0,
            pbt_ranges=ranges if settings.pbt else {},
            seed=settings.search_seed,
        )
        self.cohort_size = self._cohort_size()

    def _cohort_size(self) -> int:
        settings, configs = self._plan.settings, self._plan.num_configs
        if settings.cohort is not None:
            return settings.cohort
        if settings.halving is not None or settings.pbt:
            return configs
        if self._plan.search in ("tpe", "cmaes"):
            # The search learns between cohorts, so it needs some of them.
            return max(4, configs // 8)
        lanes = COHORT_LANES.get(self._platform, ACCELERATOR_COHORT_LANES)
        return max(1, lanes // settings.num_seeds, settings.batch_size or 0)

    def train(self, claimed: Sequence[Claimed]) -> None:
        """Trains the trials and puts each result into the study as soon as it is known."""
        study, settings = self._study, self._plan.settings
        trials = {claim.trial.number: claim.trial for claim in claimed}
        candidates: list[Candidate] = []
        for claim in claimed:
            env = claim.values.get("env", settings.env)
            candidates.append(
                Candidate(
                    claim.trial.number, self._builder(claim.values), int(claim.values.get("seed", settings.seed)), env
                )
            )
        groups = [self._group(shape, members) for shape, members in group_candidates(candidates).items()]
        ended_before, _ = _ended(study)
        expected = sum(self._expected_steps(group) for group in groups)
        done = 0
        for group in groups:
            group.later_steps = int(
                expected / len(claimed) * max(0, self._plan.num_configs - ended_before - len(claimed))
            )

        def on_call(steps: int) -> None:
            nonlocal done
            done += steps
            share = (ended_before + len(claimed) * min(1.0, done / expected)) / self._plan.num_configs
            self._display.advanced(steps, share)

        def on_outcome(outcome: Outcome) -> None:
            value = float(outcome.returns.mean())
            study.finish(trials[outcome.number], value, _described(outcome), complete=outcome.complete)
            self._display.ended(*_ended(study))

        train_cohort(
            groups,
            self._rules,
            on_call=on_call,
            on_rung=lambda number, steps, value: trials[number].report(value, steps),
            on_outcome=on_outcome,
        )

    def _expected_steps(self, group: Group) -> float:
        """Live steps that a group takes, those that halving saves left out."""
        steps = len(group.candidates) * self._plan.settings.num_seeds * group.total_steps
        if self._rules.halving is None:
            return steps
        shares = self._rules.shares()
        gains = [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]
        return steps * sum(gain * self._rules.halving**-rung for rung, gain in enumerate(gains))

    def _group(self, shape: Shape, members: list[Candidate]) -> Group:
        settings = self._plan.settings
        if shape not in self.programs:
            example = members[0].algorithm
            programs = Programs(
                example,
                varying=self._builder.varying(example),
                points=settings.curve_points,
                episodes=settings.final_eval_episodes,
            )
            devices = programs.num_devices
            lanes = FIRST_LANES.get(self._platform, ACCELERATOR_FIRST_LANES) * devices
            if settings.batch_size is not None:
                lanes = -(-settings.batch_size * settings.num_seeds // devices) * devices
            self.programs[shape] = programs, BatchSize(programs, lanes, fixed=settings.batch_size is not None)
        programs, batch = self.programs[shape]
        return Group(members, programs, batch, settings.num_seeds, settings.curve_points)


def _described(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the study keeps it: plain numbers, None where one is not finite."""
    described = dataclasses.asdict(outcome)
    for name in ("number", "complete"):
        del described[name]
    return {name: _plain(value) for name, value in described.items()}


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        # Seven digits hold a float32.
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value
