"""How an algorithm class declares its hyperparameters: `static` and `leaf` fields with a default, a range and a text.

`static` fields set shapes or choose code and are compiled in; `leaf` fields are numbers that jax traces, so they vmap
and change without recompilation. Nothing here imports jax: the command line reads these declarations, and runs an
algorithm's `check`, before jax is loaded (see `declared`). So a declaration and a `check` use only names of this module.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

from haepo_jax.messages import short

Scheduled = Any
"""A number; a pair `(start, end)` interpolated linearly over the run; or an optax schedule of the fraction of the run's
steps done, from 0 to 1 (for example `optax.cosine_decay_schedule(3e-3, 1)`)."""


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval that a number must lie in; `str()` gives the usual notation, such as `(0, 1]`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, int) and value.bit_length() > 1023:  # more than a floating-point number holds
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high_open or self.high == math.inf else "]"
        return f"{left}{self.low:g}, {self.high:g}{right}"


POSITIVE = Range(low=0, low_open=True)
NOT_NEGATIVE = Range(low=0)
UNIT = Range(low=0, high=1)
UNIT_OPEN_LOW = Range(low=0, high=1, low_open=True)
COUNT = Range(low=1, high=2**31 - 1)


def static(
    default: Any,
    kind: type,
    doc: str,
    *,
    within: Range | None = None,
    choices: tuple[str, ...] = (),
    optional: bool = False,
) -> Any:
    """A field that is compiled in: a size, a switch or the name of a rule.

    Args:
      default: its value where none is given.
      kind: int, bool, str, or tuple for a list of sizes.
      doc: what it does, in half a line, for the command line's help.
      within: the range of a number.
      choices: the strings allowed.
      optional: whether None is allowed.
    """
    metadata = {"static": True, "kind": kind, "doc": doc, "within": within, "choices": choices, "optional": optional}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


def leaf(
    default: Any, doc: str, *, within: Range, scheduled: bool = False, word: str | None = None, optional: bool = False
) -> Any:
    """A numeric field that jax traces; `static` describes the other arguments.

    Args:
      scheduled: whether a pair or a schedule is allowed; see `Scheduled`.
      word: a string allowed in the number's place (the rule "auto" of a temperature).
    """
    metadata = {
        "static": False, "kind": float, "doc": doc, "within": within, "scheduled": scheduled, "word": word, "optional": optional,
    }  # fmt: skip
    return dataclasses.field(default=default, kw_only=True, metadata=metadata)


class HyperparameterError(ValueError):
    """A hyperparameter that cannot be used; the message is one line that names it, its value and what would be right."""


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises HyperparameterError where `value` cannot be used for `field`. Arrays and tracers pass unseen."""
    name, meta = field.name, field.metadata
    if value is None and meta["optional"]:
        return
    if meta["static"]:
        kind = meta["kind"]
        if kind is tuple:
            sizes = value if isinstance(value, tuple | list) else None
            within = meta["within"] or COUNT
            if sizes is None or not all(_is_int(size) and size in within for size in sizes):
                what = "positive integers, such as [64, 64]" if within is COUNT else f"integers {within}"
                raise HyperparameterError(f"{name}={short(value)} must be a list of {what}")
            return
        right_type = _is_int(value) if kind is int else isinstance(value, kind)
        if not right_type:
            raise HyperparameterError(f"{name}={short(value)} must be {_KIND_NAMES[kind]}")
        if meta["choices"] and value not in meta["choices"]:
            raise HyperparameterError(
                f"{name}={short(value)} must be one of {', '.join(meta['choices'])}{_near(value, meta['choices'])}"
            )
        if meta["within"] is not None and value not in meta["within"]:
            raise HyperparameterError(f"{name}={short(value)} is out of range {meta['within']}")
        return
    if isinstance(value, str):
        if value != meta["word"]:
            allowed = f"a number or '{meta['word']}'" if meta["word"] else "a number"
            raise HyperparameterError(f"{name}={short(value)} must be {allowed}")
        return
    if isinstance(value, bool) or value is None or isinstance(value, dict | set):
        raise HyperparameterError(f"{name}={short(value)} must be a number")
    if isinstance(value, tuple | list):
        if not meta["scheduled"] or len(value) != 2:
            pair = " or a pair [start, end]" if meta["scheduled"] else ""
            raise HyperparameterError(f"{name}={short(value)} must be a number{pair}")
        for end in value:
            if isinstance(end, str | bool | list | tuple | dict) or end is None:
                raise HyperparameterError(f"{name}={short(value)} must be a pair [start, end] of numbers")
            _check_range(name, end, meta["within"])
        return
    _check_range(name, value, meta["within"])


def _check_range(name: str, value: Any, within: Range) -> None:
    if isinstance(value, int | float) and value not in within:
        raise HyperparameterError(f"{name}={short(value)} is out of range {within}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KIND_NAMES = {int: "an integer", bool: "true or false", str: "a string"}


def _near(name: Any, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Raises HyperparameterError where `whole` is no multiple of `part`, naming the nearest multiples."""
    if whole % part:
        below, above = whole - whole % part, whole - whole % part + part
        nearest = f"{below} or {above}" if below else f"{above}"
        raise HyperparameterError(
            f"{whole_name}={whole} is not a multiple of {part_name}={part}; the nearest that are: {nearest}"
        )
