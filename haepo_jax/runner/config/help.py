"""What `--help` says of settings and algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haepo_jax.runner.config import (
    ALGORITHMS,
    DEFAULT_ALGORITHM,
    PRESETS,
    AlgoConfig,
    algorithm_class,
    hyperparameter_defaults,
    hyperparameter_fields,
)
from haepo_jax.runner.config.values import value_text


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
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else value_text(value)


def algorithm_table() -> str:
    """A help table of the algorithms and presets."""
    rows = [(name, (algorithm_class(name).__doc__ or "").strip().splitlines()[0]) for name in ALGORITHMS]
    for name, (base, changes) in PRESETS.items():
        rows.append((name, f"{base} with " + " ".join(f"{k}={_yaml_text(v, type(v))}" for k, v in changes.items())))
    wide = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{wide}}  {text}" for name, text in rows)


def help_text(text: str, schema: type, **more: str) -> str:
    """A command's help with the settings of its schema, and what else it has a place for."""
    return text.format(settings=settings_table(dataclasses.fields(schema)), **more)


def training_help(text: str, schema: type, argv: Sequence[str]) -> str:
    """As `help_text`, with the algorithms and the hyperparameters of the one that is asked for, or the first of several;
    raises ConfigError where it is unknown."""
    names = [argument.partition("=")[2].partition(",")[0] for argument in argv if argument.startswith("algo=")]
    algo = names[-1] if names else DEFAULT_ALGORITHM
    hyperparameters = settings_table(hyperparameter_fields(algo).values(), "algo.", hyperparameter_defaults(algo))
    return help_text(text, schema, algorithms=algorithm_table(), algo=algo, hyperparameters=hyperparameters)
