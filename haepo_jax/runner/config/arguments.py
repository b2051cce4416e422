"""From a command line to checked settings.

`read_arguments` parses `key=value` with Hydra's grammar, and `compose` puts them over the defaults.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import shlex
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from haepo_jax.messages import first_line, one_line, short
from haepo_jax.runner.config import (
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
from haepo_jax.runner.config.values import Settings, checked_value, find_field, from_dict, value_text

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NOT_FROM_FILE = ("run_dir", "resume", "distributed", "dry_run")
"""Settings of one start of the command, which another does not take over from its `config.yaml`."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line taken apart: `overrides` in the order given, and the options among them.

    Attributes:
      file: the name of that of `--config`.
      settings: in the file, to be taken before the overrides; None: there is no file.
    """

    overrides: tuple[Override, ...]
    file: str = ""
    settings: dict[str, Any] | None = None
    show_config: bool = False
    list_envs: bool = False


def read_arguments(argv: Sequence[str], takes: Collection[str] = (), positional: str | None = None) -> Arguments:
    """Parses a command line with Hydra's grammar; raises ConfigError.

    Args:
      argv: the arguments. A sweep such as `key=a,b` is kept for the command to use or refuse.
      takes: those of the options `--cfg` and `--config` that the command has.
      positional: the key whose value may be given without `key=`: a path, or several of them for a list.
    """
    options: dict[str, Any] = {}
    overrides = []
    if positional is not None:
        paths = [argument for argument in argv if _is_path(argument)]
        argv = [argument for argument in argv if argument not in paths]
        if paths:
            overrides.append(_parse(f"{positional}={value_text(paths[0] if len(paths) == 1 else paths)}"))
    arguments = iter(argv)
    for argument in arguments:
        option, _, value = argument.partition("=")
        option = "--cfg" if option == "-c" else option
        if argument == "--list-envs":
            options["list_envs"] = True
        elif argument in ("-m", "--multirun"):
            others = shlex.join(["python", "-m", "haepo_jax.sweep", *(a for a in argv if a != argument)])
            raise ConfigError(f"{argument} is an option of Hydra; to train several configurations: {others}")
        elif option in ("--cfg", "--config") and option not in takes:
            raise ConfigError(f"{option} belongs to haepo_jax.train")
        elif option == "--cfg":
            if (what := value or next(arguments, "")) != "job":
                raise ConfigError(f"{option} takes the word job, not {what!r}")
            options["show_config"] = True
        elif option == "--config":
            options["file"] = value or next(arguments, "")
            options["settings"] = read_settings(options["file"])
        elif argument.startswith("-"):
            name = option.lstrip("-")
            raise ConfigError(
                f"unknown option {short(argument)}; settings are written {name or 'key'}=value (see --help)"
            )
        else:
            overrides.append(_parse(argument))
    return Arguments(tuple(overrides), **options)


def _is_path(argument: str) -> bool:
    """Whether an argument is a path and no setting or option; a directory may have any name."""
    return os.path.isdir(argument) or not (argument.startswith(("-", "~")) or "=" in argument or not argument)


def read_settings(name: str) -> dict[str, Any]:
    """The settings in a file of YAML, such as the `config.yaml` that a run leaves, by key and not checked; what belongs to
    that run is left out. Raises ConfigError, in one line, where the file cannot be read or holds no settings."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    # YAML 1.1 takes 1e-3 for a word: its numbers have a point.
    exponent = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+0123456789"))
    place = f"--config {short(name)}"
    if not name:
        raise ConfigError("--config needs the name of a file")
    try:
        values = yaml.load(Path(name).read_text(encoding="utf-8"), Loader)
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{place} is not YAML: {one_line(str(error), 160)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{place} holds no settings: it needs lines such as env: CartPole-v1")
    if "objects" in values:
        raise ConfigError(f"{place} belongs to a run of custom objects, which cannot be built from it")
    if isinstance(values.get("algo"), str):
        values["algo"] = {"name": values["algo"]}
    return {key: value for key, value in values.items() if key not in NOT_FROM_FILE}


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
        reason = "not valid UTF-8" if isinstance(error, UnicodeEncodeError) else first_line(error)
        key, _, value = argument.partition("=")
        hint = f"; a value with special characters must be quoted: '{key}=\"...\"'" if key.isascii() else ""
        if "NoneType" in reason and (listed := re.fullmatch(r"choice\((.*)\)", value)):
            reason, hint = "choice() takes no null", f"; write {key}={short(listed[1])[1:-1]}"
        elif "while evaluating" in reason:  # it was read as a function, and that is what failed
            hint = ""
        raise ConfigError(f"cannot read {short(argument)}: {reason}{hint}") from None
    return override


def choices(override: Override) -> list[str]:
    """The values of `key=a,b` as text; raises ConfigError for what lists no names."""
    value: Any = override.value()
    if not hasattr(value, "list"):  # a range, which may be endless, an interval or a glob
        raise ConfigError(f"cannot use {short(_text(override))}: write {override.key_or_group}=a,b")
    return [str(getattr(item, "text", item)) for item in value.list]


def compose(
    overrides: Iterable[Override],
    schema: type[Settings],
    settings: Mapping[str, Any] | None = None,
    place: str = "",
) -> Settings:
    """The settings that the overrides make of the schema's defaults; raises ConfigError at the first that is wrong.

    Args:
      overrides: a value may refer to others, as in `run_dir=runs/${env}`, where there are no `settings`: what stands in a
        file is never looked up. A field of kind `list` accepts `key=a,b` beside `key=[a,b]`; any other list of values is
        refused, because only a sweep or a comparison can use one: such a command takes its sweeps out first.
      schema: a dataclass of `setting` fields: `RunConfig`, or the settings of another command.
      settings: some that take the defaults' place, as `to_dict` gives them; another algorithm than theirs comes with its
        own defaults.
      place: of the settings, with which the message begins where it is not the overrides that are wrong.
    """
    overrides = list(overrides)
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    values: dict[str, Any] = copy.deepcopy(dict(settings or {}))
    algo: str | None = None
    if has_hyperparameters(fields):
        own = values.setdefault("algo", {})
        before = own.setdefault("name", DEFAULT_ALGORITHM) if isinstance(own, dict) else DEFAULT_ALGORITHM
        if not isinstance(before, str):
            raise ConfigError(f"{place}algo.name={short(before)} must be the name of an algorithm")
        algo = _algorithm_name(overrides, before)
        if algo != before:
            values["algo"] = {"name": algo}
    for override in overrides:
        check_form(override)
    for override in overrides:
        if override.key_or_group != "algo" or algo is None:
            put(values, override.key_or_group, _read(override, find_field(override.key_or_group, algo, fields)))
    if settings is None and any("${" in _text(override) for override in overrides):
        defaults = {key: default_of(field) for key, field in fields.items()}
        if algo is not None:
            values["algo"] = hyperparameter_defaults(algo) | values["algo"]
        values = _resolved(defaults | values)
    try:
        return from_dict(values, schema)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def peek(overrides: Sequence[Override], schema: type, key: str) -> Any:
    """The value that the overrides give one key, before the others are looked at; raises ConfigError."""
    field = next(f for f in dataclasses.fields(schema) if f.name == key)
    value = default_of(field)
    for override in overrides:
        if override.key_or_group == key:
            _refuse_sweep(override)
            value = checked_value(key, field, override.value())
    return value


def own_overrides(overrides: Iterable[Override], algo: str, algos: Collection[str]) -> list[Override]:
    """Those for one of several algorithms: hyperparameters that only another one has are left out."""
    own = []
    for override in overrides:
        head, _, name = override.key_or_group.partition(".")
        having = [other for other in algos if name in hyperparameter_fields(other)]
        if head != "algo" or not having or algo in having:
            own.append(override)
    return own


def check_form(override: Override) -> None:
    """Raises ConfigError for what is more than `key=value` in Hydra's grammar."""
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


def _read(override: Override, field: dataclasses.Field[Any]) -> Any:
    """The value of an override, checked where it is known already: not the environment's own, nor an interpolation's."""
    if field.metadata["kind"] is list and override.is_sweep_override():
        return choices(override)
    _refuse_sweep(override)
    key, value = override.key_or_group, override.value()
    foreign = field.metadata["kind"] is dict and "." in key
    if not foreign and not (isinstance(value, str) and "${" in value):
        checked_value(key, field, value)
    return value


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value that a key such as `env_kwargs.gravity` names; raises ConfigError."""
    node: Any = values
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"cannot set {short(key)}: {'.'.join(parents)} is no group of settings")
    node[leaf] = value


def _resolved(values: dict[str, Any]) -> dict[str, Any]:
    """The values with those that others refer to in their places."""
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    setup_globals()  # Hydra's own resolvers
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the resolver oc.deprecated warns, in two lines
            return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(values), resolve=True))
    except Exception as error:  # OmegaConf and its resolvers share no base class
        raise ConfigError(first_line(error.__cause__ or error)) from None


def command_of(config: RunConfig) -> list[str]:
    """The arguments of `haepo_jax.train` that make this run: whatever differs from the defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    values: dict[str, Any] = {key: getattr(config, key) for key in defaults if key not in ("env", "algo", "env_kwargs")}
    changed = {key: value for key, value in values.items() if value != defaults[key]}
    usual = hyperparameter_defaults(config.algo.name)
    changed |= {f"algo.{k}": v for k, v in config.algo.hyperparameters.items() if v != usual[k]}
    changed |= {f"env_kwargs.{key}": value for key, value in config.env_kwargs.items()}
    return [f"env={config.env}", f"algo={config.algo.name}", *(f"{k}={value_text(v)}" for k, v in changed.items())]
