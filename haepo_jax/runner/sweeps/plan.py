"""What a sweep is asked for: its settings, its configurations, and the algorithm and the command of each.

Reading and checking a sweep imports neither jax nor Optuna; building its algorithms does.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from importlib import util
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import first_line, short
from haepo_jax.runner.config import SEEDS, AlgoConfig, ConfigError, RunConfig, hyperparameter_fields, setting
from haepo_jax.runner.config.arguments import check_form, command_of, compose, put, shell_command
from haepo_jax.runner.config.values import checked_value, find_field, from_dict
from haepo_jax.runner.sweeps.space import Choice, Dimension, Interval, Values, read_dimension

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from haepo_jax.algorithms.base import Algorithm

PACKAGES = ("optuna", "cmaes")
"""What the extra `sweep` brings."""
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
    final_eval_episodes: int | None = setting(
        None, int, "evaluation episodes per seed for the final return; null: 128, fewer in a short run", within=hp.COUNT
    )
    env_kwargs: dict[str, Any] = _of_run("env_kwargs")

    num_configs: int | None = setting(
        None, int, "configurations to try; null: all of a grid, 64 of any other search", within=hp.COUNT
    )
    search: str = setting(
        "auto", str, "search algorithm; auto: grid if all values are listed and num_configs is null, else random",
        choices=("auto", "grid", "random", "tpe", "cmaes"),
    )  # fmt: skip
    search_seed: int = setting(0, int, "seed of the search (the trials train with seed, seed + 1, ...)", within=SEEDS)
    halving: int | None = setting(
        None, int, "successive halving: at each rung only the best 1 in this many continues", within=hp.Range(2, 1000)
    )
    halving_rungs: int = setting(
        2, int, "rungs before the end, each after `halving` times the steps of the previous one", within=hp.Range(1, 20)
    )
    batch_size: int | None = setting(
        None, int, "configurations in one compiled call; null: chosen automatically", within=hp.COUNT
    )
    cohort: int | None = setting(
        None,
        int,
        "configurations a worker takes at once; null: a few batches, all for halving, an eighth for tpe and cmaes",
        within=hp.COUNT,
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
      search: `grid`, `random`, `tpe` or `cmaes`.
      num_configs: how many configurations there are to try.
      dimensions: what is swept; keys that are compiled in come first.
      compiled: the keys of which two values need two compilations. Of `env_kwargs` only the environment knows.
      env, algorithm: custom objects in place of the named ones, or None.
    """

    settings: SweepConfig
    search: str
    num_configs: int
    dimensions: tuple[Dimension, ...]
    compiled: tuple[str, ...]
    env: Any = None
    algorithm: Any = None
    _envs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def planned(self, index: int) -> Values:
        """The configuration of an index: in a grid the last key varies fastest, anything else is drawn at random, the same
        whoever asks and in whatever order."""
        if self.search == "grid":
            listed = [dimension for dimension in self.dimensions if isinstance(dimension, Choice)]
            places = np.unravel_index(index, [len(choice.values) for choice in listed])
            return {choice.key: choice.values[place] for choice, place in zip(listed, places, strict=True)}
        random = np.random.default_rng([self.settings.search_seed, index])
        return {dimension.key: dimension.draw(random) for dimension in self.dimensions}

    def run_config(self, values: Values) -> RunConfig:
        """A configuration as the settings of a training run, but for what is custom; raises ConfigError."""
        merged = self._trial_settings()
        for key, value in values.items() if self.algorithm is None else ():
            put(merged, key, value)
        return from_dict(merged, RunConfig)

    def _trial_settings(self) -> dict[str, Any]:
        settings = copy.deepcopy({name: getattr(self.settings, name) for name in TRIAL_SETTINGS})
        return settings | {"algo": {"name": self.settings.algo.name, **self.settings.algo.hyperparameters}}

    def build(self, values: Values) -> Algorithm:
        """The algorithm of a configuration; raises ConfigError if it does not fit its environment."""
        from haepo_jax.runner.program import build

        if self.algorithm is None:
            config = self.run_config(values)
            key = json.dumps(config.env_kwargs, sort_keys=True)  # environments that are alike are built once
            algorithm = build(config, self._envs.get(key, self.env))
            self._envs[key] = algorithm.env
            return algorithm
        changes = {key.removeprefix("algo."): value for key, value in values.items()}
        try:
            return self.algorithm.replace(total_steps=self.settings.total_steps, **changes)
        except Exception as error:  # a custom algorithm may raise anything at a value that it cannot use
            name = type(self.algorithm).__name__
            raise ConfigError(f"cannot set up {name} with {short(values, 200)}: {first_line(error)}") from error

    def check(self) -> None:
        """Builds a sample of the algorithms, so that what does not fit is reported before anything trains: both ends of every
        key's range, and each combination of values that are compiled in (for TPE and CMA-ES, of those drawn at random)."""
        ends = [{dimension.key: dimension.ends()[end] for dimension in self.dimensions} for end in (0, 1)]
        planned = map(self.planned, range(self.num_configs))
        for values in [*ends, *{tuple(values[key] for key in self.compiled): values for values in planned}.values()]:
            self.build(values)

    def command(self, values: Values) -> str:
        """The command line that trains a configuration alone; for custom objects, a comment that there is none."""
        config = self.run_config(values)
        if self.env is None:
            return shell_command("haepo_jax.train", command_of(config))
        what = "environment" if self.algorithm is None else "algorithm"
        return (
            f"# no command line: the {what} is a Python object. With found = hx.sweep(...): "
            f"hx.train(found.algorithm(i), seeds=range({config.seed}, {config.seed + config.num_seeds}))"
        )

    def identity(self) -> dict[str, Any]:
        """What two commands must share to work on the same sweep."""
        from haepo_jax.runner.describe import unwrapped
        from haepo_jax.runner.fingerprints import fingerprint

        settings = self.settings
        return {
            "search": self.search,
            **{name: getattr(settings, name) for name in ("search_seed", "halving", "halving_rungs", "curve_points")},
            "space": [vars(dimension) for dimension in self.dimensions],
            "trial": self._trial_settings(),
            "objects": [fingerprint(unwrapped(thing)) for thing in (self.env, self.algorithm) if thing is not None],
        }


def read_sweep(overrides: Sequence[Override], env: Any = None, algorithm: Any = None) -> SweepPlan:
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
    swept = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    keys = [override.key_or_group for override in overrides]
    for override in swept:
        check_form(override)
        if keys.count(override.key_or_group) > 1:
            raise ConfigError(f"{override.key_or_group} is given twice: a key that is swept takes one list of values")
    settings = compose(fixed, SweepConfig)
    fields: Mapping[str, dataclasses.Field[Any]] = hyperparameter_fields(settings.algo.name)
    if algorithm is not None:
        fields = {f.name: f for f in dataclasses.fields(algorithm) if f.name not in NOT_HYPERPARAMETERS}
        for override in fixed:
            if override.key_or_group.startswith("algo."):
                raise ConfigError(f"{override.key_or_group} has one value: set it in the algorithm object")
    compiled = {f"algo.{name}" for name, field in fields.items() if field.metadata.get("static", False)}
    dimensions = [_dimension(override, settings, fields) for override in swept]
    dimensions.sort(key=lambda dimension: dimension.key not in compiled)
    intervals = [dimension.key for dimension in dimensions if isinstance(dimension, Interval)]
    size = math.prod(len(dimension.values) for dimension in dimensions if isinstance(dimension, Choice))
    search, asked = settings.search, settings.num_configs
    if search == "auto":
        search = "random" if intervals or asked is not None else "grid"
    if not dimensions:
        raise ConfigError(
            "nothing is swept: give a key several values, such as 'algo.learning_rate=tag(log,interval(1e-4,1e-2))'"
        )
    if search == "grid" and intervals:
        raise ConfigError(
            f"search=grid cannot list the values of {intervals[0]}=interval(...): use choice or search=random"
        )
    if search == "grid" and size > LARGEST_GRID:
        raise ConfigError(f"the grid has {size:,} configurations: use search=random with num_configs=")
    if search == "cmaes" and len(intervals) < 2:
        raise ConfigError("search=cmaes needs at least two keys with an interval(...); tpe takes any space")
    num_configs = min(size, asked or size) if search == "grid" else asked or 64
    compiled_in = tuple(dimension.key for dimension in dimensions if dimension.key in compiled)
    return SweepPlan(settings, search, num_configs, tuple(dimensions), compiled_in, env, algorithm)


def _dimension(override: Override, settings: SweepConfig, fields: Mapping[str, dataclasses.Field[Any]]) -> Dimension:
    """One swept key with every value, or both ends of its interval, held against its range."""
    key, schema = override.key_or_group, {f.name: f for f in dataclasses.fields(SweepConfig)}
    if key in schema:
        raise ConfigError(f"{key} cannot be swept, only algo.<key> and env_kwargs.<name> (several seeds: num_seeds=)")
    group, _, name = key.partition(".")
    known = group == "algo" and name in fields
    field = fields[name] if known else find_field(key, settings.algo.name, schema)
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
