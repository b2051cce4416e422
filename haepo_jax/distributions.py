"""Action distributions: categorical for `Discrete` spaces, diagonal Gaussian for `Box` spaces.

A distribution is a small pytree whose arrays may have any leading axes. Continuous actions and their log-probabilities
are in the policy's own units, in which the environment's range is [-1, 1]; clipping and scaling happen at the
environment's door (`Box.from_unit`), so they change no probability.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.spaces import Box, Discrete

LOG_STD_MIN, LOG_STD_MAX = -3.0, 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """Over n actions, from `log_probs` (..., n), normalised; an invalid action's is a large negative number."""

    log_probs: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.log_probs).astype(jnp.int32)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # A one-hot product: its gradient is dense arithmetic, where a gather's would be a slow scatter.
        chosen = jax.nn.one_hot(action, self.log_probs.shape[-1], dtype=self.log_probs.dtype)
        return jnp.sum(chosen * self.log_probs, axis=-1)

    def entropy(self) -> jax.Array:
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, axis=-1)

    def kl_to(self, other: Categorical) -> jax.Array:
        """KL(self || other) (...,)."""
        return jnp.sum(jnp.exp(self.log_probs) * (self.log_probs - other.log_probs), axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normals with `mean` and `log_std` (..., d); a log-probability is the sum over d."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape, self.mean.dtype)

    def mode(self) -> jax.Array:
        return self.mean

    def log_prob(self, action: jax.Array) -> jax.Array:
        standardised = (action - self.mean) * jnp.exp(-self.log_std)
        return jnp.sum(-0.5 * standardised**2 - self.log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> jax.Array:
        return jnp.sum(self.log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl_to(self, other: DiagonalGaussian) -> jax.Array:
        """KL(self || other) (...,)."""
        variance_ratio = jnp.exp(2 * (self.log_std - other.log_std))
        distance = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(0.5 * (variance_ratio + distance - 1) + other.log_std - self.log_std, axis=-1)


Distribution = Categorical | DiagonalGaussian


def action_distribution(
    action_space: Discrete | Box, output: Any, action_mask: jax.Array | None = None
) -> Distribution:
    """The distribution that a policy's output describes.

    Args:
      action_space: of the environment.
      output: logits (..., n) for `Discrete(n)`; a pair of mean and log-std (..., *shape) for a `Box`, in policy units.
      action_mask: (..., n) bool, true where an action is valid; None where all are.
    """
    if isinstance(action_space, Discrete):
        logits = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        # Finite, so that an invalid action contributes 0 and not 0 * inf to entropy and KL, whether the environment rules
        # it out or the policy itself with a logit of -inf; the outer select stops its gradient too.
        floor = -1e9
        if action_mask is None:
            return Categorical(jnp.maximum(jax.nn.log_softmax(logits), floor))
        log_probs = jnp.maximum(jax.nn.log_softmax(jnp.where(action_mask, logits, floor)), floor)
        return Categorical(jnp.where(action_mask, log_probs, floor))
    mean, log_std = output
    flat = lambda x: x.astype(jnp.float32).reshape(*x.shape[: x.ndim - len(action_space.shape)], -1)  # noqa: E731
    mean, log_std = flat(mean), flat(log_std)
    return DiagonalGaussian(mean, jnp.clip(jnp.broadcast_to(log_std, mean.shape), LOG_STD_MIN, LOG_STD_MAX))
