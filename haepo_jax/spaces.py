"""Observation and action spaces: what an environment gives and takes, hashable so that it can be compiled in."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

Bound: TypeAlias = float | tuple[Any, ...]
"""One number for every entry, or nested tuples in the space's shape."""


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0 to n - 1, as an int32 scalar."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Discrete needs n >= 1, got {self.n}")

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int32)


@dataclasses.dataclass(frozen=True)
class Box:
    """Arrays of a shape and dtype between `low` and `high`, which may be infinite.

    The bounds may be given as numbers or arrays that broadcast to `shape`; they are kept as a float, or as nested tuples of floats
    where they differ from element to element, so that equal spaces compare and hash equal.
    """

    low: Bound
    high: Bound
    shape: tuple[int, ...]
    dtype: np.dtype = np.dtype(np.float32)

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        for name in ("low", "high"):
            bound = np.asarray(getattr(self, name))
            try:
                np.broadcast_to(bound, shape)
            except ValueError:
                raise ValueError(f"Box: {name} of shape {bound.shape} does not fit shape {shape}") from None
            object.__setattr__(self, name, _hashable(bound))
        if np.any(np.asarray(self.low) > np.asarray(self.high)):
            raise ValueError("Box: low is above high")

    @property
    def bounded(self) -> bool:
        """Whether every bound is finite."""
        return bool(np.all(np.isfinite(np.asarray(self.low))) and np.all(np.isfinite(np.asarray(self.high))))

    def from_unit(self, action: jax.Array) -> jax.Array:
        """An action in the policy's units, (..., *shape) in [-1, 1], brought to this space's range.

        A bounded space clips to [-1, 1] and maps -1 to `low` and 1 to `high`; an unbounded one changes nothing.
        """
        if not self.bounded:
            return action
        low, high = (jnp.asarray(np.asarray(bound), dtype=action.dtype) for bound in (self.low, self.high))
        # The convex combination meets both ends exactly, which low + share * (high - low) does not in floating point.
        share = (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0
        return (1.0 - share) * low + share * high


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several integers, the i-th from 0 to sizes[i] - 1, as int32 (len(sizes),)."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(int(size) for size in self.sizes))
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"MultiDiscrete needs sizes >= 1, got {self.sizes}")

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int32)


Leaf: TypeAlias = Discrete | MultiDiscrete | Box
Space: TypeAlias = Leaf | Mapping[str, "Space"] | tuple["Space", ...]
"""A `Discrete`, a `MultiDiscrete`, a `Box`, or dicts and tuples of them."""


def space_leaves(space: Space) -> list[Leaf]:
    """The parts, in the order of `jax.tree.leaves` of an observation."""
    return jax.tree.leaves(space)


def map_space(function: Callable[..., Any], space: Space, *rest: Any) -> Any:
    """`function(part, *its counterparts)` for every part of a space, in plain dicts and tuples like the space's own.

    The parts come in the order of `space_leaves`.
    """
    if isinstance(space, Mapping):
        return {name: map_space(function, space[name], *(x[name] for x in rest)) for name in sorted(space)}
    if isinstance(space, tuple):
        return tuple(map_space(function, *parts) for parts in zip(space, *rest, strict=True))
    return function(space, *rest)


def frozen_space(space: Any) -> Any:
    """The same space with hashable dicts, to be compiled in."""
    if isinstance(space, Mapping):
        return flax.core.FrozenDict({name: frozen_space(part) for name, part in space.items()})
    return tuple(map(frozen_space, space)) if isinstance(space, tuple) else space


def _hashable(bound: np.ndarray) -> Bound:
    if bound.size and np.all(bound == bound.flat[0]):
        return float(bound.flat[0])

    def nested(values: Any) -> Any:
        return tuple(nested(value) for value in values) if isinstance(values, list) else float(values)

    return nested(bound.tolist())
