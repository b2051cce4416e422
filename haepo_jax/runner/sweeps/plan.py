"""What a sweep is asked for: its settings and its configurations. Nothing here imports jax or Optuna."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import util
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import short
from haepo_jax.runner.config import AlgoConfig, ConfigError, RunConfig, hyperparameter_fields, setting
from haepo_jax.runner.config.arguments import check_form, choices, compose, own_overrides, put, read_arguments
from haepo_jax.runner.config.values import checked_value, find_field, from_dict, resolve_env
from haepo_jax.runner.sweeps.space import Choice, Dimension, Interval, Values, read_dimension

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

Fields = Mapping[str, dataclasses.Field[Any]]

PACKAGES = ("optuna", "cmaes")
"""What the extra `sweep` brings."""
SEARCHES = ("auto", "grid", "random", "tpe", "cmaes")
TRIAL_SETTINGS = ("env", "algo", "seed", "num_seeds", "total_steps", "final_eval_episodes", "env_kwargs")
SWEEPABLE = ("env", "algo", "seed", "total_steps")
NOT_HYPERPARAMETERS = ("env", "policy", "value", "total_steps")
LARGEST_GRID = 100_000


def _of_run(name: str) -> Any:
    field = RunConfig.__dataclass_fields__[name]
    return dataclasses.field(default=field.default, metadata=field.metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """The settings of a sweep. The first few are those of every trial; a swept one has its default here."""

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
    pbt: bool = setting(
        False, bool, "population-based training: the worst quarter copies the best and perturbs its hyperparameters"
    )
    pbt_rounds: int = setting(10, int, "how often it does so, evenly spaced in steps", within=hp.Range(2, 10_000))
    batch_size: int | None = setting(
        None, int, "configurations in one compiled call; null: as many as pay off and fit the memory", within=hp.COUNT
    )
    cohort: int | None = setting(
        None, int, "configurations a worker takes at once; null: all for halving and pbt, else a few batches",
        within=hp.COUNT,
    )  # fmt: skip
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
    distributed: bool = setting(False, bool, "several hosts: each process of the cluster job is a worker of one study")
    dry_run: bool = setting(False, bool, "check everything, then exit without training")

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if self.distributed and self.run_dir is None:
            raise ConfigError("distributed=true needs run_dir=: a directory that every process reaches")
        if self.halving is not None and self.pbt:
            raise ConfigError("halving= stops the worst trials and pbt=true continues them: choose one")
        if self.pbt and self.search in ("tpe", "cmaes"):
            raise ConfigError(
                f"pbt=true needs its whole population at once, but search={self.search} learns from trials that ended"
            )
        if self.pbt and self.cohort is not None and self.cohort < 4:
            raise ConfigError(
                f"cohort={self.cohort} is too small for pbt=true: a worst quarter needs at least 4 trials"
            )


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was asked for.

    Attributes:
      settings: of the sweep; `settings.env` and `settings.algo` hold the first of several.
      dimensions: what is swept; keys that are compiled in come first.
      bases: the settings under each algorithm's name.
      fields: the hyperparameters under each algorithm's name; those of a custom one need not say their type and range.
      env, algorithm: custom objects in place of the named ones, or None.
      fixed: hyperparameters of a custom algorithm that replace its own.
    """

    settings: SweepConfig
    dimensions: tuple[Dimension, ...]
    bases: dict[str, SweepConfig]
    fields: dict[str, Fields]
    env: Any = None
    algorithm: Any = None
    fixed: Values = dataclasses.field(default_factory=dict)

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

    @property
    def envs(self) -> list[str]:
        """The names of the environments."""
        listed = [list(d.values) for d in self.dimensions if d.key == "env" and isinstance(d, Choice)]
        return listed[0] if listed else [self.settings.env]

    def algorithm_of(self, values: Values) -> str:
        """The name of a configuration's algorithm or preset."""
        name: str = values.get("algo", self.settings.algo.name)
        return name

    def has(self, algorithm: str, key: str) -> bool:
        """Whether an algorithm has this key; all have the keys of the run."""
        return not key.startswith("algo.") or key.removeprefix("algo.") in self.fields[algorithm]

    @functools.cached_property
    def grid(self) -> list[Values]:
        """Every combination of the listed values, the last key varying fastest; each algorithm has only its own keys."""
        found = []
        for name in self.bases:
            own = [d for d in self.dimensions if isinstance(d, Choice) and self.has(name, d.key)]
            values = itertools.product(*((name,) if d.key == "algo" else d.values for d in own))
            found += [dict(zip((d.key for d in own), combination, strict=True)) for combination in values]
        return found

    def drawn(self, index: int) -> Values:
        """The configuration of an index in a random search: the same whoever asks and whatever was drawn before."""
        random = np.random.default_rng([self.settings.search_seed, index])
        return self._own({dimension.key: dimension.draw(random) for dimension in self.dimensions})

    def _own(self, values: Values) -> Values:
        return {key: value for key, value in values.items() if self.has(self.algorithm_of(values), key)}

    def planned(self, index: int) -> Values:
        """The configuration of an index in a grid or random search."""
        return self.grid[index] if self.search == "grid" else self.drawn(index)

    def samples(self) -> Iterator[Values]:
        """Configurations to check before anything trains: both ends of every key's range, and one for each combination of
        values that are compiled in. Where the search learns from the results, a random search stands in for it."""
        for end in (0, -1):
            yield self._own({d.key: d.ends()[end] for d in self.dimensions})
        compiled = [dimension.key for dimension in self.dimensions if self.compiled_in(dimension.key)]
        seen = set()
        for index in range(self.num_configs):
            values = self.planned(index)
            combination = tuple(values.get(key) for key in compiled)
            if combination not in seen:
                seen.add(combination)
                yield values

    def compiled_in(self, key: str) -> bool:
        """Whether two values of a key need two compilations. Of `env_kwargs` only the environment knows."""
        return _compiled_in(key, self.fields)

    def number(self, dimension: Dimension) -> tuple[str, tuple[float, float]] | None:
        """The hyperparameter that a dimension varies without recompiling, such as `learning_rate`, and its bounds; None
        if it is none."""
        bounds, key = dimension.bounds(), dimension.key
        if bounds is None or not key.startswith("algo.") or self.compiled_in(key):
            return None
        return key.removeprefix("algo."), bounds

    def run_config(self, values: Values) -> RunConfig:
        """A configuration as the settings of a training run, but for what is custom; raises ConfigError."""
        base = self.bases[self.algorithm_of(values)]
        merged: dict[str, Any] = {name: copy.deepcopy(getattr(base, name)) for name in TRIAL_SETTINGS}
        merged["algo"] = {"name": base.algo.name, **base.algo.hyperparameters}
        for key, value in values.items():
            if key != "algo" and not (self.algorithm is not None and key.startswith("algo.")):
                put(merged, key, value)
        return from_dict(merged, RunConfig)


def _compiled_in(key: str, fields: Mapping[str, Fields]) -> bool:
    name = key.removeprefix("algo.")
    if name == key:
        return key in ("env", "algo", "total_steps")
    return any(own[name].metadata.get("static", False) for own in fields.values() if name in own)


def read_sweep(overrides: Iterable[Override], env: Any = None, algorithm: Any = None) -> SweepPlan:
    """The sweep that is asked for; raises ConfigError at the first setting that cannot be used.

    Args:
      overrides: the command line.
      env: a custom environment, which the settings name only to be complete; None: they name it.
      algorithm: a custom algorithm, likewise.
    """
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a sweep needs the extra sweep, and {missing[0]} is not installed: pip install 'haepo_jax[sweep]'"
        )
    overrides = list(overrides)
    swept = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    for override in swept:
        check_form(override)
        if sum(other.key_or_group == override.key_or_group for other in overrides) > 1:
            raise ConfigError(f"{override.key_or_group} is given twice: a key that is swept takes one list of values")
    names = _algorithms(swept, fixed)
    fields: dict[str, Fields] = {name: hyperparameter_fields(name) for name in names}
    numbers: Values = {}
    if algorithm is not None:
        own = {f.name: f for f in dataclasses.fields(algorithm) if f.name not in NOT_HYPERPARAMETERS}
        fields = dict.fromkeys(names, own)
        for override in (override for override in fixed if override.key_or_group.startswith("algo.")):
            field, value = _custom_field(override.key_or_group, own), override.value()
            numbers[field.name] = (
                checked_value(override.key_or_group, field, value) if "kind" in field.metadata else value
            )
        fixed = [override for override in fixed if not override.key_or_group.startswith("algo.")]
    bases = {}
    for name in names:
        named = read_arguments([f"algo={name}"]).overrides
        bases[name] = compose([*own_overrides(fixed, name, names), *named], SweepConfig)
    dimensions = [_checked_dimension(override, fields, custom=algorithm is not None) for override in swept]
    dimensions.sort(key=lambda dimension: not _compiled_in(dimension.key, fields))
    plan = SweepPlan(bases[names[0]], tuple(dimensions), bases, fields, env, algorithm, numbers)
    if not plan.envs[0]:
        raise ConfigError("env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)")
    bases = {name: dataclasses.replace(base, env=plan.envs[0]) for name, base in bases.items()}
    shown = plan.envs[0] if env is None else str(getattr(env, "name", type(env).__name__))
    plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, env=shown), bases=bases)
    _check_search(plan)
    for values in plan.samples():
        plan.run_config(values)
    return plan


def _algorithms(swept: Sequence[Override], fixed: Sequence[Override]) -> tuple[str, ...]:
    for override in swept:
        if override.key_or_group == "algo":
            return tuple(dict.fromkeys(choices(override)))
    return (compose([o for o in fixed if o.key_or_group == "algo"], SweepConfig).algo.name,)


def _checked_dimension(override: Override, fields: Mapping[str, Fields], *, custom: bool) -> Dimension:
    """One swept key with every value, or both ends of its interval, held against its range."""
    key = override.key_or_group
    if key == "algo":
        return Choice("algo", tuple(fields))
    settings = {f.name: f for f in dataclasses.fields(SweepConfig)}
    head, _, rest = key.partition(".")
    if custom and head == "algo":
        field = _custom_field(key, next(iter(fields.values())))
    else:
        owner = next((name for name, own in fields.items() if rest in own), next(iter(fields)))
        field = find_field(key, owner, settings)
    if head in settings and not (key in SWEEPABLE or (rest and head in ("algo", "env_kwargs"))):
        raise ConfigError(f"{key} cannot be swept; what can: {', '.join(SWEEPABLE)}, algo.<key> and env_kwargs.<name>")
    kind = field.metadata.get("kind", dict)
    if override.is_interval_sweep() and kind not in (int, float, dict):
        raise ConfigError(f"{short(override.input_line)}: {key} is not a number: list its values, as in {key}=a,b")
    dimension = read_dimension(override, integer=kind is int)
    if kind is dict:  # the environment's own, or a custom algorithm's without type and range
        return dimension
    if isinstance(dimension, Interval):
        for end in dimension.bounds():
            checked_value(key, field, end)
        return dimension
    checked = [checked_value(key, field, value) for value in dimension.values]
    if key == "env":
        checked = [resolve_env(name) for name in checked]
    return Choice(key, tuple(dict.fromkeys(checked)))


def _custom_field(key: str, known: Fields) -> dataclasses.Field[Any]:
    if (name := key.removeprefix("algo.")) not in known:
        raise ConfigError(f"the algorithm has no hyperparameter {short(name)}; it has {', '.join(known)}")
    return known[name]


def _check_search(plan: SweepPlan) -> None:
    """Raises ConfigError where the search does not go with what is swept."""
    search, intervals = plan.search, [d for d in plan.dimensions if isinstance(d, Interval)]
    if not plan.dimensions:
        raise ConfigError(
            "nothing is swept: give a key several values, such as 'algo.learning_rate=tag(log,interval(1e-4,1e-2))'"
        )
    if search == "grid" and intervals:
        raise ConfigError(
            f"search=grid cannot list the values of {intervals[0].key}=interval(...): use choice or search=random"
        )
    size = math.prod(len(dimension.values) for dimension in plan.dimensions if isinstance(dimension, Choice))
    if search == "grid" and size > LARGEST_GRID:
        raise ConfigError(f"the grid has {size:,} configurations: use search=random with num_configs=")
    if len(plan.envs) > 1 and search in ("tpe", "cmaes"):
        raise ConfigError(
            f"search={search} compares returns, which differ in scale between environments: sweep one, or use random"
        )
    if search == "cmaes" and len(intervals) < 2:
        raise ConfigError("search=cmaes needs at least two keys with an interval(...); tpe takes any space")
    if plan.settings.pbt and plan.num_configs < 4:
        raise ConfigError(f"pbt=true needs at least 4 configurations, and there are {plan.num_configs}")
    if plan.settings.pbt and not any(map(plan.number, plan.dimensions)):
        raise ConfigError(
            "pbt=true needs a numeric hyperparameter to perturb, such as algo.learning_rate=interval(...)"
        )
