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
        None, int, "configurations in one compiled call; null: as many as pay off", within=hp.COUNT
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


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was asked for.

    Attributes:
      settings: of the sweep; `settings.env` and `settings.algo` hold the first of several.
      dimensions: what is swept; keys that are compiled in come first.
      compiled: the keys of which two values need two compilations. Of `env_kwargs` only the environment knows.
      bases: the settings under each algorithm's name.
      fields: the hyperparameters under each algorithm's name; those of a custom one need not say their type and range.
      env, algorithm: custom objects in place of the named ones, or None.
      fixed: hyperparameters of a custom algorithm that replace its own.
    """

    settings: SweepConfig
    dimensions: tuple[Dimension, ...]
    compiled: tuple[str, ...]
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

    def own(self, values: Values, algorithm: str) -> Values:
        """The values of the keys that an algorithm has; all have the keys of the run."""
        fields = self.fields[algorithm]
        return {k: v for k, v in values.items() if not k.startswith("algo.") or k.removeprefix("algo.") in fields}

    @functools.cached_property
    def grid(self) -> list[Values]:
        """Every combination of the listed values, the last key varying fastest; each algorithm has only its own keys."""
        listed = {d.key: d.values for d in self.dimensions if isinstance(d, Choice)}
        found = []
        for name in self.bases:
            axes = self.own(listed | ({"algo": (name,)} if "algo" in listed else {}), name)
            found += [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        return found

    def drawn(self, index: int) -> Values:
        """The configuration of an index in a random search: the same whoever asks and whatever was drawn before."""
        random = np.random.default_rng([self.settings.search_seed, index])
        values = {dimension.key: dimension.draw(random) for dimension in self.dimensions}
        return self.own(values, self.algorithm_of(values))

    def planned(self, index: int) -> Values:
        """The configuration of an index in a grid or random search."""
        return self.grid[index] if self.search == "grid" else self.drawn(index)

    def samples(self) -> Iterator[Values]:
        """Configurations to check before anything trains: both ends of every key's range, and one for each combination of
        values that are compiled in. Where the search learns from the results, a random search stands in for it."""
        for end in (0, -1):
            values = {dimension.key: dimension.ends()[end] for dimension in self.dimensions}
            yield self.own(values, self.algorithm_of(values))
        seen = set()
        for values in map(self.planned, range(self.num_configs)):
            combination = tuple(values.get(key) for key in self.compiled)
            if combination not in seen:
                seen.add(combination)
                yield values

    def ranges(self) -> dict[str, tuple[float, float]]:
        """The hyperparameters that are varied without recompiling, such as `learning_rate`, and the bounds of each."""
        numbers = [d for d in self.dimensions if d.key.startswith("algo.") and d.key not in self.compiled]
        return {d.key.removeprefix("algo."): bounds for d in numbers if (bounds := d.bounds()) is not None}

    def run_config(self, values: Values) -> RunConfig:
        """A configuration as the settings of a training run, but for what is custom; raises ConfigError."""
        base = self.bases[self.algorithm_of(values)]
        merged: dict[str, Any] = {name: copy.deepcopy(getattr(base, name)) for name in TRIAL_SETTINGS}
        merged["algo"] = {"name": base.algo.name, **base.algo.hyperparameters}
        for key, value in values.items():
            if key != "algo" and not (self.algorithm is not None and key.startswith("algo.")):
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
    for override in swept:
        check_form(override)
        if sum(other.key_or_group == override.key_or_group for other in overrides) > 1:
            raise ConfigError(f"{override.key_or_group} is given twice: a key that is swept takes one list of values")
    named = [override for override in swept if override.key_or_group == "algo"]
    if named:
        names = list(dict.fromkeys(choices(named[0])))
    else:
        names = [compose([o for o in fixed if o.key_or_group == "algo"], SweepConfig).algo.name]
    fields: dict[str, Fields] = {name: hyperparameter_fields(name) for name in names}
    numbers: Values = {}
    if algorithm is not None:
        own = {f.name: f for f in dataclasses.fields(algorithm) if f.name not in NOT_HYPERPARAMETERS}
        fields = dict.fromkeys(names, own)
        for override in [override for override in fixed if override.key_or_group.startswith("algo.")]:
            fixed.remove(override)
            field, value = _field(override.key_or_group, fields, custom=True), override.value()
            known = "kind" in field.metadata
            numbers[field.name] = checked_value(override.key_or_group, field, value) if known else value
    bases = {}
    for name in names:
        of_name = read_arguments([f"algo={name}"]).overrides
        bases[name] = compose([*own_overrides(fixed, name, names), *of_name], SweepConfig)
    dimensions = [_dimension(override, fields, custom=algorithm is not None) for override in swept]
    static = {key for own in fields.values() for key, field in own.items() if field.metadata.get("static", False)}
    keys = {"env", "algo", "total_steps", *(f"algo.{key}" for key in static)}
    dimensions.sort(key=lambda dimension: dimension.key not in keys)
    compiled = tuple(dimension.key for dimension in dimensions if dimension.key in keys)
    plan = SweepPlan(bases[names[0]], tuple(dimensions), compiled, bases, fields, env, algorithm, numbers)
    if not (first := plan.envs[0]):
        raise ConfigError("env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)")
    shown = first if env is None else str(getattr(env, "name", type(env).__name__))
    bases = {name: dataclasses.replace(base, env=first) for name, base in bases.items()}
    plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, env=shown), bases=bases)
    _check(plan)
    return plan


def _dimension(override: Override, fields: Mapping[str, Fields], *, custom: bool) -> Dimension:
    """One swept key with every value, or both ends of its interval, held against its range."""
    key = override.key_or_group
    if key == "algo":
        return Choice("algo", tuple(fields))
    field = _field(key, fields, custom=custom)
    if key not in SWEEPABLE and not key.startswith(("algo.", "env_kwargs.")):
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
    checked = [resolve_env(name) for name in checked] if key == "env" else checked
    return Choice(key, tuple(dict.fromkeys(checked)))


def _field(key: str, fields: Mapping[str, Fields], *, custom: bool) -> dataclasses.Field[Any]:
    """What a key sets: a setting of the sweep, or a hyperparameter of one of the algorithms; raises ConfigError."""
    name = key.removeprefix("algo.")
    owner = next((owner for owner, own in fields.items() if name in own), next(iter(fields)))
    if not custom or name == key:
        return find_field(key, owner, {f.name: f for f in dataclasses.fields(SweepConfig)})
    if name not in fields[owner]:
        raise ConfigError(f"the algorithm has no hyperparameter {short(name)}; it has {', '.join(fields[owner])}")
    return fields[owner][name]


def _check(plan: SweepPlan) -> None:
    """Raises ConfigError where settings do not go together, or not with what is swept."""
    settings, search = plan.settings, plan.search
    intervals = [dimension.key for dimension in plan.dimensions if isinstance(dimension, Interval)]
    size = math.prod(len(dimension.values) for dimension in plan.dimensions if isinstance(dimension, Choice))
    learns = search in ("tpe", "cmaes")
    wrong = {
        "nothing is swept: give a key several values, such as 'algo.learning_rate=tag(log,interval(1e-4,1e-2))'":
            not plan.dimensions,
        "distributed=true needs run_dir=: a directory that every process reaches":
            settings.distributed and settings.run_dir is None,
        f"search=grid cannot list the values of {''.join(intervals[:1])}=interval(...): use choice or search=random":
            search == "grid" and intervals,
        f"the grid has {size:,} configurations: use search=random with num_configs=":
            search == "grid" and size > LARGEST_GRID,
        f"search={search} compares returns, which differ in scale between environments: sweep one, or use random":
            learns and len(plan.envs) > 1,
        "search=cmaes needs at least two keys with an interval(...); tpe takes any space":
            search == "cmaes" and len(intervals) < 2,
        "halving= stops the worst trials and pbt=true continues them: choose one":
            settings.pbt and settings.halving is not None,
        f"pbt=true needs its whole population at once, but search={search} learns from trials that have ended":
            settings.pbt and learns,
        "pbt=true needs a numeric hyperparameter to perturb, such as algo.learning_rate=interval(...)":
            settings.pbt and not plan.ranges(),
    }  # fmt: skip
    for text in (text for text, applies in wrong.items() if applies):
        raise ConfigError(text)
    if settings.pbt and (size := min(plan.num_configs, settings.cohort or plan.num_configs)) < 4:
        raise ConfigError(f"pbt=true needs at least 4 configurations at once, and there are {size}")
    for values in plan.samples():
        plan.run_config(values)
