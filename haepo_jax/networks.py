"""Policies and value functions.

A policy is a pair of pure functions for one environment, which the library vmaps:

    init(key, observation) -> (params, carry)
    apply(params, carry, observation, is_first) -> (carry, output)

`is_first` is () for a single step and (T,) for a sequence, whose observations have a leading T axis. It marks the first
step of an episode, where a recurrent policy resets its carry. The carry of a feed-forward network is the empty tuple;
recurrent networks are in `haepo_jax.sequence_networks`. `output` is the input of `action_distribution`: logits (n,) for
a `Discrete` space, a pair of mean and log-std for a `Box`, or a custom distribution. A value function has the same form
and a scalar output.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from haepo_jax.action_outputs import action_output, action_size
from haepo_jax.sharding import environments_are_sharded
from haepo_jax.spaces import Box, Discrete, Leaf, MultiDiscrete, Space, frozen_space, space_leaves, with_axes

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {"tanh": nn.tanh, "relu": nn.relu, "swish": nn.swish}


class Policy(Protocol):
    """A policy or value function; see the module docstring. It must be hashable, as it is a compile-time constant."""

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]: ...

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]: ...


RECOMPUTE_ABOVE = {"cpu": 2**14, "default": 2**19}
"""Above this number of steps, activations of feed-forward policies are recomputed for the gradient, not stored. A CPU is as fast
with chunks that fit its caches; an accelerator starts every kernel once per chunk, and has the memory: about a gigabyte for
2**19 steps of the default networks. Its number is for observations of up to 64 values and shrinks in proportion for larger
ones, down to a CPU's, since an image's activations are as large as the image. Vmapped configurations multiply the memory."""


def each_step(function: Callable[[Any], Any], inputs: Any, num_axes: int) -> Any:
    """Applies a feed-forward `function` to every step of a pytree `inputs` whose first `num_axes` axes are step axes.

    The steps are flattened to one axis, so that each layer is one matrix product; with several axes XLA would transpose
    the activations. Above the platform's `RECOMPUTE_ABOVE` they are processed in chunks whose activations are recomputed in
    the backward pass: only one chunk is in memory, for a third more computation. With environments sharded over devices
    there is no chunking: consecutive steps lie on one device, so every device would gather and compute all of them.
    """
    shape = jax.tree.leaves(inputs)[0].shape[:num_axes]
    steps = math.prod(shape)
    flat = jax.tree.map(lambda x: x.reshape(steps, *x.shape[num_axes:]), inputs)
    values = sum(math.prod(x.shape[num_axes:]) for x in jax.tree.leaves(inputs))
    cpu, default = RECOMPUTE_ABOVE["cpu"], RECOMPUTE_ABOVE["default"] * 64 // max(64, values)
    limits = {"cpu": cpu, "default": max(cpu, default)}

    def at_once(flat: Any) -> Any:
        return jax.vmap(function)(flat)

    def in_chunks(flat: Any, limit: int) -> Any:
        if steps <= limit:
            return at_once(flat)
        fewest = -(-steps // limit)
        # Equal chunks where possible: a remainder would make XLA copy all other steps.
        even = (steps // chunks for chunks in range(fewest, 2 * fewest) if steps % chunks == 0)
        return jax.lax.map(jax.checkpoint(function), flat, batch_size=next(even, limit))

    if steps <= cpu or environments_are_sharded():
        outputs = at_once(flat)
    else:
        ways = {name: functools.partial(in_chunks, limit=limit) for name, limit in limits.items()}
        outputs = jax.lax.platform_dependent(flat, **ways)
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), outputs)


@dataclasses.dataclass(frozen=True)
class LinenPolicy:
    """A Flax Linen module that maps an observation to an output, with any leading axes."""

    module: nn.Module

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        variables = self.module.init(key, observation)
        if others := ", ".join(sorted({*variables} - {"params"})):
            raise TypeError(
                f"a Linen policy may only have params, not {others}: no BatchNorm statistics or other state"
            )
        return variables, ()

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        return carry, self.module.apply(params, observation)


@dataclasses.dataclass(frozen=True)
class NNXPolicy:
    """A Flax NNX module class or factory, `create(rngs) -> module`; the module maps an observation to an output."""

    create: Callable[..., nnx.Module]

    def _create(self, rngs: nnx.Rngs) -> nnx.Module:
        create: Any = self.create.func if isinstance(self.create, functools.partial) else self.create
        # The metaclass of NNX hides the signature of a class. The argument is often keyword-only.
        called = create.__init__ if isinstance(create, type) else create  # type: ignore[misc]
        parameters = inspect.signature(called).parameters
        by_name = "rngs" in parameters and parameters["rngs"].kind is not inspect.Parameter.POSITIONAL_ONLY
        return self.create(rngs=rngs) if by_name else self.create(rngs)

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        return nnx.state(self._create(nnx.Rngs(key)), nnx.Param), ()

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        abstract = nnx.eval_shape(lambda: self._create(nnx.Rngs(0)))
        graph, state = nnx.split(abstract)
        if len(jax.tree.leaves(state)) != len(jax.tree.leaves(params)):
            raise TypeError(
                "an NNX policy may only have nnx.Param variables: no BatchNorm statistics, Dropout or random state"
            )
        return carry, nnx.merge(graph, params)(observation)


def as_policy(policy: Any) -> Policy:
    """Converts a user's policy to a `Policy`.

    Args:
      policy: a Flax Linen module; a Flax NNX module class (or any function) that takes `rngs` and returns a module; or
        an object with `init` and `apply`, which is returned unchanged.

    Raises:
      TypeError: for anything else, including an NNX instance, which holds one set of weights, while seeds need several.
    """
    if isinstance(policy, nn.Module):
        try:
            hash(policy)
        except TypeError:
            name = type(policy).__name__
            raise TypeError(
                f"policy={name} must be hashable: give its attributes as tuples, not as lists or dicts"
            ) from None
        return LinenPolicy(policy)
    if isinstance(policy, type) and issubclass(policy, nn.Module):
        raise TypeError(f"policy={policy.__name__} is a Flax Linen class; pass an instance of it")
    if isinstance(policy, nnx.Module):
        raise TypeError(
            f"policy={type(policy).__name__} is an NNX module that is already initialised; "
            "pass a function of rngs that creates it, such as lambda rngs: MyModule(rngs=rngs)"
        )
    if callable(getattr(policy, "init", None)) and callable(getattr(policy, "apply", None)):
        return policy
    if callable(policy):
        return NNXPolicy(policy)
    raise TypeError(
        f"policy={policy!r} must be a Flax Linen module, a function rngs -> Flax NNX module, or an object with init and apply"
    )


class Encoder(nn.Module):
    """Encodes an observation of any space as a feature vector, (..., *shape) -> (..., features) float32.

    `Discrete` and `MultiDiscrete` values become one-hot, other integers are scaled from their bounds to [-1, 1]; images
    (three axes) pass through convolutions; everything else is flattened. The parts of a dict or tuple are concatenated.
    """

    space: Space

    @nn.compact
    def __call__(self, observation: Any) -> jax.Array:
        pairs = zip(space_leaves(self.space), jax.tree.leaves(observation), strict=True)
        return jnp.concatenate([self._encode(space, x) for space, x in pairs], axis=-1)

    def _encode(self, space: Leaf, x: jax.Array) -> jax.Array:
        if isinstance(space, Discrete):
            return jax.nn.one_hot(x, space.n, dtype=jnp.float32)
        if isinstance(space, MultiDiscrete):
            return jnp.concatenate(
                [jax.nn.one_hot(x[..., i], n, dtype=jnp.float32) for i, n in enumerate(space.sizes)], axis=-1
            )
        lead = x.shape[: x.ndim - len(space.shape)]
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = _scale_integers(space, x)
        x = x.astype(jnp.float32)
        if len(space.shape) == 3:
            # As in MinAtar: one 3x3 convolution with 16 channels, after strided convolutions that shrink larger images.
            x = x.reshape(-1, *space.shape)
            while max(x.shape[1:3]) > 16 and min(x.shape[1:3]) >= 3:
                x = nn.relu(nn.Dense(16)(_windows(x, stride=2)))
            if min(x.shape[1:3]) >= 3:
                x = nn.relu(nn.Dense(16)(_windows(x, stride=1)))
        return x.reshape(*lead, math.prod(x.shape[1:]) if len(space.shape) == 3 else math.prod(space.shape))


def _scale_integers(space: Box, x: jax.Array) -> jax.Array:
    """Scales the bounded elements to [-1, 1], (..., *shape) float32."""
    bounded = space.bounded_elements
    if not bounded.any():
        return x.astype(jnp.float32)

    low, high = (
        with_axes(np.where(bounded, bound, 0.0).astype(np.float32), x.ndim) for bound in (space.low, space.high)
    )
    raw = x.astype(jnp.float32)
    scaled = 2 * (raw - low) / jnp.maximum(high - low, 1) - 1
    return scaled if bounded.all() else jnp.where(with_axes(bounded, x.ndim), scaled, raw)


def _windows(x: jax.Array, stride: int) -> jax.Array:
    """3x3 patches without padding, (N, H, W, C) -> (N, H', W', 9 C); a dense layer on them is a convolution.

    As a matrix product it trains several times faster on a CPU than XLA's convolution under vmap.
    """
    height, width = x.shape[1] - 2, x.shape[2] - 2
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)


def orthogonal(gain: float) -> Callable[..., jax.Array]:
    """Initialiser: `gain` times a uniformly random matrix with orthonormal rows or columns (Saxe et al. 2014).

    Computes the polar factor of a Gaussian matrix by Newton's iteration x <- 3/2 x - 1/2 x x'x, which has the same
    distribution as the usual QR factor. Batched over seeds, QR is slow on accelerators, and on a CPU two QR
    decompositions at once can deadlock (seen with jaxlib 0.10.2 on two cores); matrix products avoid both.
    """

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        short, long = sorted(shape)
        # Singular values start in (0, 1.5) and converge to 1; small ones grow by half per step. 30 steps suffice for
        # all but one matrix in a hundred thousand.
        x = jax.random.normal(key, (long, short), jnp.float32) / (math.sqrt(long) + math.sqrt(short))
        x = jax.lax.fori_loop(0, 30, lambda _, x: 1.5 * x - 0.5 * x @ (x.T @ x), x)
        return (gain * (x if shape == (long, short) else x.T)).astype(dtype)

    return initialize


def hidden_layers(x: jax.Array, sizes: Sequence[int], activation: str, layer_norm: bool) -> jax.Array:
    """Dense layers with orthogonal weights of gain sqrt(2), (..., n) -> (..., sizes[-1]); for a compact method."""
    for size in sizes:
        x = nn.Dense(size, kernel_init=orthogonal(math.sqrt(2)))(x)
        x = ACTIVATIONS[activation](nn.LayerNorm()(x) if layer_norm else x)
    return x


class MLP(nn.Module):
    """Encoder, hidden layers and a linear output with `output_gain`: observation -> output and last hidden layer."""

    space: Space
    num_outputs: int
    hidden_sizes: Sequence[int]
    activation: str
    layer_norm: bool
    output_gain: float

    @nn.compact
    def __call__(self, observation: Any) -> tuple[jax.Array, jax.Array]:
        x = hidden_layers(Encoder(self.space)(observation), self.hidden_sizes, self.activation, self.layer_norm)
        return nn.Dense(self.num_outputs, kernel_init=orthogonal(self.output_gain))(x), x


class ActionNetwork(nn.Module):
    """The default policy network: observation -> input of `action_distribution`; see `action_output` for the log-std.
    With `with_features` it also returns the last hidden layer. Without an action space it is the default value function,
    observation -> (...,)."""

    observation_space: Space
    action_space: Space | None
    hidden_sizes: Sequence[int]
    activation: str
    layer_norm: bool = False
    state_dependent_std: bool = False
    with_features: bool = False

    @nn.compact
    def __call__(self, observation: Any) -> Any:
        hidden = self.hidden_sizes, self.activation, self.layer_norm
        if self.action_space is None:
            return MLP(self.observation_space, 1, *hidden, 1.0)(observation)[0][..., 0]
        size = action_size(self.action_space, self.state_dependent_std)
        # A small gain gives a nearly uniform initial policy.
        output, features = MLP(self.observation_space, size, *hidden, 0.01)(observation)
        output = action_output(self, self.action_space, output, self.state_dependent_std)
        return (output, features) if self.with_features else output


def default_network(
    observation_space: Space,
    action_space: Space | None,
    hidden_sizes: tuple[int, ...],
    activation: str,
    layer_norm: bool = False,
    state_dependent_std: bool = False,
    with_features: bool = False,
) -> Policy:
    """The default policy, or value function if `action_space` is None; see `ActionNetwork`."""
    spaces = frozen_space(observation_space), frozen_space(action_space)
    return LinenPolicy(ActionNetwork(*spaces, hidden_sizes, activation, layer_norm, state_dependent_std, with_features))


_VALUE_HEAD = nn.Dense(1, kernel_init=orthogonal(1.0))


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """A policy and a value function, combined as a `Policy` whose output is a pair of policy output and value.

    Parameters are {"policy": ..., "value": ...}; the carry is the pair of both carries.

    Attributes:
      policy: the policy.
      value: the value function; None: a linear function of the features that `policy` returns along with its output, so
        that both share the hidden layers.
    """

    policy: Policy
    value: Policy | None

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        policy_key, value_key = jax.random.split(key)
        policy, carry = self.policy.init(policy_key, observation)
        if self.value is None:
            features = jax.eval_shape(self.policy.apply, policy, carry, observation, jnp.bool_(True))[1][1]
            value, value_carry = _VALUE_HEAD.init(value_key, jnp.zeros(features.shape, features.dtype)), ()
        else:
            value, value_carry = self.value.init(value_key, observation)
        return {"policy": policy, "value": value}, (carry, value_carry)

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        policy_carry, output = self.policy.apply(params["policy"], carry[0], observation, is_first)
        if self.value is None:
            output, features = output
            value: Any = _VALUE_HEAD.apply(params["value"], features)
            return (policy_carry, ()), (output, value[..., 0])
        value_carry, value = self.value.apply(params["value"], carry[1], observation, is_first)
        return (policy_carry, value_carry), (output, value)

    def value_of(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        """Like `apply`, but only the value is computed and returned; the carry of a separate policy stays unchanged."""
        if self.value is None:
            carry, (_, value) = self.apply(params, carry, observation, is_first)
            return carry, value
        value_carry, value = self.value.apply(params["value"], carry[1], observation, is_first)
        return (carry[0], value_carry), value
