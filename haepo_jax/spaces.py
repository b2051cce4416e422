"""Observation and action spaces. They are hashable, so that they can be compile-time constants."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.core
import jax
import jax.numpy as jnp
import numpy as np

Bound: TypeAlias = float | tuple[Any, ...]
"""A number for all elements, or nested tuples in the shape of the space."""


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
    """Arrays of a given shape and dtype between `low` and `high`, which may be infinite.

    Bounds are numbers or arrays that broadcast to `shape`. They are stored as a float, or as nested tuples of floats if
    they differ between elements, so that equal spaces compare and hash equal.
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
        return bool(np.all(self.bounded_elements))

    @property
    def bounded_elements(self) -> np.ndarray[Any, Any]:
        """Which elements have two finite bounds: bool, () or in the shape of the bounds."""
        return np.isfinite(np.asarray(self.low)) & np.isfinite(np.asarray(self.high))

    def from_unit(self, action: jax.Array) -> jax.Array:
        """Converts an action from policy units, (..., *shape), to the range and dtype of this space.

        Elements with two finite bounds are clipped to [-1, 1] and scaled to [`low`, `high`]; those with one finite
        bound are clipped to it; the others stay unchanged.
        """
        scaled = self.bounded_elements

        def constant(bound: Any) -> jax.Array:
            return jnp.asarray(with_axes(bound, action.ndim), dtype=action.dtype)

        if not scaled.any():
            clipped = jnp.clip(action, constant(self.low), constant(self.high)) if self._half_bounded else action
            return clipped.astype(self.dtype)
        low, high = (constant(np.where(scaled, bound, 0.0)) for bound in (self.low, self.high))
        # In floating point the convex combination reaches both bounds exactly; low + fraction * (high - low) does not.
        fraction = (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0
        result = (1.0 - fraction) * low + fraction * high
        if not scaled.all():
            result = jnp.where(
                with_axes(scaled, action.ndim), result, jnp.clip(action, constant(self.low), constant(self.high))
            )
        return result.astype(self.dtype)

    @property
    def _half_bounded(self) -> bool:
        return bool(np.any(np.isfinite(np.asarray(self.low))) or np.any(np.isfinite(np.asarray(self.high))))


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
    """The parts of a space, in the order of `jax.tree.leaves` of an observation."""
    return jax.tree.leaves(space)


def is_unscaled_vector(space: Space) -> bool:
    """Whether the boxes of a space are vectors, not images or grids, and some of their values may lie outside [0, 1]."""
    boxes = [part for part in space_leaves(space) if isinstance(part, Box)]
    unscaled = any(np.any(np.asarray(box.low) < 0) or np.any(np.asarray(box.high) > 1) for box in boxes)
    return unscaled and all(len(box.shape) == 1 for box in boxes)


def map_space(function: Callable[..., Any], space: Space, *rest: Any) -> Any:
    """Maps `function(part, *counterparts)` over the parts of a space; returns plain dicts and tuples in its structure.

    The parts are visited in the order of `space_leaves`.
    """
    if isinstance(space, Mapping):
        return {name: map_space(function, space[name], *(x[name] for x in rest)) for name in sorted(space)}
    if isinstance(space, tuple):
        return tuple(map_space(function, *parts) for parts in zip(space, *rest, strict=True))
    return function(space, *rest)


def with_axes(values: Any, ndim: int) -> np.ndarray[Any, Any]:
    """An array with leading axes of 1 up to `ndim`, to avoid rank promotion, from which scalars are exempt."""
    array = np.asarray(values)
    return array.reshape((1,) * (ndim - array.ndim) + array.shape) if array.ndim else array


def frozen_space(space: Any) -> Any:
    """The same space with hashable dicts, for use as a compile-time constant."""
    if isinstance(space, Mapping):
        return flax.core.FrozenDict({name: frozen_space(part) for name, part in space.items()})
    return tuple(map(frozen_space, space)) if isinstance(space, tuple) else space


def _hashable(bound: np.ndarray) -> Bound:
    if bound.size and np.all(bound == bound.flat[0]):
        return float(bound.flat[0])

    def nested(values: Any) -> Any:
        return tuple(nested(value) for value in values) if isinstance(values, list) else float(values)

    return nested(bound.tolist())
