"""Settings: what the command lines accept, checked in full before jax is loaded.

Every command reads its settings in three steps. `read_arguments` parses `key=value` with Hydra's grammar, `compose`
puts them over the defaults with Hydra's compose API and returns a typed, checked dataclass, and whatever is wrong
becomes a `ConfigError` of one line. The hyperparameters come from `haepo_jax.algorithms.hyperparameters`, where each
is declared once. Nothing here imports jax.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from haepo_jax.algorithms import hyperparameters as hp
from haepo_jax.messages import one_line, short

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

DEFAULT_ALGORITHM = "haepo"
ALGORITHM_NAMES = (*hp.ALGORITHMS, *hp.PRESETS)

SHARD_NOTHING = "distributed=true needs shard=environments: training over several hosts shares out environments"


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names it and says what would be right."""


# --- What a command accepts -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AlgoConfig:
    """An algorithm by the name the user gave, which may be a preset's, with all its hyperparameters."""

    name: str
    hyperparameters: dict[str, Any]

    @property
    def class_name(self) -> str:
        """The name of the class in `haepo_jax`: `EpisodicHAEPO` for `haepo_episodic` and for `haepo_paper`."""
        return algorithm_class(self.name).__name__


def setting(default: Any, kind: type, doc: str, **keywords: Any) -> Any:
    """A field of a command's settings: described and checked just as a hyperparameter is."""
    return hp.static(default, kind, doc, **keywords)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one training run (`python -m haepo_jax.train`)."""

    env: str = setting("", str, "the environment, such as CartPole-v1, brax/ant or haepo/bandit (required)")
    algo: AlgoConfig = setting(None, AlgoConfig, f"the algorithm or preset: {', '.join(ALGORITHM_NAMES)}")
    seed: int = setting(0, int, "the first seed", within=hp.Range(0, 2**31 - 1))
    num_seeds: int = setting(1, int, "seeds trained side by side in one compiled call", within=hp.Range(1, 2**31 - 1))
    total_steps: int = dataclasses.field(
        default=hp.Common.total_steps, metadata=hp.Common.__dataclass_fields__["total_steps"].metadata
    )
    final_eval_episodes: int = setting(128, int, "episodes per seed behind the final return", within=hp.COUNT)
    env_kwargs: dict[str, Any] = setting(None, dict, "passed to the environment: env_kwargs.<name>=<value>")
    init_from: str | None = setting(
        None, str, "start from the policy of this run (the first of its seeds): its directory", optional=True
    )
    run_dir: str | None = setting(
        None, str, "where the results go; null: runs/<env>-<algo>-<seed>-<time>", optional=True
    )
    resume: str = setting(
        "false",
        str,
        "go on with the run in run_dir from its newest intact checkpoint; auto: or start",
        choices=("false", "true", "auto"),
    )
    checkpoint_minutes: float | None = hp.leaf(
        5.0, "minutes from one checkpoint to the next; null: not by time", within=hp.POSITIVE, optional=True
    )
    checkpoint_steps: int | None = setting(
        None,
        int,
        "live steps per seed from one checkpoint to the next; null: not by steps",
        within=hp.Range(1, 2**62),
        optional=True,
    )
    keep_checkpoints: int = setting(
        3, int, "how many of the last checkpoints stay, beside the best by return", within=hp.COUNT
    )
    shard: str = setting(
        "none",
        str,
        "what is shared out over devices: each update's environments, of one run over all devices, or nothing",
        choices=("none", "environments"),
    )
    distributed: bool = setting(
        False, bool, "several hosts: each process of the cluster's job has its share of the run (with shard=)"
    )
    tensorboard: bool = setting(True, bool, "write TensorBoard events")
    wandb: bool = setting(False, bool, "log to Weights & Biases (needs the extra `wandb`)")
    completions: int = setting(
        2, int, "token tasks: prompts whose completions are logged at every row; 0: none", within=hp.Range(0, 1000)
    )
    dry_run: bool = setting(False, bool, "check everything, then stop before training")

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if not self.env:
            raise ConfigError(
                "env= is missing: name an environment, for example env=CartPole-v1 (--list-envs lists them)"
            )
        if self.seed + self.num_seeds > 2**31:
            raise ConfigError(
                f"seed={self.seed} with num_seeds={self.num_seeds} goes past the largest seed, {2**31 - 1}"
            )
        if self.distributed and self.shard == "none":
            raise ConfigError(SHARD_NOTHING)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as `config.yaml` holds them and `from_dict` reads them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        algo = {"name": self.algo.name, **self.algo.hyperparameters}
        values["algo"] = {k: list(v) if isinstance(v, tuple) else v for k, v in algo.items()}
        return values


Settings = TypeVar("Settings")


def algorithm_class(name: str) -> type[hp.Common]:
    """The hyperparameters' dataclass of an algorithm or preset; raises ConfigError with a near match."""
    if name in hp.PRESETS:
        name = hp.PRESETS[name][0]
    if name not in hp.ALGORITHMS:
        near = _did_you_mean(name, ALGORITHM_NAMES)
        raise ConfigError(f"unknown algorithm {short(name)}{near or '; there are: ' + ', '.join(ALGORITHM_NAMES)}")
    return hp.ALGORITHMS[name]


def hyperparameter_fields(name: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields that `algo.<field>=` sets for an algorithm or preset; `total_steps` is a setting of the run."""
    fields = dataclasses.fields(algorithm_class(name))
    return {f.name: f for f in fields if "static" in f.metadata and f.name != "total_steps"}


def hyperparameter_defaults(name: str) -> dict[str, Any]:
    """The defaults of an algorithm or preset."""
    defaults = {key: f.default for key, f in hyperparameter_fields(name).items()}
    return defaults | (hp.PRESETS[name][1] if name in hp.PRESETS else {})


# --- From arguments to settings ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line taken apart: `overrides` in the order given, and the options among them."""

    overrides: tuple[Override, ...]
    help: bool = False
    show_config: bool = False
    list_envs: bool = False


def read_arguments(argv: Sequence[str]) -> Arguments:
    """Parses a command line with Hydra's grammar; raises ConfigError. Sweeps are left for the command to judge."""
    options: dict[str, bool] = {}
    overrides = []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("--help", "-h"):
            options["help"] = True
        elif argument == "--list-envs":
            options["list_envs"] = True
        elif argument in ("--cfg", "-c") or argument.startswith("--cfg="):
            what = argument.partition("=")[2] or next(arguments, "")
            if what != "job":
                raise ConfigError(f"--cfg takes the word job, not {what!r}")
            options["show_config"] = True
        elif argument.startswith("-"):
            name = argument.lstrip("-").partition("=")[0]
            raise ConfigError(
                f"unknown option {short(argument)}; settings are written {name or 'key'}=value (see --help)"
            )
        else:
            overrides.append(_parse(argument))
    return Arguments(tuple(overrides), **options)


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(argument: str) -> Override:
    if "=" not in argument:
        raise ConfigError(f"cannot read {short(argument)}: settings are written key=value")
    try:
        argument.encode()
        override: Override = _parser().parse_override(argument)
    except RecursionError:
        raise ConfigError(f"cannot read {short(argument)}: nested too deeply") from None
    except Exception as error:  # Hydra's grammar raises its own errors, ValueError, and whatever its functions raise
        reason = "not valid UTF-8" if isinstance(error, UnicodeEncodeError) else _first_line(error)
        key = argument.partition("=")[0]
        quote = f"; a value with special characters must be quoted: '{key}=\"...\"'" if key.isascii() else ""
        raise ConfigError(f"cannot read {short(argument)}: {reason}{quote}") from None
    return override


def choices(override: Override) -> list[str]:
    """The values of `key=a,b`, or the only one of `key=a`, as text; raises ConfigError for what lists no names."""
    value: Any = override.value()
    if not override.is_sweep_override():
        return [str(value)]
    if not hasattr(value, "list"):  # a range, which may be endless, an interval or a glob
        raise ConfigError(f"cannot use {short(_text(override))}: write {override.key_or_group}=a,b")
    return [str(getattr(item, "text", item)) for item in value.list]


def compose(overrides: Iterable[Override], schema: type[Settings]) -> Settings:
    """The settings that the overrides make of the schema's defaults; raises ConfigError at the first that is wrong.

    `schema` is a dataclass of `setting` fields: `RunConfig`, or the settings of another command. A field of kind `list`
    accepts `key=a,b` beside `key=[a,b]`; any other list of values is refused, because only a sweep or a comparison
    can use one: such a command takes its sweeps out of the overrides first.
    """
    overrides = list(overrides)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    algo = _algorithm_name(overrides) if _has_hyperparameters(fields) else None
    for override in overrides:
        _check_form(override)
    lines = [] if algo is None else [f"{_GROUP}={algo}"]
    for override in overrides:
        key = override.key_or_group
        if key != "algo" or algo is None:
            lines.append(_checked_line(override, find_field(key, algo, fields)))
    return from_dict(_compose(lines, schema, algo), schema)


def _has_hyperparameters(fields: Mapping[str, dataclasses.Field[Any]]) -> bool:
    """Whether `algo=` names an algorithm of this library, whose hyperparameters are `algo.<name>`."""
    return "algo" in fields and fields["algo"].metadata["kind"] is AlgoConfig


def peek(overrides: Sequence[Override], schema: type, key: str) -> Any:
    """The value that the overrides give one key, before the others are looked at; raises ConfigError."""
    field = next(f for f in dataclasses.fields(schema) if f.name == key)
    value = _default(field)
    for override in overrides:
        if override.key_or_group == key:
            _refuse_sweep(override)
            value = _checked(key, field, override.value())
    return value


def changed(settings: RunConfig, overrides: Sequence[Override]) -> RunConfig:
    """A run's settings with those that are given changed, all others as they are; raises ConfigError.

    Another algorithm comes with its own defaults. Values that refer to others (`${...}`) are not resolved here.
    """
    fields = {f.name: f for f in dataclasses.fields(RunConfig)}
    algo = _algorithm_name([o for o in overrides if o.key_or_group == "algo"], settings.algo.name)
    values: dict[str, Any] = copy.deepcopy(settings.to_dict())
    if algo != settings.algo.name:
        values["algo"] = {"name": algo}
    for override in overrides:
        _check_form(override)
        _refuse_sweep(override)
        key = override.key_or_group
        if key == "algo":
            continue
        find_field(key, algo, fields)
        node = values
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            raise ConfigError(f"cannot use {short(_text(override))}: {'.'.join(parents)} is no group of settings")
        node[leaf] = override.value()
    return from_dict(values, RunConfig)


def _check_form(override: Override) -> None:
    text = _text(override)
    if text[0] in "+~":
        raise ConfigError(f"cannot use {short(text)}: write key=value, without {text[0]!r}")
    if override.package is not None:
        raise ConfigError(f"cannot use {short(text)}: a key has no '@'")


def from_dict(values: Mapping[str, Any], schema: type[Settings]) -> Settings:
    """Settings from plain values (a composed config, or a run's `config.yaml`); raises ConfigError."""
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {str(key)!r}{_did_you_mean(str(key), fields)}")
    checked: dict[str, Any] = {}
    for key, field in fields.items():
        value = values.get(key, _default(field))
        checked[key] = _algo_from_dict(value) if field.metadata["kind"] is AlgoConfig else _checked(key, field, value)
    if _has_hyperparameters(fields) and "total_steps" in fields:
        algo = checked["algo"]
        try:
            algorithm_class(algo.name)(total_steps=checked["total_steps"], **algo.hyperparameters).check()
        except hp.HyperparameterError as error:
            raise ConfigError(f"algo.{error}") from None
    if "env" in fields and checked["env"]:
        checked["env"] = _resolve_env(checked["env"])
    settings = schema(**checked)
    if hasattr(settings, "check"):
        settings.check()
    return settings


def _algo_from_dict(values: Any) -> AlgoConfig:
    if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
        raise ConfigError("algo must have a name and hyperparameters")
    name = values["name"]
    fields = hyperparameter_fields(name)
    given = {key: value for key, value in values.items() if key != "name"}
    for key in given:
        if key not in fields:
            raise _unknown_key(f"algo.{key}", name, {})
    merged = hyperparameter_defaults(name) | given
    return AlgoConfig(name, {key: _checked(f"algo.{key}", fields[key], value) for key, value in merged.items()})


def find_field(key: str, algo: str | None, fields: Mapping[str, dataclasses.Field[Any]]) -> dataclasses.Field[Any]:
    """The field that a key sets in a command with these fields and this algorithm; raises ConfigError."""
    head, _, rest = key.partition(".")
    if head == "algo" and algo is not None:
        if rest in (known := hyperparameter_fields(algo)):
            return known[rest]
        raise _unknown_key(key, algo, fields)
    if head in fields and (not rest or fields[head].metadata["kind"] is dict):
        return fields[head]
    raise _unknown_key(key, algo, fields)


def _unknown_key(key: str, algo: str | None, fields: Mapping[str, Any]) -> ConfigError:
    name = key.removeprefix("algo.")
    if key == "algo.total_steps":
        return ConfigError("total_steps is a setting of the run: write total_steps=, not algo.total_steps=")
    if key == "algo.name":
        return ConfigError("write algo=<name>, not algo.name=<name>")
    known = list(fields)
    if algo is not None:
        known += [f"algo.{field}" for field in hyperparameter_fields(algo)]
        if f"algo.{name}" not in known:
            owners = [owner for owner in hp.ALGORITHMS if name in hyperparameter_fields(owner)]
            if owners:
                return ConfigError(
                    f"unknown key {key!r}: algo={algo} has no {name} (algo={', algo='.join(owners)} has)"
                )
    for exact in (f"algo.{key}", name):
        if exact in known:
            return ConfigError(f"unknown key {key!r}; did you mean {exact!r}?")
    # A hyperparameter misspelt without its prefix is nearest to the hyperparameter, so names are compared bare.
    bare = {full.removeprefix("algo."): full for full in reversed(known)}
    near = difflib.get_close_matches(name, bare, n=1) if len(name) < 100 else []
    hint = f"; did you mean {bare[near[0]]!r}?" if near else " (see --help)"
    return ConfigError(f"unknown key {short(key)}{hint}")


def _algorithm_name(overrides: list[Override], name: str = DEFAULT_ALGORITHM) -> str:
    for override in overrides:
        if override.key_or_group == "algo":
            _refuse_sweep(override)
            value = override.value()
            if not isinstance(value, str) or not value:
                raise ConfigError(f"algo={short(value)} must be the name of an algorithm: {', '.join(ALGORITHM_NAMES)}")
            algorithm_class(value)
            name = value
    return name


def _text(override: Override) -> str:
    """The argument as it was given."""
    return override.input_line or ""


def _refuse_sweep(override: Override) -> None:
    if override.is_sweep_override():
        raise ConfigError(
            f"{short(_text(override))}: several values belong to haepo_jax.compare or haepo_jax.sweep; "
            "here a key takes one (a pair or list is written [a,b])"
        )


def _checked_line(override: Override, field: dataclasses.Field[Any]) -> str:
    """The override as Hydra composes it, its value checked where it is known already (not an interpolation's)."""
    key, kind, text = override.key_or_group, field.metadata["kind"], _text(override)
    if kind is list and override.is_sweep_override():
        names = text.partition("=")[2]
        if re.match(r"\s*\w+\(", names):
            raise ConfigError(f"cannot use {short(text)}: write {key}=a,b")
        return f"{key}=[{names}]"
    _refuse_sweep(override)
    if kind is dict:
        # These keys are the environment's, so the schema cannot know them: `++` lets Hydra add them.
        if not key.partition(".")[2]:
            _checked(key, field, override.value())
        return f"++{text}"
    value = override.value()
    if isinstance(value, str) and "${" in value:
        return text
    checked = _checked(key, field, value)
    return f"{key}={checked}" if type(checked) is int else text


def checked_value(key: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """One value of a key, held against its field's type and range, as the field holds it; raises ConfigError."""
    return _checked(key, field, value)


def _checked(key: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The value as the field holds it; raises ConfigError."""
    kind = field.metadata["kind"]
    if kind is dict:
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{key}={short(value)} must be names and values: {key}.<name>=<value>")
        if _is_endless(value):
            raise ConfigError(f"{key}={short(value)} holds too many values, or too deep a nesting")
        return dict(value)
    if kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise ConfigError(f"{key}={short(value)} must be one or more names: {key}=a,b")
        return tuple(value)
    if value == "" and field.default != "":
        raise ConfigError(f"{key}= is empty")
    try:
        value = _read(field, value)
        hp.check_value(field, value)
        value = _hold(field, value)
    except hp.HyperparameterError as error:
        # check_value names the bare field; the key says where it stands on the command line.
        raise ConfigError(key.removesuffix(field.name) + str(error)) from None
    return value


def _is_endless(value: Any) -> bool:
    """Whether a value is nested a hundred deep or has a level of 100,000 values: a few lines of YAML, whose lists may
    hold one another and themselves, are enough for both."""
    level = [value]
    for _ in range(100):
        groups = (node.values() if isinstance(node, Mapping) else node for node in level if _is_group(node))
        level = list(itertools.islice(itertools.chain.from_iterable(groups), 100_000))
        if not level:
            return False
        if len(level) == 100_000:
            break
    return True


def _is_group(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _read(field: dataclasses.Field[Any], value: Any) -> Any:
    """1e6 is an integer where one is wanted, 2024 a name, and true a word where that is one of the choices."""
    kind = field.metadata["kind"]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1024:
        return str(value)
    if kind is str and isinstance(value, str | bool) and str(value).lower() in field.metadata["choices"]:
        return str(value).lower()
    return value


def _hold(field: dataclasses.Field[Any], value: Any) -> Any:
    """Integers become numbers where a number is wanted, and lists tuples."""
    if isinstance(value, list | tuple):
        return tuple(_hold(field, item) for item in value)
    if field.metadata["kind"] is float and isinstance(value, int):
        return float(value)
    return value


def _compose(lines: list[str], schema: type, algo: str | None) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize
    from omegaconf import OmegaConf

    _register(schema)
    try:
        with warnings.catch_warnings(), initialize(version_base="1.3", config_path=None):
            warnings.simplefilter("ignore")  # the resolver oc.deprecated warns, in two lines
            config = hydra_compose(schema.__name__, overrides=lines)
            values = OmegaConf.to_container(config, resolve=True)
    except Exception as error:  # Hydra, OmegaConf and their resolvers share no base class
        raise ConfigError(_first_line(error.__cause__ or error)) from None
    return cast(dict[str, Any], values)


_GROUP = "algorithms"
"""Hydra's name for the group of algorithms, which fills the key `algo`. Groups belong to the process, not to a schema: by
the name of the key, this one would be taken for a plain setting `algo` of another command."""


@functools.cache
def _register(schema: type) -> None:
    """Gives Hydra the typed schema of a command, with the algorithms as a config group."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    fields = {f.name: f for f in dataclasses.fields(schema)}
    has_algo = _has_hyperparameters(fields)
    node = _structured(schema.__name__, {k: f for k, f in fields.items() if not has_algo or k != "algo"}, {}, has_algo)
    store.store(name=schema.__name__, node=node)
    if has_algo:
        for name in ALGORITHM_NAMES:
            group = _structured(
                name, hyperparameter_fields(name), hyperparameter_defaults(name) | {"name": name}, False
            )
            store.store(group=_GROUP, package="algo", name=name, node=group)


def _structured(
    name: str, fields: Mapping[str, dataclasses.Field[Any]], values: dict[str, Any], has_algo: bool
) -> type:
    """A dataclass that OmegaConf understands, with its types where OmegaConf has them."""
    from omegaconf import MISSING

    columns: list[Any] = []
    if "name" in values:
        columns.append(("name", str, values["name"]))
    for key, field in fields.items():
        kind = field.metadata["kind"]
        annotation: Any = kind if kind in (int, bool, str) else dict[str, Any] if kind is dict else Any
        if kind in (int, bool, str) and field.metadata["optional"]:
            annotation = annotation | None
        default = values.get(key, _default(field))
        default = list(default) if isinstance(default, tuple) else {} if kind is dict else default
        columns.append((key, annotation, dataclasses.field(default_factory=functools.partial(copy.copy, default))))
    if has_algo:
        order = [{_GROUP: DEFAULT_ALGORITHM}, "_self_"]
        columns.append(("algo", Any, MISSING))
        columns.append(("defaults", list[Any], dataclasses.field(default_factory=lambda: order)))
    return dataclasses.make_dataclass(f"{name}_schema", columns)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.metadata["kind"] is AlgoConfig:
        return {"name": DEFAULT_ALGORITHM}
    return {} if field.metadata["kind"] is dict else field.default


def _resolve_env(name: str) -> str:
    from haepo_jax.envs import resolve_name

    try:
        return resolve_name(name)
    except ValueError as error:
        raise ConfigError(one_line(str(error))) from None


# --- One-line messages ------------------------------------------------------------------------------------------------


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 200)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=1) if len(name) < 100 else []
    return f"; did you mean {near[0]!r}?" if near else ""


# --- Help -------------------------------------------------------------------------------------------------------------


def settings_table(
    fields: Iterable[dataclasses.Field[Any]], prefix: str = "", defaults: Mapping[str, Any] | None = None
) -> str:
    """A help table, one line per field: the key, its default, what it may be and what it means."""
    rows = []
    for field in fields:
        meta = field.metadata
        default = _yaml_text((defaults or {}).get(field.name, field.default), meta["kind"])
        allowed = " | ".join(meta.get("choices") or ()) or _range_text(meta)
        rows.append((f"{prefix}{field.name}", default, f"{meta['doc']} ({allowed})" if allowed else meta["doc"]))
    wide = max(len(key) for key, _, _ in rows)
    value_width = min(12, max(len(value) for _, value, _ in rows))
    return "\n".join(f"  {key:<{wide}}  {value:<{value_width}}  {text}".rstrip() for key, value, text in rows)


def _range_text(meta: Mapping[str, Any]) -> str:
    within = meta.get("within")
    if within is None:
        return ""
    integer = meta["kind"] is int
    text = f">= {within.low}" if integer and within.high > 2**30 else str(within)
    return f"{text} or [start, end]" if meta.get("scheduled") else text


def _yaml_text(value: Any, kind: type) -> str:
    if kind in (AlgoConfig, dict) or value == "":
        return DEFAULT_ALGORITHM if kind is AlgoConfig else ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def algorithm_table() -> str:
    """A help table of the algorithms and presets."""
    rows = [(name, (cls.__doc__ or "").strip().splitlines()[0]) for name, cls in hp.ALGORITHMS.items()]
    for name, (base, changes) in hp.PRESETS.items():
        rows.append((name, f"{base} with " + " ".join(f"{k}={_yaml_text(v, type(v))}" for k, v in changes.items())))
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{wide}}  {text}" for name, text in rows)


def help_text(text: str, schema: type, algo: str) -> str:
    """A command's help with the settings of its schema, the algorithms, and the hyperparameters of one of them."""
    fields = hyperparameter_fields(algo)
    return text.format(
        settings=settings_table(dataclasses.fields(schema)),
        algorithms=algorithm_table(),
        algo=algo,
        hyperparameters=settings_table(fields.values(), "algo.", hyperparameter_defaults(algo)),
    )


def requested_algorithm(argv: Sequence[str]) -> str:
    """The algorithm whose hyperparameters a help text should show; raises ConfigError where it is unknown."""
    names = [argument.partition("=")[2] for argument in argv if argument.startswith("algo=")]
    name = names[-1] if names else DEFAULT_ALGORITHM
    algorithm_class(name)
    return name
