"""What a sweep is asked for: the settings of its trials, its own settings, and the search space; without jax."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import util
from typing import TYPE_CHECKING, Any

from haepo_jax.algorithms import declared
from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import short
from haepo_jax.runner.config import AlgoConfig, ConfigError, RunConfig, algorithm_class, hyperparameter_fields, setting
from haepo_jax.runner.config.arguments import (
    Arguments,
    check_form,
    compose,
    own_overrides,
    put,
    read_arguments,
    value_text,
)
from haepo_jax.runner.config.values import checked_value, find_field, from_dict, resolve_env
from haepo_jax.runner.sweeps.space import (
    MOST_VALUES,
    Choice,
    Dimension,
    Interval,
    Values,
    draw,
    grid,
    is_grid,
    read_dimension,
)

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

PACKAGES = ("optuna", "cmaes")
"""What the extra `sweep` brings."""
SEARCHES = ("auto", "grid", "random", "tpe", "cmaes")
RESUME = ("auto", "true", "false")
TRIAL_SETTINGS = ("env", "algo", "seed", "num_seeds", "total_steps", "final_eval_episodes", "env_kwargs")
SWEEPABLE = ("env", "algo", "seed", "total_steps")


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
        None, int, "configurations to try; null: every one of a grid, 64 of any other search", within=hp.COUNT
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
        2,
        int,
        "rungs before the end; each comes after `halving` times the steps of the one before",
        within=hp.Range(1, 20),
    )
    pbt: bool = setting(
        False, bool, "population-based training: the worst quarter copies the best and perturbs its hyperparameters"
    )
    pbt_rounds: int = setting(10, int, "how often it does so, evenly spaced in steps", within=hp.Range(2, 10_000))
    batch_size: int | None = setting(
        None, int, "configurations in one compiled call; null: as many as pay off and fit the memory", within=hp.COUNT
    )
    cohort: int | None = setting(
        None,
        int,
        "configurations a worker takes at once; null: all for halving and pbt, which compare them, else a few batches",
        within=hp.COUNT,
    )
    curve_points: int = setting(
        20, int, "points of each trial's learning curve, evenly spaced in steps", within=hp.Range(1, 10_000)
    )
    run_dir: str | None = setting(None, str, "where the results go; null: runs/sweep-<env>-<algo>-<time>")
    storage: str | None = setting(
        None, str, "Optuna storage that workers share, such as postgresql://...; null: study.db in run_dir"
    )
    resume: str = setting(
        "auto",
        str,
        "resume the sweep in run_dir (auto: if there is one), or refuse a used directory",
        choices=RESUME,
    )
    worker_timeout: int = setting(
        60, int, "seconds without a heartbeat after which a worker's trials are given to others", within=hp.COUNT
    )
    distributed: bool = setting(
        False, bool, "several hosts: each process of the cluster's job is a worker of one study"
    )
    dry_run: bool = setting(False, bool, "check everything, then stop before training")

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if self.distributed and self.run_dir is None:
            raise ConfigError("distributed=true needs run_dir=: a directory that every process reaches")
        if self.halving is not None and self.pbt:
            raise ConfigError(
                "halving= and pbt=true do not go together: one stops the worst trials, the other continues them"
            )
        if self.pbt and self.search in ("tpe", "cmaes"):
            raise ConfigError(
                f"pbt=true needs its whole population at once, but search={self.search} learns from trials that ended"
            )
        if self.pbt and self.cohort is not None and self.cohort < 4:
            raise ConfigError(
                f"cohort={self.cohort} is too small for pbt=true: its worst quarter must hold a trial, so at least 4"
            )


@dataclasses.dataclass(frozen=True)
class Custom:
    """What a program passes to a sweep as objects, in place of names.

    Attributes:
      env: the environment's name; empty: it is named in the settings.
      fields: the algorithm's hyperparameters by name; None: the algorithm is named in the settings.
      description: the same in every process, and another for other objects.
    """

    env: str
    fields: Mapping[str, dataclasses.Field[Any]] | None
    description: str


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep as it was asked for.

    Attributes:
      settings: of the sweep; `settings.env` and `settings.algo` hold the first of several.
      dimensions: what is swept; keys that are compiled in come first.
      bases: the settings under each algorithm's name.
      custom: the objects among them; None: there are only names.
      fixed: hyperparameters of a custom algorithm that replace its own.
    """

    settings: SweepConfig
    dimensions: tuple[Dimension, ...]
    bases: dict[str, SweepConfig]
    custom: Custom | None = None
    fixed: Values = dataclasses.field(default_factory=dict)

    @property
    def search(self) -> str:
        """`grid`, `random`, `tpe` or `cmaes`."""
        if self.settings.search != "auto":
            return self.settings.search
        return "grid" if is_grid(self.dimensions) and self.settings.num_configs is None else "random"

    @property
    def num_configs(self) -> int:
        """How many configurations there are to try."""
        if self.search == "grid":
            total = len(self.grid())
            return total if self.settings.num_configs is None else min(total, self.settings.num_configs)
        return 64 if self.settings.num_configs is None else self.settings.num_configs

    def algorithm(self, values: Values) -> str:
        """The name of a configuration's algorithm or preset."""
        name: str = values.get("algo", self.settings.algo.name)
        return name

    def belongs(self, key: str, algorithm: str) -> bool:
        """Whether an algorithm has this key; all have the keys of the run."""
        return not key.startswith("algo.") or key.removeprefix("algo.") in _fields(algorithm, self.custom)

    def grid(self) -> list[Values]:
        """Every combination of the listed values; each algorithm has only its own keys."""
        found = []
        for name in self.bases:
            own = [
                Choice("algo", (name,)) if d.key == "algo" else d for d in self.dimensions if self.belongs(d.key, name)
            ]
            found += list(grid(own))
        return found

    def drawn(self, index: int) -> Values:
        """The configuration of an index in a random search."""
        values = draw(self.dimensions, self.settings.search_seed, index)
        return {key: value for key, value in values.items() if self.belongs(key, self.algorithm(values))}

    def run_config(self, values: Values) -> RunConfig:
        """A configuration as the settings of a training run, but for what is custom; raises ConfigError."""
        base = self.bases[self.algorithm(values)]
        merged: dict[str, Any] = {name: getattr(base, name) for name in TRIAL_SETTINGS}
        merged["env_kwargs"] = copy.deepcopy(base.env_kwargs)
        merged["algo"] = {"name": base.algo.name, **base.algo.hyperparameters}
        named = self.custom is None or self.custom.fields is None
        for key, value in values.items():
            if key != "algo" and (named or not key.startswith("algo.")):
                put(merged, key, value)
        return from_dict(merged, RunConfig)

    def compiled_combinations(self, name: str) -> Iterator[Values]:
        """Every combination of an algorithm's values that are compiled in; raises ConfigError where they are too many."""
        axes = []
        for dimension in self.dimensions:
            if dimension.key == "algo" or not _compiled_in(dimension.key, self.custom):
                continue
            if isinstance(dimension, Interval):
                low, high = int(dimension.low), int(dimension.high)
                dimension = Choice(dimension.key, tuple(range(low, min(high, low + MOST_VALUES) + 1)))
            if self.belongs(dimension.key, name):
                axes.append(dimension)
        combinations = math.prod(len(axis.values) for axis in axes)
        if combinations > MOST_VALUES:
            keys = ", ".join(axis.key for axis in axes)
            raise ConfigError(
                f"{keys}: {combinations:,} combinations would each be compiled; {MOST_VALUES:,} are the most"
            )
        yield from grid(axes)

    def identity(self) -> str:
        """What two commands must share to work on the same sweep, as JSON."""
        own = ("search_seed", "halving", "halving_rungs", "pbt", "pbt_rounds", "curve_points")
        trials = {name: self.run_config({"algo": name} if len(self.bases) > 1 else {}).to_dict() for name in self.bases}
        described = {
            "search": self.search,
            **{name: getattr(self.settings, name) for name in own},
            "space": [dataclasses.asdict(dimension) for dimension in self.dimensions],
            "trials": {name: {key: trial[key] for key in TRIAL_SETTINGS} for name, trial in trials.items()},
        }
        if self.custom is not None:
            described["custom"] = [self.custom.description, self.fixed]
        return json.dumps(described, sort_keys=True, default=str)


def parse(argv: Sequence[str]) -> Arguments:
    """A sweep's command line, parsed. Hydra's `choice(...)` refuses null, but `a,b` takes it, so one is read as the other."""
    return read_arguments([_NULL_CHOICE.sub(r"\1=\2", argument) for argument in argv])


_NULL_CHOICE = re.compile(r"^([\w.]+)=choice\((?=null,|.*,null\)$|.*,null,)([^()\[\]{}]+)\)$")


def read_sweep(overrides: Iterable[Override], custom: Custom | None = None) -> SweepPlan:
    """The sweep that is asked for; raises ConfigError at the first setting that cannot be used."""
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a sweep needs the extra sweep, and {missing[0]} is not installed: pip install 'haepo_jax[sweep]'"
        )
    overrides = list(overrides)
    swept = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    _refuse_doubles(swept, overrides)
    numbers: Values = {}
    if custom is not None and custom.fields is not None:
        for override in (override for override in fixed if override.key_or_group.startswith("algo.")):
            field = _find_field(override.key_or_group, "", {}, custom)
            kind, value = field.metadata.get("kind", dict), override.value()
            numbers[field.name] = value if kind is dict else checked_value(override.key_or_group, field, value)
        fixed = [override for override in fixed if not override.key_or_group.startswith("algo.")]
    names = _algorithms(swept, fixed)
    bases = {name: compose([*own_overrides(fixed, name, names), *_named(name)], SweepConfig) for name in names}
    settings = bases[names[0]]
    fields = {f.name: f for f in dataclasses.fields(SweepConfig)}
    dimensions = [_checked_dimension(override, names, fields, custom) for override in swept]
    envs = next((d.values for d in dimensions if d.key == "env" and isinstance(d, Choice)), (settings.env,))
    if not envs[0]:
        raise ConfigError("env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)")
    settings = dataclasses.replace(settings, env=custom.env if custom is not None and custom.env else envs[0])
    bases = {name: dataclasses.replace(base, env=envs[0]) for name, base in bases.items()}
    dimensions.sort(key=lambda dimension: not _compiled_in(dimension.key, custom))
    plan = SweepPlan(settings, tuple(dimensions), bases, custom, numbers)
    _check_search(plan)
    _check_combinations(plan)
    return plan


def _named(name: str) -> list[Override]:
    return list(read_arguments([f"algo={name}"]).overrides)


def _refuse_doubles(swept: Sequence[Override], overrides: Sequence[Override]) -> None:
    for override in swept:
        key = override.key_or_group
        if sum(other.key_or_group == key for other in overrides) > 1:
            raise ConfigError(f"{key} is given twice: a key that is swept takes one list of values")
        check_form(override)


def _algorithms(swept: Sequence[Override], fixed: Sequence[Override]) -> tuple[str, ...]:
    for override in swept:
        if override.key_or_group == "algo":
            names = read_dimension(override)
            if not isinstance(names, Choice) or not all(isinstance(name, str) for name in names.values):
                raise ConfigError(
                    f"{short(override.input_line)}: an algorithm is no number: list names, such as algo=haepo,ppo"
                )
            for name in names.values:
                algorithm_class(name)
            return tuple(dict.fromkeys(names.values))
    return (compose([o for o in fixed if o.key_or_group == "algo"], SweepConfig).algo.name,)


def _checked_dimension(
    override: Override, names: Sequence[str], fields: dict[str, dataclasses.Field[Any]], custom: Custom | None
) -> Dimension:
    """One swept key with every value, or both ends of its interval, held against its range."""
    key = override.key_or_group
    if key == "algo":
        return Choice("algo", tuple(names))
    owner = next((name for name in names if key.removeprefix("algo.") in hyperparameter_fields(name)), names[0])
    field = _find_field(key, owner, fields, custom)
    head, _, rest = key.partition(".")
    if head in fields and not (key in SWEEPABLE or (rest and head in ("algo", "env_kwargs"))):
        raise ConfigError(f"{key} cannot be swept; what can: {', '.join(SWEEPABLE)}, algo.<key> and env_kwargs.<name>")
    kind = field.metadata.get("kind", dict)
    if override.is_interval_sweep() and kind not in (int, float, dict):
        values = ",".join(field.metadata["choices"]) or {bool: "true,false", tuple: "[64,64],[128]"}.get(kind, "a,b")
        raise ConfigError(
            f"{short(override.input_line)}: {rest or key} is no number: list its values, such as {key}={values}"
        )
    dimension = read_dimension(override, integer=kind is int)
    if kind is dict:
        return dimension
    if isinstance(dimension, Interval):
        if dimension.integer and kind is float:
            raise ConfigError(f"{short(override.input_line)}: {rest} is not a count; leave the int out")
        for end in dimension.bounds():
            checked_value(key, field, int(end) if dimension.integer else end)
        return dimension
    checked = [checked_value(key, field, value) for value in dimension.values]
    if key == "env":
        checked = [resolve_env(name) for name in checked]
    return Choice(key, tuple(dict.fromkeys(checked)))


def _fields(algorithm: str, custom: Custom | None) -> Mapping[str, dataclasses.Field[Any]]:
    """The hyperparameters of an algorithm by name; those of a custom one need not say their type and range."""
    return custom.fields if custom is not None and custom.fields is not None else hyperparameter_fields(algorithm)


def _find_field(
    key: str, algorithm: str, fields: Mapping[str, dataclasses.Field[Any]], custom: Custom | None
) -> dataclasses.Field[Any]:
    known = _fields(algorithm, custom) if custom is not None and custom.fields is not None else None
    if known is None or not key.startswith("algo."):
        return find_field(key, algorithm, fields)
    if (name := key.removeprefix("algo.")) not in known:
        raise ConfigError(f"the algorithm has no hyperparameter {short(name)}; it has {', '.join(known)}")
    return known[name]


def _compiled_in(key: str, custom: Custom | None = None) -> bool:
    """Whether two values of a key need two compilations. Of `env_kwargs` only the environment knows."""
    if key.startswith("algo."):
        fields = [_fields(name, custom).get(key.removeprefix("algo.")) for name in declared.ALGORITHMS]
        return any(field is not None and field.metadata.get("static", False) for field in fields)
    return key in ("env", "algo", "total_steps")


def _check_search(plan: SweepPlan) -> None:
    search, settings = plan.search, plan.settings
    if not plan.dimensions:
        raise ConfigError(
            "nothing is swept: give a key several values, such as 'algo.learning_rate=tag(log,interval(1e-4,1e-2))'"
        )
    if search == "grid":
        for dimension in plan.dimensions:
            if isinstance(dimension, Interval):
                key = dimension.key
                raise ConfigError(
                    f"search=grid cannot list the values of {key}=interval(...): use choice or search=random"
                )
        if (size := math.prod(len(d.values) for d in plan.dimensions if isinstance(d, Choice))) > 1_000_000:
            raise ConfigError(f"the grid has {size:,} configurations: use search=random with num_configs=")
    several = next((d for d in plan.dimensions if d.key == "env" and isinstance(d, Choice) and len(d.values) > 1), None)
    if several is not None and search in ("tpe", "cmaes"):
        raise ConfigError(
            f"search={search} compares returns, which differ in scale between environments: sweep one, or use random"
        )
    if search == "cmaes" and sum(isinstance(d, Interval) for d in plan.dimensions) < 2:
        raise ConfigError("search=cmaes needs at least two keys with an interval(...); tpe takes any space")
    if settings.pbt:
        if plan.num_configs < 4:
            raise ConfigError(f"pbt=true needs at least 4 configurations, and there are {plan.num_configs}")
        if not any(key_of_number(dimension, plan.custom) for dimension in plan.dimensions):
            raise ConfigError(
                "pbt=true needs a numeric hyperparameter to perturb, such as algo.learning_rate=interval(...)"
            )


def key_of_number(dimension: Dimension, custom: Custom | None = None) -> str | None:
    """The hyperparameter that a dimension varies without recompiling, such as `learning_rate`; else None."""
    if not dimension.key.startswith("algo.") or _compiled_in(dimension.key, custom) or dimension.bounds() is None:
        return None
    return dimension.key.removeprefix("algo.")


def _check_combinations(plan: SweepPlan) -> None:
    """Checks every combination of values that are compiled in against the rules between settings."""
    for name in plan.bases:
        for combination in plan.compiled_combinations(name):
            try:
                plan.run_config(({"algo": name} if len(plan.bases) > 1 else {}) | combination)
            except ConfigError as error:
                given = " ".join(f"{key}={value_text(value)}" for key, value in combination.items())
                raise ConfigError(
                    f"{error} (in the combination {given})" if len(combination) > 1 else str(error)
                ) from None
    seeds = next((d for d in plan.dimensions if d.key == "seed"), None)
    if seeds is not None and (bounds := seeds.bounds()) is not None and bounds[1] + plan.settings.num_seeds > 2**31:
        raise ConfigError(
            f"seed={bounds[1]:g} with num_seeds={plan.settings.num_seeds} goes past the largest seed, {2**31 - 1}"
        )
