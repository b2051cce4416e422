"""Converts the last layer of a network to the input of `action_distribution`, for any action space."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from haepo_jax.distributions import (
    LOG_STD_MAX,
    LOG_STD_MIN,
    DiagonalGaussian,
    TanhGaussian,
    action_distribution,
    is_distribution,
)
from haepo_jax.spaces import Box, Discrete, Leaf, Space, map_space, space_leaves


def action_size(action_space: Space, state_dependent_std: bool = False) -> int:
    """The number of outputs that a network needs for an action space."""
    parts = space_leaves(action_space)
    stds = [_size(part) for part in parts if isinstance(part, Box)] if state_dependent_std else []
    return sum(map(_size, parts)) + sum(stds)


def action_output(module: nn.Module, action_space: Space, output: jax.Array, state_dependent_std: bool = False) -> Any:
    """Converts a network's last layer (..., action_size) to the input of `action_distribution`.

    Call it in the compact method of `module`: the log-std is a parameter of the module, independent of the observation,
    or with `state_dependent_std` the last entries of `output`.
    """
    parts = space_leaves(action_space)
    num_continuous = sum(_size(part) for part in parts if isinstance(part, Box))
    # The log-std is squashed, not clipped: it has a gradient everywhere, so it can move away from a bound again.
    middle, half = (LOG_STD_MAX + LOG_STD_MIN) / 2, (LOG_STD_MAX - LOG_STD_MIN) / 2
    start = math.atanh(-middle / half)
    if not num_continuous:
        raw = jnp.zeros(0, jnp.float32)
    elif state_dependent_std:
        output, raw = output[..., :-num_continuous], output[..., -num_continuous:] + start
    else:
        raw = module.param("raw_log_std", nn.initializers.constant(start), (num_continuous,), jnp.float32)
    log_std = middle + half * nn.tanh(raw)

    taken, stds_taken = 0, 0
    outputs: list[Any] = []
    for part in parts:
        numbers = output[..., taken : taken + _size(part)]
        taken += _size(part)
        if isinstance(part, Box):
            stds = log_std[..., stds_taken : stds_taken + _size(part)]
            stds_taken += _size(part)
            outputs.append(tuple(x.reshape(*x.shape[:-1], *part.shape) for x in (numbers, stds)))
        else:
            outputs.append(numbers)
    remaining = iter(outputs)
    return map_space(lambda part: next(remaining), action_space)


def _size(part: Leaf) -> int:
    if isinstance(part, Box):
        return math.prod(part.shape)
    return part.n if isinstance(part, Discrete) else sum(part.sizes)


def squashed(action_space: Space, output: Any) -> Any:
    """A network's output, with mean and log-std of each continuous action replaced by a `TanhGaussian`."""
    return map_space(_squash, action_space, output)


def _squash(part: Leaf, output: Any) -> Any:
    if not isinstance(part, Box) or is_distribution(output):
        return output
    gaussian = action_distribution(part, output)
    assert isinstance(gaussian, DiagonalGaussian)
    return TanhGaussian(gaussian)
