"""Checks, at construction, that networks and their options match the environment's spaces."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.action_outputs import action_size
from haepo_jax.algorithms.fields import HyperparameterError
from haepo_jax.distributions import is_distribution
from haepo_jax.networks import Policy
from haepo_jax.spaces import Box, Discrete, Leaf, MultiDiscrete, Space, frozen_space, map_space, space_leaves


def check_networks(env: Any, policy: Any, value: Any) -> None:
    """Raises ValueError, with a one-line message, if the output of a network does not match the spaces of `env`, and TypeError
    if a network is not hashable."""
    for name, network in (("policy", policy), ("value", value)):
        if type(network).__hash__ is None:
            raise TypeError(
                f"{name}={type(network).__name__} must be hashable, for instance by @dataclass(frozen=True)"
            )
    spaces = frozen_space(env.observation_space), frozen_space(env.action_space)
    if policy and (fault := _policy_fault(policy, *spaces)):
        raise ValueError(f"policy= does not fit {env.name}: {fault}")
    if value and (fault := _value_fault(value, spaces[0])):
        raise ValueError(f"value= does not fit {env.name}: {fault}")


def check_action_options(env: Any, squash_actions: bool, state_dependent_std: bool) -> None:
    """Raises HyperparameterError if an option for continuous actions is set, but `env` has none or unbounded ones."""
    boxes = [part for part in space_leaves(env.action_space) if isinstance(part, Box)]
    for name, option in (("squash_actions", squash_actions), ("state_dependent_std", state_dependent_std)):
        if option and not boxes:
            raise HyperparameterError(f"{name}=true requires continuous actions, but {env.name} has discrete ones")
    if squash_actions and not all(box.bounded for box in boxes):
        raise HyperparameterError(
            f"squash_actions=true requires bounded actions, but those of {env.name} are unbounded"
        )


@functools.lru_cache(maxsize=256)
def _policy_fault(policy: Policy, observation_space: Space, action_space: Space) -> str:
    output = _output(policy, observation_space)
    if output is None or is_distribution(output):
        return ""
    try:
        faults: list[str] = []
        map_space(lambda part, given: faults.append(_part_fault(part, given)), action_space, output)
        return next(filter(None, faults), "")
    except (TypeError, KeyError, ValueError, IndexError):
        wanted = map_space(_wanted, action_space)
        return f"its output must have the structure of the action space, {wanted}, but is {_shapes(output)}"


@functools.lru_cache(maxsize=256)
def _value_fault(value: Policy, observation_space: Space) -> str:
    output = _output(value, observation_space)
    if output is None or getattr(output, "shape", None) == ():
        return ""
    return f"its output must be a scalar, of shape (), but is {_shapes(output)}"


def _output(network: Policy, observation_space: Space) -> Any:
    """The shapes of a network's output for one observation, or None if the network cannot be traced."""
    observation = map_space(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), observation_space)

    def run(key: jax.Array, observation: Any) -> Any:
        params, carry = network.init(key, observation)
        return network.apply(params, carry, observation, jnp.bool_(True))[1]

    try:
        return jax.eval_shape(run, jax.random.key(0), observation)
    except Exception:  # `init` will raise it again, with the user's traceback
        return None


def _part_fault(part: Leaf, output: Any) -> str:
    if is_distribution(output):
        fits = True
    elif not isinstance(part, Box):
        fits = getattr(output, "shape", None) == (action_size(part),)
    elif isinstance(output, tuple | list) and len(output) == 2:
        mean, log_std = (getattr(one, "shape", None) for one in output)
        fits = mean == part.shape and log_std in (part.shape, (1,) * len(part.shape))
    else:
        fits = False
    return "" if fits else f"for {_named(part)} its output must be {_wanted(part)}, but is {_shapes(output)}"


def _wanted(part: Leaf) -> str:
    if isinstance(part, Box):
        return f"a pair of mean and log-std of shape {part.shape}"
    return f"logits of shape ({action_size(part)},)"


def _named(part: Leaf) -> str:
    if isinstance(part, Discrete):
        return f"{part.n} discrete actions"
    return f"MultiDiscrete{part.sizes}" if isinstance(part, MultiDiscrete) else f"a Box of shape {part.shape}"


def _shapes(output: Any) -> Any:
    """The shapes of an output's arrays, in the structure of the output."""
    if isinstance(output, tuple | list):
        return "(" + ", ".join(str(_shapes(part)) for part in output) + ")"
    if hasattr(output, "items"):
        return "{" + ", ".join(f"{name!r}: {_shapes(part)}" for name, part in output.items()) + "}"
    return f"of shape {output.shape}" if hasattr(output, "shape") else type(output).__name__
