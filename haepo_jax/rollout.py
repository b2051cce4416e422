"""Collecting experience: complete episodes for trajectory methods, fixed-length segments with auto-reset for PPO.

Environments and policies are functions for one environment; here they are vmapped over B environments that step together.
The randomness of an environment is folded in from its own key and step number, so its result depends neither on how many
others run beside it nor on how a run is split into calls.
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
from haepo_jax.sharding import share_out
from haepo_jax.spaces import Box, Leaf, map_space
from haepo_jax.unbatched import any_in_batch

Act = Callable[[Any, Any, jax.Array, Any, jax.Array], tuple[Any, jax.Array, Any]]
"""(carry, observation, is_first, action_mask, key) -> (carry, action, extras): one decision in one environment. The
action is in policy units; `extras` is any pytree worth storing with it, such as its log-probability."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Steps with leading axes (T, B), time first.

    Attributes:
      observation: what the decision was based on, in the environment's own dtype.
      action: in policy units, shaped like the action space.
      reward: float32.
      mask: true for valid steps, up to and including the last one of an episode; every other array is 0 elsewhere.
      action_mask: valid actions (see `Environment`), or None where the environment has no such notion.
      extras: what the policy stored with its action.
    """

    observation: Any
    action: Any
    reward: jax.Array
    mask: jax.Array
    action_mask: Any
    extras: Any

    @property
    def decisions(self) -> jax.Array:
        """The steps of `mask` that a loss is about: all but those whose one valid action pays nothing, as in a prompt.

        Where actions have several parts, every step counts.
        """
        if not isinstance(self.action_mask, jax.Array):
            return self.mask
        return self.mask & ((jnp.sum(self.action_mask, axis=-1) > 1) | (self.reward != 0))


def environment_keys(key: jax.Array, num_envs: int) -> jax.Array:
    """One key for each environment, (num_envs,)."""
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
    """Plays one complete episode in each environment and stops when the last one ends.

    Args:
      env: an `Environment`.
      act: the policy.
      initial_carry: of the policy in one environment.
      reset_keys: (B,); environments with equal keys start in the same state.
      step_keys: (B,), of actions and transitions.
      record: whether to keep the steps; evaluation needs only the sums.
      max_steps: end episodes after as many steps, if that is less than env.horizon.

    Returns:
      The steps (T, B) or None; returns (B,) float32; lengths (B,) int32. T is env.horizon or max_steps, whichever is
      less, and an episode still running after T steps ends there.
    """
    horizon = env.horizon if max_steps is None else min(env.horizon, max_steps)
    num_envs = reset_keys.shape[0]
    state, observation = share_out(jax.vmap(env.reset)(reset_keys))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), initial_carry)
    one_step = jax.vmap(lambda *of_one: _step(env, act, *of_one), in_axes=(0, 0, 0, None, 0, 0))

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
    """One decision and one transition of one environment. What is computed after its end is selected away, NaN included."""
    action_key, env_key = jax.random.split(key)
    action_mask = env.action_mask(state) if has_action_mask(env) else None
    carry, action, extras = act(carry, observation, is_first, action_mask, action_key)
    after = env.step(env_key, state, to_env_action(env, action))
    live = lambda tree: jax.tree.map(lambda x: jnp.where(alive, x, jnp.zeros_like(x)), tree)  # noqa: E731
    transition = Trajectory(
        observation=live(observation), action=live(action), reward=live(after.reward), mask=alive,
        action_mask=live(action_mask), extras=live(extras),
    )  # fmt: skip
    return _Stepped(transition, after.state, after.observation, carry, after.terminated, after.truncated)


def to_env_action(env: Any, action: Any) -> Any:
    """An action in policy units -> in the environment's own."""

    def convert(space: Leaf, x: jax.Array) -> jax.Array:
        return space.from_unit(x.reshape(space.shape)) if isinstance(space, Box) else x

    return map_space(convert, env.action_space, action)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """B environments in mid-episode, with leading axis B.

    Each environment keeps one spare start, drawn from its own key and episode number, and takes it when its episode ends.
    Spares are drawn again, all that are missing at once, only on the rare step where an episode ends without one. So every
    episode starts from a fresh draw, and hardly a step pays for one.
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
    """A `Trajectory` (T, B), and where its episodes end.

    Attributes:
      steps: the trajectory; its mask is false only where a step led to a non-finite reward or observation. Such a step
        ends its episode without a value beyond it.
      is_first: (T, B) true at the first step of an episode.
      terminated, truncated: (T, B) the episode ended after this step, by itself or by its time limit; never both.
      final_value: (T, B) value of the observation that a truncated episode ended with; 0 elsewhere.
      episode_return, episode_length: (T, B) of the episode that ended after this step; 0 elsewhere.
    """

    steps: Trajectory
    is_first: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    final_value: jax.Array
    episode_return: jax.Array
    episode_length: jax.Array


def start_environments(env: Any, initial_carry: Any, reset_key: jax.Array, num_envs: int) -> RolloutState:
    """Environments at the start of their first episode; `reset_key` must be the same in every `collect_segment`."""
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
    """Steps every environment `num_steps` times, starting a new episode where one ends or reaches `env.horizon`.

    Args:
      env: an `Environment`.
      act: the policy.
      value: (carry, observation) -> (), of one environment; computed only at steps where an episode is truncated.
      state: from `start_environments` or the segment before.
      reset_key: of the starts.
      step_keys: (B,), of actions and transitions, new for every segment.
      num_steps: T.
    """
    one_step = jax.vmap(lambda *of_one: _step(env, act, *of_one))
    state = share_out(state)
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
    """`compute()`, which equals `otherwise()` where none of the flags (B,) is true.

    On a CPU it is computed only where it is needed. On an accelerator, where the host would have to read the flags and
    wait for them in every step, always.
    """
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.cond(any_in_batch(flags), compute, otherwise), default=compute
    )


def _next_starts(env: Any, reset_key: jax.Array, before: RolloutState, done: jax.Array) -> tuple[Any, Any, jax.Array]:
    """The starts (state, observation) of the episodes that follow those which are `done` (B,), and the spares that are
    left with the flags of those used, apart from what `done` uses now; see `RolloutState`.

    On an accelerator every step draws the next start of every environment, and the spares stay as they were: the draws are
    a kernel or two, where a decision would make the host wait. The starts are the same.
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
"""The most steps of a segment that is packed: unpacking copies it, and in larger ones each kernel has work enough."""
PACKED_SIZE = 16
"""The most numbers of one environment's array that is stored in one array with others."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Packed:
    """A tree of arrays (B, *shape) whose small leaves are the rows of one array, so that a loop stores them at once and
    not one by one.

    Attributes:
      words: (n, B) uint32: the 32-bit numbers of the small leaves, and a row whose bits are the flags (B,).
      rest: the other leaves.
      like: how the tree is put together again.
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
    """The tree with its leaves (T, B, *shape)."""
    structure, kinds = packed.like
    words = packed.words

    def leaf(kind: str, found: Any) -> jax.Array:
        if kind == "rest":
            return packed.rest[found]
        if kind == "flag":
            return (words[:, -1] >> found) & 1 == 1
        first, shape, dtype = found
        own = jnp.moveaxis(words[:, first : first + math.prod(shape)], 1, -1)
        return jax.lax.bitcast_convert_type(own, dtype).reshape(*own.shape[:2], *shape)

    return jax.tree.unflatten(structure, [leaf(*kind) for kind in kinds])


def finite_observations(observations: Any, num_leading: int) -> jax.Array:
    """Whether every number of an observation is finite: leaves (*leading, *shape) -> (*leading)."""
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
    """`where` over the leading axis of two trees."""
    return jax.tree.map(
        lambda x, y: jnp.where(jnp.expand_dims(flags, tuple(range(1, x.ndim))), x, y), on_true, on_false
    )
