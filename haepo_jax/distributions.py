"""Action distributions: categorical for `Discrete` and `MultiDiscrete` spaces, diagonal Gaussian, clipped or squashed
with tanh, for `Box` spaces, and products of these for dicts and tuples.

A distribution is a small pytree whose arrays may have any leading axes. Continuous actions and their log-probabilities
are in policy units, in which the environment's range is [-1, 1]. Actions are clipped and scaled only when they are
passed to the environment (`Box.from_unit`), so this changes no probability.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.spaces import Discrete, MultiDiscrete, Space, map_space

LOG_STD_MIN, LOG_STD_MAX = -3.0, 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Categorical:
    """A categorical distribution with normalised `log_probs` (..., n), large and negative for invalid actions."""

    log_probs: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        return jax.random.categorical(key, self.log_probs).astype(jnp.int32)

    def mode(self) -> jax.Array:
        return jnp.argmax(self.log_probs, axis=-1).astype(jnp.int32)

    def log_prob(self, action: jax.Array) -> jax.Array:
        # A one-hot product has a dense gradient; that of a gather would be a slow scatter.
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
    """Independent normal distributions with `mean` and `log_std` (..., d); log-probabilities are summed over d."""

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TanhGaussian:
    """The tanh of a `DiagonalGaussian`, with support [-1, 1] (Haarnoja et al. 2018, arXiv 1801.01290).

    Samples are kept `MARGIN` away from the bounds, where float32 is too coarse to invert tanh.
    """

    before: DiagonalGaussian

    MARGIN: ClassVar[float] = 1e-6

    def sample(self, key: jax.Array) -> jax.Array:
        return self._inside(jnp.tanh(self.before.sample(key)))

    def mode(self) -> jax.Array:
        """The tanh of the mean, which is the median; the maximum of the density may lie at a bound."""
        return self._inside(jnp.tanh(self.before.mean))

    def log_prob(self, action: jax.Array) -> jax.Array:
        raw = jnp.arctanh(self._inside(action))
        return self.before.log_prob(raw) - jnp.sum(_log_slope(raw), axis=-1)

    def entropy(self) -> jax.Array:
        """The Gaussian's entropy plus the mean log-derivative of tanh (no closed form), within 1e-3 up to a std of 5."""
        # The trapezoidal rule: for wide distributions Gauss-Hermite quadrature needs several times as many nodes.
        nodes = np.linspace(-4.5, 4.5, 32, dtype=np.float32)
        weights = np.exp(-(nodes**2) / 2)
        spread = jnp.exp(self.before.log_std)[..., None]
        raw = self.before.mean[..., None] + spread * nodes.reshape((1,) * (spread.ndim - 1) + (-1,))
        return self.before.entropy() + jnp.sum(_log_slope(raw) @ (weights / weights.sum()), axis=-1)

    def kl_to(self, other: TanhGaussian) -> jax.Array:
        """KL(self || other) (...,), equal to that of the Gaussians, as both are transformed by the same bijection."""
        return self.before.kl_to(other.before)

    def _inside(self, action: jax.Array) -> jax.Array:
        return jnp.clip(action, -1 + self.MARGIN, 1 - self.MARGIN)


def _log_slope(raw: jax.Array) -> jax.Array:
    """log(1 - tanh(raw)^2), computed without cancellation."""
    return 2 * (math.log(2) - raw - jax.nn.softplus(-2 * raw))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MultiCategorical:
    """Independent categorical distributions, one for each of the d integers of a `MultiDiscrete` action (..., d)."""

    each: Categorical  # (..., d, n), n the largest size

    def sample(self, key: jax.Array) -> jax.Array:
        return self.each.sample(key)

    def mode(self) -> jax.Array:
        return self.each.mode()

    def log_prob(self, action: jax.Array) -> jax.Array:
        return jnp.sum(self.each.log_prob(action), axis=-1)

    def entropy(self) -> jax.Array:
        return jnp.sum(self.each.entropy(), axis=-1)

    def kl_to(self, other: MultiCategorical) -> jax.Array:
        """KL(self || other) (...,)."""
        return jnp.sum(self.each.kl_to(other.each), axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factorised:
    """Independent distributions over the parts of a dict or tuple action; log-probability, entropy and KL are sums."""

    parts: Any  # in the structure of the action space, with a distribution for each part

    def sample(self, key: jax.Array) -> Any:
        parts, structure = jax.tree.flatten(self.parts, is_leaf=is_distribution)
        keys = jax.random.split(key, len(parts))
        return jax.tree.unflatten(structure, [part.sample(key) for part, key in zip(parts, keys, strict=True)])

    def mode(self) -> Any:
        return jax.tree.map(lambda part: part.mode(), self.parts, is_leaf=is_distribution)

    def log_prob(self, action: Any) -> jax.Array:
        return self._total(lambda part, x: part.log_prob(x), action)

    def entropy(self) -> jax.Array:
        return self._total(lambda part: part.entropy())

    def kl_to(self, other: Factorised) -> jax.Array:
        """KL(self || other) (...,)."""
        return self._total(lambda part, x: part.kl_to(x), other.parts)

    def _total(self, function: Callable[..., jax.Array], *counterparts: Any) -> jax.Array:
        terms = jax.tree.map(function, self.parts, *counterparts, is_leaf=is_distribution)
        return functools.reduce(jnp.add, jax.tree.leaves(terms))


class Distribution(Protocol):
    """An action distribution; a policy may return one directly instead of its parameters. It must be a pytree.

    Its arrays may have any leading axes (...), which all results share. `kl_to` is only called with the same type.
    Samples of a `Box` action are flat, (..., d), and in policy units.
    """

    def sample(self, key: jax.Array) -> Any: ...

    def mode(self) -> Any: ...

    def log_prob(self, action: Any) -> jax.Array: ...

    def entropy(self) -> jax.Array: ...

    def kl_to(self, other: Any) -> jax.Array: ...


def is_distribution(output: Any) -> bool:
    """Whether the output of a policy is already a distribution."""
    return hasattr(output, "log_prob")


def action_distribution(action_space: Space, output: Any, action_mask: Any = None) -> Distribution:
    """The action distribution described by the output of a policy.

    Args:
      action_space: the action space of the environment.
      output: logits (..., n) for `Discrete(n)`; for `MultiDiscrete` the concatenated logits of all its integers,
        (..., sum(sizes)); a pair of mean and log-std (..., *shape) for a `Box`, in policy units; dicts or tuples of
        these if the space is one. Each may be replaced by a `Distribution`.
      action_mask: bool, shaped like the logits, true for valid actions; None: all valid. Where none is, action 0 is
        certain. For dicts and tuples one per part.

    Raises:
      TypeError: a mask is given for an output that is already a distribution.
    """
    if is_distribution(output):
        if action_mask is not None:
            raise TypeError(f"the policy returned a {type(output).__name__}, which cannot be masked: return logits")
        return output
    if isinstance(action_space, Mapping | tuple):
        masks = map_space(lambda part: None, action_space) if action_mask is None else action_mask
        return Factorised(map_space(action_distribution, action_space, output, masks))
    if isinstance(action_space, MultiDiscrete):
        sizes = action_space.sizes
        if action_mask is None and min(sizes) < max(sizes):
            action_mask = jnp.ones(output.shape, bool)
        mask = None if action_mask is None else _rows(action_mask, sizes)
        each = action_distribution(Discrete(max(sizes)), _rows(output, sizes), mask)
        return MultiCategorical(cast(Categorical, each))
    if isinstance(action_space, Discrete):
        logits = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        # A finite floor, so that an action excluded by the environment's mask, or by a logit of -inf, contributes 0 and
        # not 0 * inf to entropy and KL; the outer select also stops its gradient.
        floor = -1e9
        if action_mask is None:
            return Categorical(jnp.maximum(jax.nn.log_softmax(logits), floor))
        # An agent that has finished may have no valid action. A certain one has a log-probability of 0, while the floor,
        # added to those of the other agents, would round them away.
        none = ~jnp.any(action_mask, axis=-1, keepdims=True)
        action_mask = jnp.concatenate([action_mask[..., :1] | none, action_mask[..., 1:]], axis=-1)
        log_probs = jnp.maximum(jax.nn.log_softmax(jnp.where(action_mask, logits, floor)), floor)
        return Categorical(jnp.where(action_mask, log_probs, floor))
    mean, log_std = output
    flat = lambda x: x.astype(jnp.float32).reshape(*x.shape[: x.ndim - len(action_space.shape)], -1)  # noqa: E731
    mean, log_std = flat(mean), flat(log_std)
    return DiagonalGaussian(mean, jnp.clip(jnp.broadcast_to(log_std, mean.shape), LOG_STD_MIN, LOG_STD_MAX))


def _rows(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Splits (..., sum(sizes)) into rows padded with zeros, (..., len(sizes), max(sizes))."""
    if min(sizes) == max(sizes):
        return x.reshape(*x.shape[:-1], len(sizes), sizes[0])
    parts = jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=-1)
    no_padding = [(0, 0)] * (x.ndim - 1)
    return jnp.stack([jnp.pad(part, [*no_padding, (0, max(sizes) - part.shape[-1])]) for part in parts], axis=-2)
