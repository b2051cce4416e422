"""Recurrent policies and value functions: GRU, LSTM and a causal transformer.

All have the form of `haepo_jax.networks.Policy`. In the rollout they process one step at a time and pass a carry along;
in `learn` they process a whole sequence at once. A recurrent cell is scanned over time. The transformer carries a cache
of keys and values from step to step, and processes a sequence in one parallel pass with the same results.

A sequence that begins mid-episode, like PPO's segments, continues from the carry; no gradient flows into the carry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.action_outputs import action_output, action_size
from haepo_jax.networks import Encoder, Policy, hidden_layers, orthogonal
from haepo_jax.spaces import Space, frozen_space

_CELLS: dict[str, Any] = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class Recurrent(nn.Module):
    """Dense layers, then a recurrent `cell` ("gru" or "lstm") whose size is the last of `hidden_sizes`.

    The carry is that of Flax: (size,) for a GRU, a pair of them for an LSTM.
    """

    cell: str
    hidden_sizes: Sequence[int]
    activation: str = "tanh"
    layer_norm: bool = False

    def initial_carry(self) -> Any:
        """Zeros."""
        return self._cell(parent=None).initialize_carry(jax.random.key(0), (1,))

    @nn.compact
    def __call__(self, carry: Any, x: jax.Array, is_first: jax.Array) -> tuple[Any, jax.Array]:
        """Features of one step (n,), with is_first (), or of a sequence (T, n), with is_first (T,)."""
        x = hidden_layers(x, self.hidden_sizes[:-1], self.activation, self.layer_norm)

        def step(cell: nn.RNNCellBase, carry: Any, now: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            x, is_first = now
            return cell(jax.tree.map(lambda old: jnp.where(is_first, 0, old), carry), x)

        if jnp.ndim(is_first):
            step = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        return step(self._cell(), carry, (x, jnp.asarray(is_first)))

    def _cell(self, **options: Any) -> nn.RNNCellBase:
        # The QR decomposition in Flax's orthogonal initialiser can deadlock; see `orthogonal`.
        cell: nn.RNNCellBase = _CELLS[self.cell](
            self.hidden_sizes[-1], recurrent_kernel_init=orthogonal(1.0), **options
        )
        return cell


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The key-value cache of a transformer: a ring buffer of the last C steps, with position p in slot p % C.

    Attributes:
      position: () int32, number of steps of the episode so far.
      keys, values: for each layer (C, heads, width / heads). Slots not yet filled in this episode have arbitrary
        contents; which ones are filled follows from `position`.
    """

    position: jax.Array
    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Transformer(nn.Module):
    """Pre-norm blocks of causal self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864).

    Attributes:
      width: width of every block; its MLP is four times as wide.
      num_layers: number of blocks.
      num_heads: attention heads per block; `width / num_heads` must be even.
      context: C, attention window of a block in steps, including the current one; windows of stacked blocks add up.
    """

    width: int
    num_layers: int
    num_heads: int
    context: int

    def initial_carry(self) -> Cache:
        """An empty cache."""
        empty = (
            jnp.zeros((self.context, self.num_heads, self.width // self.num_heads), jnp.float32),
        ) * self.num_layers
        return Cache(jnp.int32(0), empty, empty)

    @nn.compact
    def __call__(self, carry: Cache, x: jax.Array, is_first: jax.Array) -> tuple[Cache, jax.Array]:
        """Features of one step (n,), with is_first (), or of a sequence (T, n), with is_first (T,)."""
        one_step = jnp.ndim(is_first) == 0
        # If `is_first` is a compile-time constant and true at the start, the cache is known to be empty.
        from_start = not one_step and isinstance(is_first, np.ndarray) and bool(is_first[0])
        x = nn.Dense(self.width)(x[None] if one_step else x)
        times, slots = jnp.arange(x.shape[0], dtype=jnp.int32), jnp.arange(self.context, dtype=jnp.int32)
        # The time at which the episode of each step began; -1: before this sequence.
        start = jax.lax.cummax(jnp.where(is_first, times, -1))
        position = times - start + jnp.where(start < 0, carry.position - 1, 0)
        # The position in each cache slot at the end of the sequence, and its time in the sequence.
        latest = position[-1] - (position[-1] - slots) % self.context
        written = latest - position[-1] + times[-1]

        if one_step:
            visible = (latest >= 0)[None]
        else:
            age = times[:, None] - times[None]
            visible = (age >= 0) & (age < self.context) & (start[:, None] == start[None])
            if not from_start:
                held = carry.position - 1 - (carry.position - 1 - slots) % self.context
                recent = position[:, None] - held[None] < self.context
                visible = jnp.concatenate([(start < 0)[:, None] & (held >= 0)[None] & recent, visible], axis=1)

        def update_cache(cache: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
            """The cache after the sequence, and the keys or values that the sequence attends to."""
            here = (written >= 0)[:, None, None]
            cache_after = jnp.where(here, new[jnp.maximum(written, 0)] if len(times) > 1 else new, cache)
            if one_step:
                return cache_after, cache_after
            return cache_after, new if from_start else jnp.concatenate([cache, new])

        keys, values = [], []
        for layer in range(self.num_layers):
            normed = nn.LayerNorm(name=f"attention_norm_{layer}")(x)
            query, key, value = (
                nn.DenseGeneral((self.num_heads, self.width // self.num_heads), name=f"{name}_{layer}")(normed)
                for name in ("query", "key", "value")
            )
            key, seen_keys = update_cache(carry.keys[layer], _rotate(key, position))
            value, seen_values = update_cache(carry.values[layer], value)
            keys.append(key)
            values.append(value)
            attended = jax.nn.dot_product_attention(
                _rotate(query, position), seen_keys, seen_values, mask=visible[None, None]
            )
            x = x + nn.DenseGeneral(self.width, axis=(-2, -1), name=f"out_{layer}")(attended)
            hidden = nn.Dense(4 * self.width, name=f"up_{layer}")(nn.LayerNorm(name=f"norm_{layer}")(x))
            x = x + nn.Dense(self.width, name=f"down_{layer}")(nn.gelu(hidden))
        x = nn.LayerNorm()(x)
        return Cache(position[-1] + 1, tuple(keys), tuple(values)), x[0] if one_step else x


def _rotate(x: jax.Array, position: jax.Array) -> jax.Array:
    """Rotary embedding of x (T, heads, n): rotates pairs (x[i], x[i + n/2]) by position (T,) times their frequency."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[:, None, None].astype(jnp.float32) * frequency[None, None]
    left, right = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)


class SequenceNetwork(nn.Module):
    """Encoder, recurrent body and linear output: a policy, or a value function if `action_space` is None.

    Attributes:
      observation_space: of the environment, hashable.
      action_space: of the environment, hashable, or None.
      body: `Recurrent`, `Transformer` or any module with the same two methods.
      state_dependent_std: whether the standard deviation of continuous actions depends on the features.
      with_features: whether to return a pair of policy output and features.
    """

    observation_space: Space
    action_space: Space | None
    body: Any
    state_dependent_std: bool = False
    with_features: bool = False

    @nn.compact
    def __call__(self, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        carry, features = self.body(carry, Encoder(self.observation_space)(observation), is_first)
        if self.action_space is None:
            return carry, nn.Dense(1, kernel_init=orthogonal(1.0))(features)[..., 0]
        size = action_size(self.action_space, self.state_dependent_std)
        output = nn.Dense(size, kernel_init=orthogonal(0.01))(features)
        output = action_output(self, self.action_space, output, self.state_dependent_std)
        return carry, (output, features) if self.with_features else output


@dataclasses.dataclass(frozen=True)
class SequencePolicy:
    """A `SequenceNetwork` as a policy or value function of one environment."""

    network: SequenceNetwork

    def init(self, key: jax.Array, observation: Any) -> tuple[Any, Any]:
        carry = self.network.body.initial_carry()
        return self.network.init(key, carry, observation, jnp.bool_(True)), carry

    def apply(self, params: Any, carry: Any, observation: Any, is_first: jax.Array) -> tuple[Any, Any]:
        carry, output = self.network.apply(params, carry, observation, is_first)
        return carry, output


def sequence_policy(
    kind: str,
    observation_space: Space,
    action_space: Space | None,
    *,
    hidden_sizes: tuple[int, ...],
    activation: str = "tanh",
    layer_norm: bool = False,
    num_heads: int = 4,
    context: int = 64,
    state_dependent_std: bool = False,
    with_features: bool = False,
) -> Policy:
    """A "gru", "lstm" or "transformer" policy, or value function if `action_space` is None."""
    body: nn.Module = (
        Transformer(hidden_sizes[0], len(hidden_sizes), num_heads, context)
        if kind == "transformer"
        else Recurrent(kind, hidden_sizes, activation, layer_norm)
    )
    spaces = frozen_space(observation_space), frozen_space(action_space)
    return SequencePolicy(SequenceNetwork(*spaces, body, state_dependent_std, with_features))
