"""From a command line to checked settings.

`read_arguments` parses `key=value` with Hydra's grammar, and `compose` puts them over the defaults with Hydra's compose
API.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from haepo_jax.config import (
    ALGORITHM_NAMES,
    DEFAULT_ALGORITHM,
    ConfigError,
    RunConfig,
    algorithm_class,
    default_of,
    has_hyperparameters,
    hyperparameter_defaults,
    hyperparameter_fields,
)
from haepo_jax.config.values import Settings, checked_value, find_field, from_dict
from haepo_jax.messages import one_line, short

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override


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
    algo = _algorithm_name(overrides) if has_hyperparameters(fields) else None
    for override in overrides:
        _check_form(override)
    lines = [] if algo is None else [f"{_GROUP}={algo}"]
    for override in overrides:
        key = override.key_or_group
        if key != "algo" or algo is None:
            lines.append(_checked_line(override, find_field(key, algo, fields)))
    return from_dict(_compose(lines, schema, algo), schema)


def peek(overrides: Sequence[Override], schema: type, key: str) -> Any:
    """The value that the overrides give one key, before the others are looked at; raises ConfigError."""
    field = next(f for f in dataclasses.fields(schema) if f.name == key)
    value = default_of(field)
    for override in overrides:
        if override.key_or_group == key:
            _refuse_sweep(override)
            value = checked_value(key, field, override.value())
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
            checked_value(key, field, override.value())
        return f"++{text}"
    value = override.value()
    if isinstance(value, str) and "${" in value:
        return text
    checked = checked_value(key, field, value)
    return f"{key}={checked}" if type(checked) is int else text


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
    has_algo = has_hyperparameters(fields)
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
        default = values.get(key, default_of(field))
        default = list(default) if isinstance(default, tuple) else {} if kind is dict else default
        columns.append((key, annotation, dataclasses.field(default_factory=functools.partial(copy.copy, default))))
    if has_algo:
        order = [{_GROUP: DEFAULT_ALGORITHM}, "_self_"]
        columns.append(("algo", Any, MISSING))
        columns.append(("defaults", list[Any], dataclasses.field(default_factory=lambda: order)))
    return dataclasses.make_dataclass(f"{name}_schema", columns)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else type(error).__name__, 200)
