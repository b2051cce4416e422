"""The search space: Hydra's sweep language (choice, range, interval, tag), read by Hydra's own parser.

Nothing here imports jax or Optuna.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import value_text

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST_VALUES = 10_000
"""The longest list of values that one key may have."""

FINITE = hp.Range()

Values = dict[str, Any]
"""One configuration: the swept keys, such as `algo.learning_rate`, and their values."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A list of values, in the order given: `choice(a,b)`, `a,b` or `range(start,stop,step)`."""

    key: str
    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """A value, all equally likely."""
        return self.values[int(random.integers(len(self.values)))]

    @property
    def categories(self) -> dict[Any, Any]:
        """The values by what Optuna stores for each."""
        return {as_stored(value): value for value in self.values}

    def ends(self) -> tuple[Any, Any]:
        """The smallest and the largest value if all are numbers, otherwise the first and the last."""
        if all(isinstance(value, int | float) for value in self.values):
            return min(self.values), max(self.values)
        return self.values[0], self.values[-1]


@dataclasses.dataclass(frozen=True)
class Interval:
    """All numbers from `low` to `high`, both included: `interval(low,high)`, uniform in the logarithm if `log`."""

    key: str
    low: float
    high: float
    log: bool = False
    integer: bool = False

    def draw(self, random: np.random.Generator) -> float | int:
        """A number, uniform in the interval or in its logarithm."""
        # An integer stands for the unit around it, so that both ends are as likely as the rest.
        half = 0.5 if self.integer else 0.0
        low, high = self.low - half, self.high + half
        value = math.exp(random.uniform(math.log(low), math.log(high))) if self.log else random.uniform(low, high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value

    def ends(self) -> tuple[float, float]:
        """The two ends, as numbers of the kind that `draw` gives."""
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)


Dimension = Choice | Interval


def read_dimension(override: Override, *, integer: bool = False) -> Dimension:
    """One key's values; `integer`: the key takes whole numbers. Raises ConfigError.

    `shuffle(...)` is accepted and has no effect, because the search decides the order.
    """
    from hydra.core.override_parser.types import Sweep

    key, text = override.key_or_group, short(override.input_line)
    value: Any = override.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := tags - {"log"}:
        raise ConfigError(f"{text}: unknown tag {sorted(unknown)[0]!r}; there is only log")
    if override.is_interval_sweep():
        return _interval(key, text, value, log="log" in tags, integer=integer or isinstance(value.start, int))
    if tags:
        raise ConfigError(f"{text}: tag(log,...) needs an interval; a list of values has no scale")
    if not override.is_discrete_sweep() or not hasattr(value, "shuffle"):
        raise ConfigError(f"{text}: write choice(...), range(...) or interval(...)")
    listed = value.list if hasattr(value, "list") else _range(text, value)
    values = tuple(itertools.islice((_plain(item) for item in listed), MOST_VALUES + 1))
    if not values:
        raise ConfigError(f"{text} has no values")
    if any(isinstance(value, Sweep) for value in values):
        raise ConfigError(f"{text}: a list of values holds no other list of values")
    if len(values) > MOST_VALUES:
        raise ConfigError(f"{text} has more than {MOST_VALUES:,} values; write an interval")
    return Choice(key, values)


def _interval(key: str, text: str, value: Any, *, log: bool, integer: bool) -> Interval:
    if not (value.start in FINITE and value.end in FINITE):
        raise ConfigError(f"{text}: the ends of an interval must be finite numbers")
    low, high = float(value.start), float(value.end)
    if low >= high:
        raise ConfigError(f"{text}: an interval runs from its lower end to a higher one")
    if log and low <= 0:
        raise ConfigError(f"{text}: the logarithm needs a lower end above 0")
    if integer and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{text}: the ends of an interval of integers must be integers")
    return Interval(key, low, high, log, integer)


def _range(text: str, value: Any) -> Any:
    if value.step == 0 or not all(number in FINITE for number in (value.start, value.stop, value.step)):
        raise ConfigError(f"{text}: a range is of finite numbers, and its step is not 0")
    # Hydra adds up the step as the float nearest to it: 0.7000000000000001 is meant as 0.7.
    return (float(f"{item:.12g}") if isinstance(item, float) else item for item in value.range())


def _plain(value: Any) -> Any:
    """A parsed value without Hydra's quotes; lists become tuples, which hash."""
    if isinstance(value, list):
        return tuple(_plain(item) for item in value)
    return getattr(value, "text", value)


def as_stored(value: Any) -> Any:
    """A value as Optuna stores it: a list, which it has no category for, is text."""
    return value_text(value) if isinstance(value, tuple) else value
