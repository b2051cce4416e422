"""What PPO and HAEPO share: fixed-length pieces of experience from lanes that never stop, and a value function."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms import hyperparameters
from haepo_jax.algorithms.base import Algorithm, Metrics, TrainState
from haepo_jax.distributions import Distribution
from haepo_jax.networks import ActorCritic, as_policy, each_step
from haepo_jax.normalization import RunningStatistics
from haepo_jax.rollout import RolloutState, Segment, collect_segment, environment_keys, start_environments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Running statistics of the discounted return, and that return so far in each lane (B,)."""

    statistics: RunningStatistics
    discounted_return: jax.Array

    def update(self, segment: Segment, discount: jax.Array) -> RewardScale:
        """Adds a segment's rewards."""

        def accumulate(total: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            reward, is_first = now
            total = jnp.where(is_first, 0, total) * discount + reward
            return total, total

        last, totals = jax.lax.scan(accumulate, self.discounted_return, (segment.steps.reward, segment.is_first))
        return RewardScale(self.statistics.update(totals, segment.steps.mask), last)

    def apply(self, rewards: jax.Array) -> jax.Array:
        """Rewards over the standard deviation of the discounted return, clipped to [-10, 10]."""
        deviation = jnp.sqrt(self.statistics.squares / jnp.maximum(self.statistics.count, 1))
        return jnp.clip(rewards / (deviation + 1e-8), -10, 10)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Extra:
    """What is kept between updates: environments in mid-episode, the scale of rewards (None: not normalised), and the
    experience of earlier policies (None: not kept)."""

    lanes: RolloutState
    reward_scale: RewardScale | None
    history: Any = None


@dataclasses.dataclass(frozen=True)
class SegmentAlgorithm(hyperparameters.Segments, Algorithm):
    """The base of `PPO` and `HAEPO`. Policy and value function are separate networks, of the same kind by default, each
    with its own memory; with `shared_trunk` they are one network with two heads.

    Attributes:
      value: the value function, in any form that `policy` may have, with a scalar output; None: the default network.
    """

    value: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value is not None:
            object.__setattr__(self, "value", as_policy(self.value))
        for name in ("policy", "value"):
            if self.shared_trunk and getattr(self, name) is not None:
                raise hyperparameters.HyperparameterError(
                    f"shared_trunk=true is of the default networks, and {name}= brings one of its own"
                )

    @property
    def actor_critic(self) -> ActorCritic:
        """Policy and value function as one."""
        if self.shared_trunk:
            return ActorCritic(self.default_network(self.env.action_space, with_features=True), None)
        return ActorCritic(self.policy_network, self.value or self.default_network(None))

    def _update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: num_steps of every lane, and what `improve` makes of them."""
        now = self.scheduled(state.env_steps.share_of(self.total_steps))
        step_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.update))

        segment, lanes = now.collect(state, step_key)
        reward_scale = state.extra.reward_scale
        if reward_scale is not None:
            reward_scale = reward_scale.update(segment, now.discount)
        params, opt_state, history, learning = now.improve(state, segment, lanes, reward_scale, learn_key)

        normalizer = state.normalizer
        if normalizer is not None:
            normalizer = normalizer.update(segment.steps.observation, segment.steps.mask)
        new_state = dataclasses.replace(
            state,
            params=params,
            opt_state=opt_state,
            normalizer=normalizer,
            extra=Extra(lanes, reward_scale, history),
            update=state.update + 1,
            env_steps=state.env_steps + jnp.int32(self.num_envs * self.num_steps),
        )
        ended = (segment.terminated | segment.truncated) & segment.steps.mask
        metrics = {
            **learning,
            "learning_rate": jnp.asarray(now.learning_rate, jnp.float32),
            "episode_return": jnp.mean(segment.episode_return, where=ended),
            "episode_length": jnp.mean(segment.episode_length.astype(jnp.float32), where=ended),
            "episodes": jnp.sum(ended, dtype=jnp.float32),
            "invalid_episodes": jnp.sum(~segment.steps.mask, dtype=jnp.float32),
        }
        return new_state, metrics

    def improve(
        self, state: TrainState, segment: Segment, lanes: RolloutState, reward_scale: RewardScale | None, key: jax.Array
    ) -> tuple[Any, Any, Any, Metrics]:
        """What an algorithm makes of a segment; `self` must be `scheduled`.

        Args:
          state: before the update; its lanes are where the segment began.
          segment: (T, B).
          lanes: where it ended.
          reward_scale: with the segment's rewards, or None.
          key: of the learning.

        Returns:
          Parameters, optimiser state, the experience to keep, and metrics.
        """
        raise TypeError(f"{type(self).__name__} has no improve of its own")

    def collect(self, state: TrainState, key: jax.Array) -> tuple[Segment, RolloutState]:
        """Steps every lane num_steps times with the current policy, keeping log-probability and value of each step."""

        def act(
            carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
        ) -> tuple[Any, jax.Array, Any]:
            observation = self.normalized(state.normalizer, observation)
            carry, (output, value) = self.actor_critic.apply(state.params, carry, observation, is_first)
            distribution = self.distribution(output, action_mask)
            action = distribution.sample(key)
            return carry, action, (distribution.log_prob(action), value)

        def final_value(carry: Any, observation: Any) -> jax.Array:
            return self._value(state, carry, observation, jnp.bool_(False))

        step_keys = environment_keys(key, self.num_envs)
        return collect_segment(
            self.env, act, final_value, state.extra.lanes, _starts_key(state.key), step_keys, self.num_steps
        )

    def _outputs(
        self, params: Any, observation: Any, is_first: jax.Array, action_mask: jax.Array | None, carry: Any
    ) -> tuple[Distribution, jax.Array]:
        """Action distributions and values (N, T) of sequences that start from `carry` (N,). Without a carry every step is a
        sequence by itself, and the leading axes may be any."""

        def sequence(
            observation: Any, is_first: jax.Array, action_mask: jax.Array | None, carry: Any
        ) -> tuple[Distribution, jax.Array]:
            _, (output, values) = self.actor_critic.apply(params, carry, observation, is_first)
            return self.distribution(output, action_mask), values

        if jax.tree.leaves(carry):
            return jax.vmap(sequence)(observation, is_first, action_mask, carry)
        return each_step(
            lambda step: sequence(step[0], step[1], step[2], carry), (observation, is_first, action_mask), is_first.ndim
        )

    def _value(self, state: TrainState, carry: Any, observation: Any, is_first: jax.Array) -> jax.Array:
        observation = self.normalized(state.normalizer, observation)
        return self.actor_critic.value_of(state.params, carry, observation, is_first)[1]

    @staticmethod
    def policy_params(params: Any) -> Any:
        return params["policy"]

    @staticmethod
    def _with_policy(params: Any, policy_params: Any) -> Any:
        return {**params, "policy": policy_params}

    def _init_params(self, key: jax.Array, observation: Any) -> Any:
        return self.actor_critic.init(key, observation)[0]

    def _init_extra(self, state: TrainState) -> Extra:
        carry = self.actor_critic.init(jax.random.key(0), self._example_observation())[1]
        lanes = start_environments(self.env, carry, _starts_key(state.key), self.num_envs)
        scale = (
            RewardScale(RunningStatistics.of(jnp.float32(0)), jnp.zeros(self.num_envs, jnp.float32))
            if self.normalize_rewards
            else None
        )
        return Extra(lanes, scale)


def _starts_key(key: jax.Array) -> jax.Array:
    """The key of all starts in a run: a number that no update has, since updates fold theirs into the same key."""
    return jax.random.fold_in(key, 2**32 - 1)


def epoch_orders(key: jax.Array, num_epochs: int, size: int) -> jax.Array:
    """A random permutation of `size` indices for each epoch, (num_epochs, size) int32.

    Random words are sorted whose last bits are the indices. `jax.random.permutation` sorts pairs of word and index, twice,
    so that not even a tie has an effect; on a CPU that takes 13 times as long, a third of PPO's update on CartPole. A tie here,
    between words of 20 random bits for 4096 indices, leaves two indices in their order, which matters only where one
    minibatch ends between them.
    """
    index_bits = (size - 1).bit_length()
    words = jax.random.bits(key, (num_epochs, size)) >> index_bits << index_bits
    words = jnp.sort(words | jnp.arange(size, dtype=words.dtype)[None], axis=-1)
    return (words & (2**index_bits - 1)).astype(jnp.int32)
