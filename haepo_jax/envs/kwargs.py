"""Checks of the keyword arguments of `make_env`, with one-line errors and without importing JAX."""

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from haepo_jax.messages import did_you_mean, short

LARGEST = float.fromhex("0x1.fffffep127")
"""The largest finite float32."""


def constructor_settings(factory: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of `factory` and their defaults (None for required ones)."""
    return {
        name: None if parameter.default is parameter.empty else parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def check_settings(env: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Checks the names of settings against `defaults`, and their types against those of the defaults.

    Raises:
        ValueError: a name is unknown; the message lists near matches and all valid names.
        TypeError: a value has the wrong type.
    """
    for name, value in given.items():
        if name not in defaults:
            valid = ", ".join(defaults) or "none"
            raise ValueError(f"{env} has no setting {name!r}{did_you_mean(name, defaults, 3)} (settings: {valid})")
        check_type(f"{env}: {name}", value, defaults[name])


def check_type(what: str, value: Any, default: Any) -> None:
    """Checks that `value` has the type of a bool, int, float or str `default`; other defaults accept anything."""
    if isinstance(default, bool):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, Integral):
        expected, fits = "an integer", isinstance(value, Integral) and not isinstance(value, bool)
        if fits and abs(int(value)) >= 2**31:
            raise ValueError(f"{what} does not fit in 32 bits, got {short(value)}")
    elif isinstance(default, Real):
        expected, fits = "a number", isinstance(value, Real) and not isinstance(value, bool)
        if fits and math.isnan(value):
            raise ValueError(f"{what} must be a number, got nan")
        if fits and LARGEST < abs(value) < math.inf:
            raise ValueError(f"{what} does not fit in 32 bits, got {short(value)}")
    elif isinstance(default, str):
        expected, fits = "a string", isinstance(value, str)
    else:
        return
    if not fits:
        raise TypeError(f"{what} must be {expected}, got {short(value)}")


def check_range(what: str, value: float, lowest: float, highest: float = math.inf) -> None:
    """Raises ValueError if `value` is below `lowest` or above `highest`."""
    if not value >= lowest:  # or NaN
        raise ValueError(f"{what} must be at least {lowest}, got {value}")
    if value > highest:
        raise ValueError(f"{what} must be at most {highest:,}, got {value}")


def freeze(kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Settings by name, with tuples in the place of lists, as in config files, so that equal settings hash equal."""
    return tuple(sorted((name, _frozen(value)) for name, value in kwargs.items()))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
