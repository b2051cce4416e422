"""From a command line to checked settings.

`read_arguments` parses `key=value` with Hydra's grammar, and `compose` puts them over the defaults.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from haepo_jax.messages import first_line, one_line, short
from haepo_jax.runner.config import (
    DEFAULT_ALGORITHM,
    AlgoConfig,
    ConfigError,
    RunConfig,
    algorithm_class,
    hyperparameter_defaults,
    hyperparameter_fields,
)
from haepo_jax.runner.config.values import Settings, checked_value, find_field, from_dict, value_text

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

NOT_FROM_FILE = ("run_dir", "resume", "dry_run")
"""Settings of one invocation, which another does not take from its `config.yaml`."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A command line, parsed.

    Attributes:
      overrides: the settings, in the order given.
      file: the name of the file given with `--config`.
      settings: those in that file, which the overrides change; None without a file.
    """

    overrides: tuple[Override, ...]
    file: str = ""
    settings: dict[str, Any] | None = None
    show_config: bool = False


def read_arguments(argv: Sequence[str], takes: Collection[str] = (), positional: str | None = None) -> Arguments:
    """Parses a command line with Hydra's grammar; raises ConfigError.

    Args:
      argv: the arguments. A sweep such as `key=a,b` is kept for the command to use or refuse.
      takes: those of the options `--cfg` and `--config` that the command has.
      positional: the key whose value may be given without `key=`: a path, or several of them for a list.
    """
    options: dict[str, Any] = {}
    overrides = []
    paths = [argument for argument in argv if positional and _is_path(argument)]
    if paths:
        overrides.append(_parse(f"{positional}={value_text(paths[0] if len(paths) == 1 else paths)}"))
    arguments = iter([argument for argument in argv if argument not in paths])
    for argument in arguments:
        option, _, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(_parse(argument))
        elif option not in takes:
            key = option.lstrip("-") or "key"
            hint = f"settings are written {key}=value (see --help)"
            if key in ("m", "multirun"):
                hint = "python -m haepo_jax.sweep tries several values, num_seeds=5 trains several seeds"
            raise ConfigError(f"unknown option {short(argument)}; {hint}")
        else:
            value = value or next(arguments, "")
            if option == "--config":
                options |= {"file": value, "settings": read_settings(value)}
            elif value == "job":
                options["show_config"] = True
            else:
                raise ConfigError(f"{option} takes the word job, not {value!r}")
    return Arguments(tuple(overrides), **options)


def _is_path(argument: str) -> bool:
    """Whether an argument is a path and no setting or option; a directory may have any name."""
    return os.path.isdir(argument) or not (argument.startswith(("-", "~")) or "=" in argument or not argument)


def read_settings(name: str) -> dict[str, Any]:
    """The settings in a YAML file, such as a run's `config.yaml` without what belongs to that run alone; not checked, but
    `algo` has a name. Raises ConfigError where the file cannot be read or holds no settings."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    place = f"--config {short(name)}"
    if not name:
        raise ConfigError("--config needs the name of a file")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(name))
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{place} is not YAML: {one_line(str(error), 160)}") from None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{place} holds no settings: it needs lines such as env: CartPole-v1")
    if "objects" in values:
        raise ConfigError(f"{place} belongs to a run of custom objects, which cannot be built from it")
    algo = values.get("algo", {})
    algo = {"name": algo} if isinstance(algo, str) else algo
    if not isinstance(algo, dict) or not isinstance(algo.setdefault("name", DEFAULT_ALGORITHM), str):
        raise ConfigError(f"{place}: algo={short(algo)} must be an algorithm's name, or its name and hyperparameters")
    return {key: value for key, value in values.items() if key not in NOT_FROM_FILE} | {"algo": algo}


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _parse(argument: str) -> Override:
    place = f"cannot read {short(argument)}"
    if "=" not in argument:
        raise ConfigError(f"{place}: settings are written key=value")
    try:
        argument.encode()
        return _parser().parse_override(argument)
    except Exception as error:  # Hydra's grammar raises its own errors, ValueError, and whatever its functions raise
        key, reason = argument.partition("=")[0], first_line(error)
        if key.isascii() and "while evaluating" not in reason:  # else it was read as a function, and that failed
            reason += f"; a value with special characters must be quoted: '{key}=\"...\"'"
        raise ConfigError(f"{place}: {reason}") from None


def choices(override: Override) -> list[str]:
    """The values of `key=a,b` as text; raises ConfigError for what lists no names."""
    value: Any = override.value()
    if not hasattr(value, "list"):  # a range, which may be endless, an interval or a glob
        raise ConfigError(f"cannot use {short(override.input_line)}: write {override.key_or_group}=a,b")
    return [str(getattr(item, "text", item)) for item in value.list]


def compose(
    overrides: Sequence[Override],
    schema: type[Settings],
    settings: Mapping[str, Any] | None = None,
    place: str = "",
) -> Settings:
    """The settings that overrides make of a schema's defaults; raises ConfigError at the first that is wrong.

    Args:
      overrides: a field of kind `list` accepts `key=a,b` beside `key=[a,b]`. Any other list of values is refused: a sweep
        or a comparison, which can use one, takes it out first.
      schema: a dataclass of `setting` fields: `RunConfig`, or the settings of another command.
      settings: values that replace the defaults, as `to_dict` gives them; another algorithm than theirs comes with its
        own defaults.
      place: where `settings` are from, with which a message about them begins.
    """
    fields = {f.name: f for f in dataclasses.fields(schema)}  # type: ignore[arg-type]
    values: dict[str, Any] = copy.deepcopy(dict(settings or {}))
    algo: str | None = None
    if "algo" in fields and fields["algo"].metadata["kind"] is AlgoConfig:
        algo = before = values.setdefault("algo", {"name": DEFAULT_ALGORITHM})["name"]
        for override in overrides:
            if override.key_or_group == "algo":
                algo = _single(override)
                algorithm_class(algo)
        if algo != before:
            values["algo"] = {"name": algo}
    given = {override.key_or_group for override in overrides}
    for key in {"seed", "num_seeds"} - given if "seeds" in given else ():  # seeds= stands in their place
        values.pop(key, None)
    for override in overrides:
        check_form(override)
        if (key := override.key_or_group) != "algo" or algo is None:
            field = find_field(key, algo, fields)
            kind = field.metadata["kind"]
            several = kind is list and override.is_sweep_override()
            value = choices(override) if several else _single(override)
            if kind is not dict or "." not in key:
                checked_value(key, field, value)
            put(values, key, value)
    try:
        return from_dict(values, schema)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def peek(overrides: Sequence[Override], schema: type, key: str) -> Any:
    """The value that the overrides give one key, before the others are looked at; raises ConfigError."""
    field = next(f for f in dataclasses.fields(schema) if f.name == key)
    value = field.default
    for override in overrides:
        if override.key_or_group == key:
            value = checked_value(key, field, _single(override))
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
    text = override.input_line or ""
    if text[0] in "+~" or override.package is not None or "${" in text:
        raise ConfigError(f"cannot use {short(text)}: write key=value, without '+', '~', '@' and '${{...}}'")


def _single(override: Override) -> Any:
    """The value of an override that gives one; raises ConfigError."""
    if override.is_sweep_override():
        raise ConfigError(
            f"{short(override.input_line)}: several values belong to haepo_jax.compare or haepo_jax.sweep; "
            "here a key takes one (a pair or list is written [a,b])"
        )
    return override.value()


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value that a key such as `env_kwargs.gravity` names; raises ConfigError."""
    node: Any = values
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ConfigError(f"cannot set {short(key)}: {'.'.join(parents)} is no group of settings")
    node[leaf] = value


def shell_command(module: str, argv: Sequence[str]) -> str:
    """The command that runs a module with these arguments, quoted for the shell."""
    return shlex.join(["python", "-m", module, *argv])


def command_of(config: RunConfig) -> list[str]:
    """The arguments of `haepo_jax.train` that make this run: whatever differs from the defaults."""
    fields = [f for f in dataclasses.fields(RunConfig) if f.name not in ("env", "algo", "env_kwargs")]
    changed = {f.name: getattr(config, f.name) for f in fields if getattr(config, f.name) != f.default}
    usual = hyperparameter_defaults(config.algo.name)
    changed |= {f"algo.{k}": v for k, v in config.algo.hyperparameters.items() if v != usual[k]}
    changed |= {f"env_kwargs.{key}": value for key, value in config.env_kwargs.items()}
    return [f"env={config.env}", f"algo={config.algo.name}", *(f"{k}={value_text(v)}" for k, v in changed.items())]
