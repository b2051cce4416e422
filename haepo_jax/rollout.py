"""Rollouts: complete episodes for trajectory methods, fixed-length segments with auto-reset for PPO and HAEPO.

Environments and policies are functions for one environment; here they are vmapped over B environments that step in
lockstep. The randomness of each environment is derived from its own key and step number, so its results depend neither
on the number of parallel environments nor on how a run is split into calls.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import has_action_mask
from haepo_jax.sharding import shard_environments
from haepo_jax.spaces import Box, Leaf, map_space
from haepo_jax.unbatched import any_in_batch

Act = Callable[[Any, Any, jax.Array, Any, jax.Array], tuple[Any, jax.Array, Any]]
"""(carry, observation, is_first, action_mask, key) -> (carry, action, extras): selects an action in one environment.
The action is in policy units; `extras` is any pytree to store with it, such as its log-probability."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Steps with leading axes (T, B), time first.

    Attributes:
      observation: the observation before the action, in the environment's dtype.
      action: in policy units, shaped like the action space.
      reward: float32.
      mask: true for valid steps, up to and including the last of an episode; all other arrays are 0 where it is false.
      action_mask: valid actions (see `Environment`), or None if the environment has no action mask.
      extras: the extras that the policy returned with the action.
    """

    observation: Any
    action: Any
    reward: jax.Array
    mask: jax.Array
    action_mask: Any
    extras: Any

    @property
    def decisions(self) -> jax.Array:
        """The valid steps that count in a loss: not those with a single valid action and no reward, as in a prompt.

        If actions have several parts, every valid step counts.
        """
        if not isinstance(self.action_mask, jax.Array):
            return self.mask
        return self.mask & ((jnp.sum(self.action_mask, axis=-1) > 1) | (self.reward != 0))


def environment_keys(key: jax.Array, num_envs: int) -> jax.Array:
    """One PRNG key per environment, (num_envs,)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_envs, dtype=jnp.int32))


def collect_episodes(
    env: Any,
    act: Act,
    initial_carry: Any,
    reset_keys: jax.Array,
    step_keys: jax.Array,
    *,
    record: bool = True,
    max_steps: int | None = None,
) -> tuple[Trajectory | None, jax.Array, jax.Array]:
    """Collects one complete episode per environment; stops when the last one ends.

    Args:
      env: an `Environment`.
      act: the policy.
      initial_carry: initial policy carry of one environment.
      reset_keys: (B,); environments with equal keys start in the same state.
      step_keys: (B,), for actions and transitions.
      record: whether to store the steps; evaluation only needs returns and lengths.
      max_steps: limit on the episode length, if less than env.horizon.

    Returns:
      The steps (T, B) or None; returns (B,) float32; lengths (B,) int32. T is the smaller of env.horizon and max_steps;
      episodes still running after T steps are cut off.
    """
    horizon = env.horizon if max_steps is None else min(env.horizon, max_steps)
    num_envs = reset_keys.shape[0]
    state, observation = shard_environments(jax.vmap(env.reset)(reset_keys))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), initial_carry)
    one_step = jax.vmap(lambda *args: _step(env, act, *args), in_axes=(0, 0, 0, None, 0, 0))

    def step(loop: _Loop) -> _Loop:
        is_first = loop.time == 0
        keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys, loop.time)
        stepped = one_step(loop.state, loop.observation, loop.carry, is_first, loop.alive, keys)
        buffers = jax.tree.map(
            lambda buffer, x: buffer.at[loop.time].set(x), loop.buffers, stepped.transition if record else None
        )
        return _Loop(
            time=loop.time + 1,
            state=stepped.state,
            observation=stepped.observation,
            carry=stepped.carry,
            alive=loop.alive & ~stepped.done,
            buffers=buffers,
            returns=loop.returns + stepped.transition.reward,
            lengths=loop.lengths + loop.alive.astype(jnp.int32),
        )

    alive = jnp.ones(num_envs, bool)
    buffers = None
    if record:
        shapes = jax.eval_shape(one_step, state, observation, carry, jnp.bool_(True), alive, step_keys).transition
        buffers = jax.tree.map(lambda x: jnp.zeros((horizon, *x.shape), x.dtype), shapes)
    start = _Loop(
        time=jnp.int32(0), state=state, observation=observation, carry=carry, alive=alive, buffers=buffers,
        returns=jnp.zeros(num_envs, jnp.float32), lengths=jnp.zeros(num_envs, jnp.int32),
    )  # fmt: skip
    end = jax.lax.while_loop(lambda loop: (loop.time < horizon) & any_in_batch(loop.alive), step, start)
    return end.buffers, end.returns, end.lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Loop:
    time: jax.Array
    state: Any
    observation: Any
    carry: Any
    alive: jax.Array
    buffers: Trajectory | None
    returns: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Stepped:
    transition: Trajectory
    state: Any
    observation: Any
    carry: Any
    terminated: jax.Array
    truncated: jax.Array

    @property
    def done(self) -> jax.Array:
        return self.terminated | self.truncated


def _step(
    env: Any, act: Act, state: Any, observation: Any, carry: Any, is_first: jax.Array, alive: jax.Array, key: jax.Array
) -> _Stepped:
    """One action and one transition of one environment; the transition is set to 0 after the end of the episode."""
    action_key, env_key = jax.random.split(key)
    action_mask = env.action_mask(state) if has_action_mask(env) else None
    carry, action, extras = act(carry, observation, is_first, action_mask, action_key)
    after = env.step(env_key, state, to_env_action(env, action))
    masked = lambda tree: jax.tree.map(lambda x: jnp.where(alive, x, jnp.zeros_like(x)), tree)  # noqa: E731
    transition = Trajectory(
        observation=masked(observation), action=masked(action), reward=masked(after.reward), mask=alive,
        action_mask=masked(action_mask), extras=masked(extras),
    )  # fmt: skip
    return _Stepped(transition, after.state, after.observation, carry, after.terminated, after.truncated)


def to_env_action(env: Any, action: Any) -> Any:
    """Converts an action from policy units to those of the environment."""

    def convert(space: Leaf, x: jax.Array) -> jax.Array:
        return space.from_unit(x.reshape(space.shape)) if isinstance(space, Box) else x

    return map_space(convert, env.action_space, action)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """B running environments, with leading axis B.

    Each environment keeps one spare initial state, drawn from its own key and episode number, and uses it when its
    episode ends. Used spares are redrawn, all at once, only when an episode ends without one. So every episode starts
    from a fresh initial state, but few steps pay for a reset.
    """

    state: Any
    observation: Any
    carry: Any
    is_first: jax.Array
    spare: tuple[Any, Any]
    spare_used: jax.Array
    episodes: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """A `Trajectory` (T, B) with episode boundaries.

    Attributes:
      steps: the trajectory; its mask is false only for steps with a non-finite reward or next observation, which
        terminate their episode.
      is_first: (T, B), true at the first step of an episode.
      terminated, truncated: (T, B), whether the episode terminated or was truncated after this step; never both.
      final_value: (T, B), value of the final observation of a truncated episode; 0 elsewhere.
      episode_return, episode_length: (T, B), of the episode that ended after this step; 0 elsewhere. None in a replay
        buffer.
    """

    steps: Trajectory
    is_first: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_value: jax.Array
    episode_return: Any
    episode_length: Any


def start_environments(env: Any, initial_carry: Any, reset_key: jax.Array, num_envs: int) -> RolloutState:
    """Resets the environments for their first episode; pass the same `reset_key` to every `collect_segment`."""
    state, observation = _draw_starts(env, reset_key, jnp.zeros(num_envs, jnp.int32))
    spare = _draw_starts(env, reset_key, jnp.ones(num_envs, jnp.int32))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), initial_carry)
    return RolloutState(
        state=state, observation=observation, carry=carry, is_first=jnp.ones(num_envs, bool), spare=spare,
        spare_used=jnp.zeros(num_envs, bool), episodes=jnp.zeros(num_envs, jnp.int32),
        episode_return=jnp.zeros(num_envs, jnp.float32), episode_length=jnp.zeros(num_envs, jnp.int32),
    )  # fmt: skip


def collect_segment(
    env: Any,
    act: Act,
    value: Callable[[Any, Any], jax.Array],
    state: RolloutState,
    reset_key: jax.Array,
    step_keys: jax.Array,
    num_steps: int,
) -> tuple[Segment, RolloutState]:
    """Steps every environment `num_steps` times; resets it when an episode ends or reaches `env.horizon`.

    Args:
      env: an `Environment`.
      act: the policy.
      value: (carry, observation) -> (), the value function of one environment; used only where an episode is truncated.
      state: from `start_environments` or the previous segment.
      reset_key: key of the initial states.
      step_keys: (B,), for actions and transitions; new for every segment.
      num_steps: T.
    """
    one_step = jax.vmap(lambda *args: _step(env, act, *args))
    state = shard_environments(state)
    alive = jnp.ones_like(state.is_first)
    horizon = min(int(env.horizon), 2**31 - 1)
    packs = num_steps * len(alive) <= PACK_UP_TO

    def step(before: RolloutState, time: jax.Array) -> tuple[RolloutState, Any]:
        keys = jax.vmap(jax.random.fold_in, (0, None))(step_keys, time)
        stepped = one_step(before.state, before.observation, before.carry, before.is_first, alive, keys)
        invalid = ~(jnp.isfinite(stepped.transition.reward) & finite_observations(stepped.observation, 1))
        transition = dataclasses.replace(
            stepped.transition, reward=jnp.where(invalid, 0, stepped.transition.reward), mask=~invalid
        )
        episode_length = before.episode_length + 1
        terminated = stepped.terminated | invalid
        truncated = (stepped.truncated | (episode_length >= horizon)) & ~terminated
        done = terminated | truncated
        final_value = _where_any(
            truncated,
            lambda: jnp.where(truncated, jax.vmap(value)(stepped.carry, stepped.observation), 0.0).astype(jnp.float32),
            lambda: jnp.zeros(done.shape, jnp.float32),
        )
        start, spare, spare_used = _next_starts(env, reset_key, before, done)
        env_state, observation = _select(done, start, (stepped.state, stepped.observation))
        episode_return = before.episode_return + transition.reward
        segment = Segment(
            steps=transition, is_first=before.is_first, terminated=terminated, truncated=truncated,
            final_value=final_value, episode_return=jnp.where(done, episode_return, 0),
            episode_length=jnp.where(done, episode_length, 0),
        )  # fmt: skip
        after = RolloutState(
            state=env_state, observation=observation, carry=stepped.carry, is_first=done, spare=spare,
            spare_used=spare_used | done, episodes=before.episodes + done.astype(jnp.int32),
            episode_return=jnp.where(done, 0, episode_return), episode_length=jnp.where(done, 0, episode_length),
        )  # fmt: skip
        return after, _packed(segment) if packs else segment

    state, segment = jax.lax.scan(step, state, jnp.arange(num_steps, dtype=jnp.int32))
    return _unpacked(segment) if packs else segment, state


def _where_any(flags: jax.Array, compute: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`compute()`, which must equal `otherwise()` if none of the flags (B,) is true.

    On a CPU it is computed only if needed. On an accelerator it is always computed: a branch would make the host wait
    for the flags in every step.
    """
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(any_in_batch(flags), compute, otherwise), default=compute
    )


def _next_starts(env: Any, reset_key: jax.Array, before: RolloutState, done: jax.Array) -> tuple[Any, Any, jax.Array]:
    """Initial states and observations for the environments that are `done` (B,), and the updated spares with their
    flags, before those taken now are marked as used; see `RolloutState`.

    On an accelerator every step draws a new initial state for every environment, and the spares are unused: a reset
    costs a kernel or two, while a branch would make the host wait. The initial states are the same.
    """

    def draw() -> Any:
        return _draw_starts(env, reset_key, before.episodes + 1)

    def from_spares() -> tuple[Any, Any, jax.Array]:
        spare, spare_used = jax.lax.cond(
            any_in_batch(done & before.spare_used),
            lambda: (_select(before.spare_used, draw(), before.spare), jnp.zeros_like(done)),
            lambda: (before.spare, before.spare_used),
        )
        return spare, spare, spare_used

    return jax.lax.platform_dependent(cpu=from_spares, default=lambda: (draw(), before.spare, before.spare_used))


PACK_UP_TO = 2**18
"""The largest number of steps of a packed segment: unpacking copies it, and larger segments keep each kernel busy."""
PACKED_SIZE = 16
"""The largest size per environment of an array that is packed with others."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Packed:
    """A pytree of arrays (B, *shape) whose small leaves are packed into one array, so that a loop stores them at once.

    Attributes:
      words: (n, B) uint32, the 32-bit values of the small leaves, and a row whose bits are the flags (B,).
      rest: the other leaves.
      like: how to reassemble the tree.
    """

    words: jax.Array
    rest: list[jax.Array]
    like: Any = dataclasses.field(metadata={"static": True})


def _packed(tree: Any) -> _Packed:
    leaves, structure = jax.tree.flatten(tree)
    rows: list[jax.Array] = []
    flags: list[jax.Array] = []
    rest: list[jax.Array] = []
    kinds: list[tuple[str, Any]] = []
    for x in leaves:
        if x.dtype == bool and x.ndim == 1 and len(flags) < 32:
            kinds.append(("flag", len(flags)))
            flags.append(x)
        elif x.dtype in (jnp.float32, jnp.int32, jnp.uint32) and math.prod(x.shape[1:]) <= PACKED_SIZE:
            words = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(x.shape[0], -1).T
            kinds.append(("words", (len(rows), x.shape[1:], x.dtype)))
            rows.extend(words)
        else:
            kinds.append(("rest", len(rest)))
            rest.append(x)
    bits = [flag.astype(jnp.uint32) << position for position, flag in enumerate(flags)]
    rows.append(functools.reduce(jnp.bitwise_or, bits, jnp.zeros(leaves[0].shape[:1], jnp.uint32)))
    return _Packed(jnp.stack(rows), rest, (structure, tuple(kinds)))


def _unpacked(packed: _Packed) -> Any:
    """The original tree with leaves (T, B, *shape)."""
    structure, kinds = packed.like
    words = packed.words

    def leaf(kind: str, found: Any) -> jax.Array:
        if kind == "rest":
            return packed.rest[found]
        if kind == "flag":
            return (words[:, -1] >> found) & 1 == 1
        first, shape, dtype = found
        rows = jnp.moveaxis(words[:, first : first + math.prod(shape)], 1, -1)
        return jax.lax.bitcast_convert_type(rows, dtype).reshape(*rows.shape[:2], *shape)

    return jax.tree.unflatten(structure, [leaf(*kind) for kind in kinds])


def finite_observations(observations: Any, num_leading: int) -> jax.Array:
    """Whether all entries of an observation are finite: leaves (*leading, *shape) -> (*leading)."""
    flags = [
        jnp.all(jnp.isfinite(x), axis=tuple(range(num_leading, x.ndim)))
        for x in jax.tree.leaves(observations)
        if jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    return jnp.all(jnp.stack(flags), axis=0) if flags else jnp.bool_(True)


def _draw_starts(env: Any, reset_key: jax.Array, episodes: jax.Array) -> tuple[Any, Any]:
    keys = jax.vmap(jax.random.fold_in)(environment_keys(reset_key, episodes.shape[0]), episodes)
    return jax.vmap(env.reset)(keys)


def _select(flags: jax.Array, on_true: Any, on_false: Any) -> Any:
    """`jnp.where` along the leading axis of two pytrees."""
    return jax.tree.map(
        lambda x, y: jnp.where(jnp.expand_dims(flags, tuple(range(1, x.ndim))), x, y), on_true, on_false
    )
