"""Running statistics of observations, part of the train state and constant within an update."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunningStatistics:
    """Count (), and mean and sum of squared deviations (*shape) of every leaf of an observation, float32."""

    count: jax.Array
    mean: Any
    squares: Any

    @classmethod
    def of(cls, observation: Any) -> RunningStatistics:
        """Empty statistics for observations like this one; with them `normalize` only clips."""
        zeros = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.float32), observation)
        return cls(jnp.float32(0), zeros, jax.tree.map(jnp.zeros_like, zeros))

    def update(self, observations: Any, mask: jax.Array) -> RunningStatistics:
        """Adds the observations (..., *shape) where mask (...) is true.

        Merges the batch with the parallel form of Welford's algorithm (Chan, Golub & LeVeque 1983).
        """
        chex.assert_tree_shape_prefix(observations, mask.shape)
        added = jnp.sum(mask, dtype=jnp.float32)
        count = self.count + added
        axes = tuple(range(mask.ndim))

        def merge(mean: jax.Array, squares: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            valid = jnp.expand_dims(mask, tuple(range(mask.ndim, x.ndim)))
            x = jnp.where(valid, x, 0).astype(jnp.float32)
            batch_mean = jnp.sum(x, axes) / jnp.maximum(added, 1)
            batch_squares = jnp.sum(jnp.where(valid, x - jnp.expand_dims(batch_mean, axes), 0) ** 2, axes)
            delta = batch_mean - mean
            fraction = added / jnp.maximum(count, 1)
            return mean + delta * fraction, squares + batch_squares + delta**2 * self.count * fraction

        merged = jax.tree.map(merge, self.mean, self.squares, observations)
        outer, inner = jax.tree.structure(self.mean), jax.tree.structure((0, 0))
        mean, squares = jax.tree.transpose(outer, inner, merged)
        return RunningStatistics(count, mean, squares)

    def normalize(self, observation: Any) -> Any:
        """(x - mean) / std clipped to [-10, 10], for x (..., *shape)."""

        def standardise(x: jax.Array, mean: jax.Array, squares: jax.Array) -> jax.Array:
            if x.shape[x.ndim - mean.ndim :] != mean.shape:
                raise ValueError(f"the policy was trained on observations of shape {mean.shape}, not {x.shape}")
            lead = tuple(range(x.ndim - mean.ndim))
            mean, squares = jnp.expand_dims(mean, lead), jnp.expand_dims(squares, lead)
            variance = jnp.where(self.count > 0, squares / jnp.maximum(self.count, 1), 1.0)
            return jnp.clip((x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + 1e-8), -10, 10)

        return jax.tree.map(standardise, observation, self.mean, self.squares)
