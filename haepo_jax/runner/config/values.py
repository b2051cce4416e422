"""From plain values, such as a file holds, to checked settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from haepo_jax.algorithms.declared import ALGORITHMS
from haepo_jax.algorithms.fields import HyperparameterError, check_value
from haepo_jax.algorithms.other_names import hint, our_name
from haepo_jax.envs import resolve_name
from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import (
    DEFAULT_ALGORITHM,
    AlgoConfig,
    ConfigError,
    CustomConfig,
    RunConfig,
    algorithm_class,
    hyperparameter_fields,
)

Settings = TypeVar("Settings")


def from_dict(values: Mapping[str, Any], schema: type[Settings]) -> Settings:
    """Settings from plain values (a composed config, or a run's `config.yaml`); raises ConfigError."""
    checked = _checked(values, {f.name: f for f in dataclasses.fields(schema)})  # type: ignore[arg-type]
    algo, env = checked.get("algo"), checked.get("env")
    if schema is RunConfig and isinstance(algo, AlgoConfig):  # of a sweep each configuration is checked on its own
        try:
            algorithm_class(algo.name)(total_steps=checked["total_steps"], **algo.hyperparameters).check()
        except HyperparameterError as error:
            raise ConfigError(f"algo.{error}") from None
    if env:
        try:
            checked["env"] = tuple(map(resolve_name, env)) if isinstance(env, tuple) else resolve_name(env)
        except ValueError as error:  # with a near match
            raise ConfigError(one_line(str(error))) from None
    settings = schema(**checked)
    if hasattr(settings, "check"):
        settings.check()
    return settings


def custom_from_dict(values: Mapping[str, Any]) -> CustomConfig:
    """What `CustomConfig.to_dict` gave; the settings of the algorithm and the environment are taken as they are. Raises
    ConfigError."""
    algo, objects = values.get("algo"), values.get("objects")
    if not isinstance(algo, Mapping) or not isinstance(algo.get("name"), str) or not isinstance(objects, Mapping):
        raise ConfigError("algo must have a name, and objects those of classes")
    rest = {key: value for key, value in values.items() if key not in ("algo", "objects")}
    checked = _checked(rest, {f.name: f for f in dataclasses.fields(RunConfig) if f.name != "algo"})
    hyperparameters = {key: value for key, value in algo.items() if key != "name"}
    return CustomConfig(algo=AlgoConfig(algo["name"], hyperparameters), objects=dict(objects), **checked)


def _checked(values: Mapping[str, Any], fields: Mapping[str, Any], algo: str | None = None) -> dict[str, Any]:
    """Each field's value, or its default: those of a schema, or of an algorithm's hyperparameters."""
    prefix = "algo." if algo else ""
    for key in values:
        if key not in fields:
            raise _unknown_key(f"{prefix}{key}", algo, {} if algo else fields)
    return {
        key: checked_value(f"{prefix}{key}", field, values.get(key, field.default)) for key, field in fields.items()
    }


def find_field(key: str, algo: str | None, fields: Mapping[str, dataclasses.Field[Any]]) -> dataclasses.Field[Any]:
    """The field that a key sets in a command with these fields and this algorithm; raises ConfigError."""
    head, _, rest = key.partition(".")
    if head == "algo" and algo is not None:
        if rest in (known := hyperparameter_fields(algo)):
            return known[rest]
    elif head in fields and (not rest or fields[head].metadata["kind"] is dict):
        return fields[head]
    raise _unknown_key(key, algo, fields)


def _unknown_key(key: str, algo: str | None, fields: Mapping[str, Any]) -> ConfigError:
    name = key.removeprefix("algo.")
    if key == "algo.total_steps":
        return ConfigError("total_steps is a setting of the run: write total_steps=, not algo.total_steps=")
    known = [*fields]
    if algo is not None:
        known += [f"algo.{own}" for own in hyperparameter_fields(algo)]
        wanted = name if name in known else our_name(name) or name
        owners = [owner for owner in ALGORITHMS if wanted in hyperparameter_fields(owner)]
        if owners and wanted not in known and f"algo.{wanted}" not in known:
            having = f"algo={', algo='.join(owners)} {'has' if len(owners) == 1 else 'have'}"
            return ConfigError(f"unknown key {short(key)}: algo={algo} has no {wanted} ({having} it)")
    return ConfigError(f"unknown key {short(key)}{hint(name, known) or ' (see --help)'}")


def checked_value(key: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """One value of a key, held against its field's type and range, as the field holds it; raises ConfigError."""
    kind = field.metadata["kind"]
    if kind is AlgoConfig:
        value = {"name": DEFAULT_ALGORITHM} if value is None else value
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise ConfigError("algo must have a name and hyperparameters")
        name, given = value["name"], {name: x for name, x in value.items() if name != "name"}
        return AlgoConfig(name, _checked(given, hyperparameter_fields(name), name))
    if kind is dict:
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise ConfigError(f"{key}={short(value)} must be names and values: {key}.<name>=<value>")
        return dict(value)
    if kind is list:
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise ConfigError(f"{key}={short(value)} must be one or more names: {key}=a,b")
        return tuple(value)
    if value == "" and field.default != "":
        raise ConfigError(f"{key}= is empty")
    value = _converted(kind, field.metadata["choices"], value)
    try:
        check_value(field, value)
    except HyperparameterError as error:
        is_free = kind is str and not field.metadata["choices"]
        word = value_text(value) if is_free and (value is None or isinstance(value, bool | float)) else None
        quoted = f"; for the word, quote it: '{key}=\"{word}\"'" if word else ""
        # check_value names the bare field; the key says where it stands on the command line.
        raise ConfigError(f"{key.removesuffix(field.name)}{error}{quoted}") from None
    if isinstance(value, list | tuple):
        return tuple(map(float, value)) if kind is float else tuple(value)
    return float(value) if kind is float and isinstance(value, int) else value


def _converted(kind: type, choices: tuple[str, ...], value: Any) -> Any:
    """1e6 is an integer where one is wanted, 2024 a name, and true a word where that is one of the choices."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1024:
        return str(value)
    if kind is str and isinstance(value, str | bool) and str(value).lower() in choices:
        return str(value).lower()
    return value


def value_text(value: Any) -> str:
    """A value as the command line takes it: `arguments.read_arguments` reads it back."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or JAX
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(value_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{value_text(item)}" for key, item in value.items()) + "}"
    text = str(value)
    # A word of these characters means itself in Hydra's grammar; anything else is quoted.
    if isinstance(value, int | float) or (_WORD.fullmatch(text) and text.lower() not in _NO_WORDS):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()


_WORD = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_NO_WORDS = ("null", "true", "false", "nan", "inf")
