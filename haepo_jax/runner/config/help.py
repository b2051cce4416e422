"""What `--help` says of settings and algorithms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from haepo_jax.algorithms.declared import ALGORITHMS, PRESETS
from haepo_jax.runner.config import DEFAULT_ALGORITHM, AlgoConfig, algorithm_class, hyperparameter_fields
from haepo_jax.runner.config.values import value_text


def settings_table(
    fields: Iterable[dataclasses.Field[Any]], prefix: str = "", defaults: Mapping[str, Any] | None = None
) -> str:
    """A help table, one line per field: the key, its default, what it means and what it may be."""
    rows = []
    for field in fields:
        kind, within = field.metadata["kind"], field.metadata["within"]
        default = DEFAULT_ALGORITHM if kind is AlgoConfig else (defaults or {}).get(field.name, field.default)
        allowed = " | ".join(field.metadata["choices"]) or str(within or "")
        if kind is int and within and within.high > 2**30:  # no limit that anybody meets
            allowed = f">= {within.low}"
        allowed += " or [start, end]" if field.metadata["scheduled"] else ""
        meaning = field.metadata["doc"] + (f" ({allowed})" if allowed else "")
        rows.append((f"{prefix}{field.name}", "" if kind is dict else _shown(default), meaning))
    return _table(rows)


def algorithm_table() -> str:
    """A help table of the algorithms and presets."""
    rows = [(name, (algorithm_class(name).__doc__ or "").strip().splitlines()[0]) for name in ALGORITHMS]
    for name, (base, changes) in PRESETS.items():
        rows.append((name, " ".join([base, "with", *(f"{key}={_shown(value)}" for key, value in changes.items())])))
    return _table(rows)


def help_text(text: str, schema: type, argv: Sequence[str] | None = None, **more: str) -> str:
    """A command's help with the settings of its schema; with `argv` also with the algorithms, and the hyperparameters of
    the one that is asked for there, or the first of several. Raises ConfigError where that is unknown."""
    if argv is not None:
        algo = next((x[5:].partition(",")[0] for x in reversed(argv) if x.startswith("algo=")), DEFAULT_ALGORITHM)
        hyperparameters = settings_table(hyperparameter_fields(algo).values(), "algo.")
        more |= {"hyperparameters": hyperparameters, "algorithms": algorithm_table(), "algo": algo}
    return text.format(settings=settings_table(dataclasses.fields(schema)), **more)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [
        min(most, max(map(len, column))) for most, column in zip((99, 12, 0), zip(*rows, strict=True), strict=False)
    ]
    return "\n".join("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else value_text(value)
