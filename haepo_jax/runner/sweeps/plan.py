"""What a sweep is asked for: its settings and its configurations. Nothing here imports jax or Optuna."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib import util
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import short
from haepo_jax.runner.config import AlgoConfig, ConfigError, RunConfig, hyperparameter_fields, setting
from haepo_jax.runner.config.arguments import check_form, compose, put
from haepo_jax.runner.config.values import checked_value, find_field, from_dict
from haepo_jax.runner.sweeps.space import Choice, Dimension, Interval, Values, read_dimension

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PACKAGES = ("optuna", "cmaes")
"""What the extra `sweep` brings."""
SEARCHES = ("auto", "grid", "random", "tpe", "cmaes")
TRIAL_SETTINGS = ("env", "algo", "seed", "num_seeds", "total_steps", "final_eval_episodes", "env_kwargs")
NOT_HYPERPARAMETERS = ("env", "policy", "value", "total_steps")
LARGEST_GRID = 100_000


def _of_run(name: str) -> Any:
    field = RunConfig.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of a sweep. The first few are those of every trial."""

    env: str = _of_run("env")
    algo: AlgoConfig = _of_run("algo")
    seed: int = _of_run("seed")
    num_seeds: int = _of_run("num_seeds")
    total_steps: int = _of_run("total_steps")
    final_eval_episodes: int | None = _of_run("final_eval_episodes")
    env_kwargs: dict[str, Any] = _of_run("env_kwargs")

    num_configs: int | None = setting(
        None, int, "configurations to try; null: all of a grid, 64 of any other search", within=hp.COUNT
    )
    search: str = setting(
        "auto", str, "how they are chosen; auto: grid if all values are listed, else random", choices=SEARCHES
    )
    search_seed: int = setting(
        0, int, "seed of the search (the trials train with seed, seed + 1, ...)", within=hp.Range(0, 2**31 - 1)
    )
    halving: int | None = setting(
        None, int, "successive halving: at each rung only the best 1 in this many trains on", within=hp.Range(2, 1000)
    )
    halving_rungs: int = setting(
        2, int, "rungs before the end, each after `halving` times the steps of the previous one", within=hp.Range(1, 20)
    )
    batch_size: int | None = setting(
        None, int, "configurations in one compiled call; null: as many as pay off", within=hp.COUNT
    )
    cohort: int | None = setting(
        None, int, "configurations a worker takes at once; null: all for halving, else a few batches", within=hp.COUNT
    )
    curve_points: int = setting(
        20, int, "points of each trial's learning curve, evenly spaced in steps", within=hp.Range(1, 10_000)
    )
    run_dir: str | None = setting(None, str, "directory for the results; null: runs/sweep-<env>-<algo>-<time>")
    storage: str | None = setting(
        None, str, "Optuna storage that workers share, such as postgresql://...; null: study.db in run_dir"
    )
    worker_timeout: int = setting(
        60, int, "seconds without a heartbeat after which a worker's trials are given to others", within=hp.COUNT
    )
    dry_run: bool = setting(False, bool, "check everything, then exit without training")


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was asked for.

    Attributes:
      settings: of the sweep.
      dimensions: what is swept; keys that are compiled in come first.
      compiled: the keys of which two values need two compilations. Of `env_kwargs` only the environment knows.
      env, algorithm: custom objects in place of the named ones, or None.
    """

    settings: SweepConfig
    dimensions: tuple[Dimension, ...]
    compiled: tuple[str, ...]
    env: Any = None
    algorithm: Any = None

    @property
    def search(self) -> str:
        """`grid`, `random`, `tpe` or `cmaes`."""
        if self.settings.search != "auto":
            return self.settings.search
        listed = all(isinstance(dimension, Choice) for dimension in self.dimensions)
        return "grid" if listed and self.settings.num_configs is None else "random"

    @property
    def num_configs(self) -> int:
        """How many configurations there are to try."""
        asked = self.settings.num_configs
        if self.search == "grid":
            return len(self.grid) if asked is None else min(len(self.grid), asked)
        return 64 if asked is None else asked

    @functools.cached_property
    def grid(self) -> list[Values]:
        """Every combination of the listed values, the last key varying fastest."""
        listed = {d.key: d.values for d in self.dimensions if isinstance(d, Choice)}
        return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]

    def planned(self, index: int) -> Values:
        """The configuration of an index in a grid or random search: the same whoever asks and in whatever order."""
        if self.search == "grid":
            return self.grid[index]
        random = np.random.default_rng([self.settings.search_seed, index])
        return {dimension.key: dimension.draw(random) for dimension in self.dimensions}

    def samples(self) -> Iterator[Values]:
        """Configurations to check before anything trains: both ends of every key's range, and one for each combination of
        values that are compiled in. Where the search learns from the results, a random search stands in for it."""
        for end in (0, -1):
            yield {dimension.key: dimension.ends()[end] for dimension in self.dimensions}
        seen = set()
        for values in map(self.planned, range(self.num_configs)):
            combination = tuple(values[key] for key in self.compiled)
            if combination not in seen:
                seen.add(combination)
                yield values

    def run_config(self, values: Values) -> RunConfig:
        """A configuration as the settings of a training run, but for what is custom; raises ConfigError."""
        merged: dict[str, Any] = {name: copy.deepcopy(getattr(self.settings, name)) for name in TRIAL_SETTINGS}
        merged["algo"] = {"name": self.settings.algo.name, **self.settings.algo.hyperparameters}
        for key, value in values.items() if self.algorithm is None else ():
            put(merged, key, value)
        return from_dict(merged, RunConfig)


def read_sweep(overrides: Iterable[Override], env: Any = None, algorithm: Any = None) -> SweepPlan:
    """The sweep that is asked for; raises ConfigError at the first setting that cannot be used.

    Args:
      overrides: the command line.
      env, algorithm: custom objects in place of those that the command line names, or None.
    """
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a sweep needs the extra sweep, and {missing[0]} is not installed: pip install 'haepo_jax[sweep]'"
        )
    overrides = list(overrides)
    swept = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    keys = [override.key_or_group for override in overrides]
    for override in swept:
        check_form(override)
        if keys.count(override.key_or_group) > 1:
            raise ConfigError(f"{override.key_or_group} is given twice: a key that is swept takes one list of values")
    if algorithm is not None:
        for override in fixed:
            if override.key_or_group.startswith("algo."):
                raise ConfigError(f"{override.key_or_group} has one value: set it in the algorithm object")
    settings = compose(fixed, SweepConfig)
    fields: Mapping[str, dataclasses.Field[Any]]
    if algorithm is None:
        fields = hyperparameter_fields(settings.algo.name)
    else:
        fields = {f.name: f for f in dataclasses.fields(algorithm) if f.name not in NOT_HYPERPARAMETERS}
    compiled = {f"algo.{name}" for name, field in fields.items() if field.metadata.get("static", False)}
    dimensions = [_dimension(override, settings, fields, custom=algorithm is not None) for override in swept]
    dimensions.sort(key=lambda dimension: dimension.key not in compiled)
    compiled_in = tuple(dimension.key for dimension in dimensions if dimension.key in compiled)
    plan = SweepPlan(settings, tuple(dimensions), compiled_in, env, algorithm)
    _check(plan)
    return plan


def _dimension(
    override: Override, settings: SweepConfig, fields: Mapping[str, dataclasses.Field[Any]], *, custom: bool
) -> Dimension:
    """One swept key with every value, or both ends of its interval, held against its range."""
    key = override.key_or_group
    name, schema = key.removeprefix("algo."), {f.name: f for f in dataclasses.fields(SweepConfig)}
    if key in schema:
        raise ConfigError(f"{key} cannot be swept, only algo.<key> and env_kwargs.<name> (several seeds: num_seeds=)")
    if not custom or name == key:
        field = find_field(key, settings.algo.name, schema)
    elif name in fields:
        field = fields[name]
    else:
        raise ConfigError(f"the algorithm has no hyperparameter {short(name)}; it has {', '.join(fields)}")
    kind = field.metadata.get("kind", dict)
    if override.is_interval_sweep() and kind not in (int, float, dict):
        raise ConfigError(f"{short(override.input_line)}: {key} is not a number: list its values, as in {key}=a,b")
    dimension = read_dimension(override, integer=kind is int)
    if kind is dict:  # the environment's own, or a custom algorithm's without type and range
        return dimension
    if isinstance(dimension, Choice):
        return Choice(key, tuple(dict.fromkeys(checked_value(key, field, value) for value in dimension.values)))
    for end in dimension.ends():
        checked_value(key, field, end)
    return dimension


def _check(plan: SweepPlan) -> None:
    """Raises ConfigError where settings do not go together, or not with what is swept."""
    search = plan.search
    intervals = [dimension.key for dimension in plan.dimensions if isinstance(dimension, Interval)]
    size = math.prod(len(dimension.values) for dimension in plan.dimensions if isinstance(dimension, Choice))
    wrong = {
        "nothing is swept: give a key several values, such as 'algo.learning_rate=tag(log,interval(1e-4,1e-2))'":
            not plan.dimensions,
        f"search=grid cannot list the values of {''.join(intervals[:1])}=interval(...): use choice or search=random":
            search == "grid" and intervals,
        f"the grid has {size:,} configurations: use search=random with num_configs=":
            search == "grid" and size > LARGEST_GRID,
        "search=cmaes needs at least two keys with an interval(...); tpe takes any space":
            search == "cmaes" and len(intervals) < 2,
    }  # fmt: skip
    for text in (text for text, applies in wrong.items() if applies):
        raise ConfigError(text)
    for values in plan.samples():
        plan.run_config(values)
