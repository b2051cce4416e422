"""Step counts that stay exact beyond 2^31 without 64-bit integers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCount:
    """A non-negative count below 2^64 as two uint32 words; `count + array` and `count < other` work on tracers."""

    high: jax.Array
    low: jax.Array

    @classmethod
    def of(cls, value: int | npt.NDArray[np.int64]) -> StepCount:
        """Of a number, or of an array of numbers."""
        return cls(jnp.uint32(value >> 32), jnp.uint32(value & 0xFFFFFFFF))

    def __add__(self, increment: jax.Array | int) -> StepCount:
        """Adds a non-negative integer below 2^32."""
        low = self.low + jnp.asarray(increment).astype(jnp.uint32)
        return StepCount(self.high + (low < self.low).astype(jnp.uint32), low)

    def __lt__(self, other: StepCount) -> jax.Array:
        return (self.high < other.high) | ((self.high == other.high) & (self.low < other.low))

    def fraction_of(self, total: int) -> jax.Array:
        """The count as a fraction of `total`, float32, at most 1."""
        share = self.high.astype(jnp.float32) * (2.0**32 / total) + self.low.astype(jnp.float32) / float(total)
        return jnp.minimum(share, 1.0)

    def to_int(self) -> Any:
        """The count on the host: an int, or an int64 array for a batch of counts."""
        value = (np.asarray(self.high).astype(np.int64) << 32) | np.asarray(self.low).astype(np.int64)
        return int(value) if value.ndim == 0 else value
