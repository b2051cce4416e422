"""Declaration of hyperparameters: `static` and `leaf` dataclass fields with a default, a range and a help text.

`static` fields determine shapes or code and are compile-time constants. `leaf` fields are numbers that JAX traces: they
can be vmapped and change without recompilation. This module does not import JAX, because the command line reads the
declarations and runs `check` before JAX is loaded (see `declared`). For the same reason declarations and `check` may
only use names from this module.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from typing import Any

from haepo_jax.messages import did_you_mean, short

Scheduled = Any
"""A number; a pair `(start, end)` interpolated linearly over the run; or an optax schedule of the fraction of the run
done, from 0 to 1 (for example `optax.cosine_decay_schedule(3e-3, 1)`)."""


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval that a number must lie in; `str()` gives the usual notation, such as `(0, 1]`."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False

    def __contains__(self, value: float) -> bool:
        if isinstance(value, int) and value.bit_length() > 1023:  # more than a floating-point number holds
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and value <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        left = "(" if self.low_open or self.low == -math.inf else "["
        right = ")" if self.high == math.inf else "]"
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
    """A field that is a compile-time constant: a size, a flag or the name of an option.

    Args:
      default: the default value.
      kind: int, bool, str, or tuple for a list of sizes.
      doc: a short description for the command-line help.
      within: the valid range of a number.
      choices: the valid strings.
      optional: whether None is allowed.
    """
    metadata = {"static": True, "kind": kind, "doc": doc, "within": within, "choices": choices, "optional": optional}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata | {"scheduled": False, "word": None})


def leaf(
    default: Any, doc: str, *, within: Range, scheduled: bool = False, word: str | None = None, optional: bool = False
) -> Any:
    """A numeric field that JAX traces; see `static` for the other arguments.

    Args:
      scheduled: whether a pair or a schedule is allowed; see `Scheduled`.
      word: a string allowed instead of a number ("auto" for a temperature).
    """
    metadata = {"static": False, "kind": float, "doc": doc, "within": within, "choices": (), "optional": optional}
    return dataclasses.field(default=default, kw_only=True, metadata=metadata | {"scheduled": scheduled, "word": word})


class HyperparameterError(ValueError):
    """An invalid hyperparameter; the one-line message states its name, its value and what is expected."""


def check_value(field: dataclasses.Field[Any], value: Any) -> None:
    """Raises HyperparameterError if `value` is invalid for `field`. Arrays and tracers are not checked."""
    if (value is not None or not field.metadata["optional"]) and (wrong := _objection(value, **field.metadata)):
        raise HyperparameterError(f"{field.name}={short(value)} {wrong}")


def _objection(
    value: Any,
    *,
    kind: type,
    within: Range | None,
    choices: tuple[str, ...],
    scheduled: bool,
    word: str | None,
    **_: Any,
) -> str:
    """What is wrong with the value of a field with this metadata, or ""."""
    pair = scheduled and isinstance(value, tuple | list) and len(value) == 2
    if kind is tuple:
        within = within or COUNT
        if isinstance(value, tuple | list) and all(_is_int(size) and size in within for size in value):
            return ""
        return f"must be a list of {'positive integers, such as [64, 64]' if within is COUNT else f'integers {within}'}"
    if kind is not float:
        if type(value).__name__.endswith("Tracer"):  # by name: this module does not import JAX
            return "is traced, but static: it determines shapes or code, so each value needs an algorithm of its own"
        if choices and value not in choices:
            return f"must be one of {', '.join(choices)}{did_you_mean(value, choices)}"
        if not (_is_int(value) if kind is int else isinstance(value, kind)):
            return f"must be {_KIND_NAMES[kind]}"
    elif word is not None and isinstance(value, str) and value == word:
        return ""
    elif any(
        end is None or isinstance(end, _NO_NUMBER) or (callable(end) and (pair or not scheduled))
        for end in (value if pair else [value])
    ):
        other = f" or '{word}'" if word else ""
        return "must be a pair [start, end] of numbers" if pair else f"must be a number{_OR_PAIR * scheduled}{other}"
    numbers = [end for end in (value if pair else [value]) if isinstance(end, int | float)]
    return f"is out of range {within}" if within and any(number not in within for number in numbers) else ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_KIND_NAMES = {int: "an integer", bool: "true or false", str: "a string"}
_NO_NUMBER = (str, bool, list, tuple, dict, set)
_OR_PAIR = " or a pair [start, end]"


@functools.cache
def check_redeclared(cls: type) -> None:
    """Raises TypeError for a subclass of an algorithm whose new values of hyperparameters dataclasses would ignore."""
    for owner in cls.__mro__:
        own = vars(owner)
        inherited = {name: x for base in owner.__mro__[:0:-1] for name, x in vars(base).get(_FIELDS, {}).items()}
        fields = own.get(_FIELDS, inherited)
        for name, value in own.items():
            is_ignored = name in inherited and fields[name] is inherited[name] and not _is_slot(value)
            if isinstance(value, dataclasses.Field) or is_ignored:
                raise TypeError(
                    f"{owner.__name__}.{name} has no effect: write it as {name}: <type> = static(...) or leaf(...), with "
                    "@jax.tree_util.register_dataclass and @dataclasses.dataclass(frozen=True, kw_only=True) above the class"
                )


_FIELDS = "__dataclass_fields__"


def _is_slot(value: Any) -> bool:
    """Whether `dataclass(slots=True)` has put a class attribute there."""
    return isinstance(value, types.MemberDescriptorType)


def check_function(name: str, value: Any) -> None:
    """Raises HyperparameterError unless the value is a function or None."""
    if value is not None and not callable(value):
        raise HyperparameterError(f"{name}={value!r} is not a function")


def check_divides(whole_name: str, whole: int, part_name: str, part: int) -> None:
    """Raises HyperparameterError, naming the nearest multiples, if `whole` is not a multiple of `part`."""
    if whole % part:
        below, above = whole - whole % part, whole - whole % part + part
        nearest = f"{below} or {above}" if below else f"{above}"
        raise HyperparameterError(
            f"{whole_name}={whole} is not a multiple of {part_name}={part}; the nearest that are: {nearest}"
        )
