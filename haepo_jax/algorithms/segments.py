"""The base class of algorithms that learn from fixed-length segments with a value function: PPO and HAEPO."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from haepo_jax import losses
from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.fields import (
    COUNT,
    NOT_NEGATIVE,
    UNIT,
    HyperparameterError,
    Scheduled,
    check_divides,
    leaf,
    static,
)
from haepo_jax.algorithms.learning import epoch_orders, next_state, run_epochs, update_metrics
from haepo_jax.algorithms.state import Metrics, TrainState
from haepo_jax.distributions import Distribution
from haepo_jax.losses.numerics import decayed_sum
from haepo_jax.networks import ActorCritic, each_step
from haepo_jax.normalization import RunningStatistics
from haepo_jax.rollout import RolloutState, Segment, collect_segment, environment_keys, start_environments
from haepo_jax.sharding import shard_environments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Running statistics of the discounted return, and the current discounted return of each environment (B,)."""

    statistics: RunningStatistics
    discounted_return: jax.Array

    def update(self, segment: Segment, discount: jax.Array) -> RewardScale:
        """Adds the rewards (T, B) of a segment."""
        decay = jnp.where(segment.is_first, 0, discount)
        totals = decayed_sum(segment.steps.reward, decay, start=self.discounted_return)
        return RewardScale(self.statistics.update(totals, segment.steps.mask), totals[-1])

    def apply(self, rewards: jax.Array) -> jax.Array:
        """Rewards divided by the standard deviation of the discounted return, clipped to [-10, 10]."""
        deviation = jnp.sqrt(self.statistics.squares / jnp.maximum(self.statistics.count, 1))
        return jnp.clip(rewards / (deviation + 1e-8), -10, 10)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sequences:
    """N segments, each collected with the policy of one update; leading axes (N, T) unless stated otherwise.

    Attributes:
      segment: the steps; without extras.
      log_prob: log-probabilities of the actions under the behaviour policy.
      carry: (N,), carry of policy and value function before the first step.
      next_observation, next_is_first: (N,), the observation after the last step, and whether it starts an episode.
      values: value estimates from when the segment was collected.
      next_value: (N,), the same for `next_observation`; None if values are recomputed in every update, see
        `SegmentAlgorithm.keeps_values`.
    """

    segment: Segment
    log_prob: jax.Array
    carry: Any
    next_observation: Any
    next_is_first: jax.Array
    values: jax.Array
    next_value: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentState:
    """`TrainState.extra` of a `SegmentAlgorithm`.

    Attributes:
      envs: the running environments.
      reward_scale: None if rewards are not normalised.
      replay: the replay buffer, the segments of the last `replay_batches` updates; None if that is 1.
    """

    envs: RolloutState
    reward_scale: RewardScale | None
    replay: Sequences | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """A minibatch for the loss: sequences with leading axes (N, T), or for feed-forward networks, if the algorithm's
    `single_steps` is true, single steps (N,).

    Attributes:
      observation: normalised observations, as the networks see them.
      is_first: whether the step is the first of its episode.
      action: in policy units.
      action_mask: see `Environment`, or None.
      mask: the steps that count in the loss of the policy.
      value_mask: the steps that the value function is fitted to, forced ones among them; None: the same.
      log_prob: log-probability of the action under the behaviour policy.
      value: value estimates before the update.
      advantage, value_target: see `SegmentAlgorithm.advantage_estimator`.
      reference: action distributions of the policy before the update; None if that is the behaviour policy of every
        step and the algorithm's `needs_reference` is false.
      carry: (N,), carry of policy and value function before the first step.
    """

    observation: Any
    is_first: jax.Array
    action: Any
    action_mask: Any
    mask: jax.Array
    value_mask: jax.Array | None
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    value_target: jax.Array
    reference: Any
    carry: Any


@dataclasses.dataclass(frozen=True)
class SegmentAlgorithm(Algorithm):
    """Base class of `PPO` and `HAEPO`; subclasses define `loss`.

    Policy and value function are separate networks, of the same type by default, each with its own carry; with
    `shared_trunk` they are one network with two heads.

    Attributes:
      value: the value function, in any form accepted for `policy`, with a scalar output; None: the default network.
    """

    value: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})
    num_steps: int = static(128, int, "steps per environment and update", within=COUNT)
    replay_batches: int = static(1, int, "size of the replay buffer in batches, including the newest", within=COUNT)
    discount: float = leaf(0.99, "discount factor gamma", within=UNIT)
    gae_lambda: float = leaf(0.95, "lambda of generalised advantage estimation or V-trace", within=UNIT)
    advantage_estimator: str = static(
        "gae",
        str,
        "generalised advantage estimation, or V-trace, which corrects for off-policy data",
        choices=("gae", "vtrace"),
    )
    value_coef: float = leaf(0.5, "weight of the value loss", within=NOT_NEGATIVE)
    surprisal_bonus: Scheduled = leaf(
        0.0,
        "weight of the surprisal of the action, -log pi under the behaviour policy, added to the reward",
        within=NOT_NEGATIVE,
        scheduled=True,
    )
    normalize_rewards: bool = static(
        True, bool, "divide rewards by the running standard deviation of the discounted return"
    )
    min_advantage_std: float = leaf(
        0.0,
        "smallest standard deviation that the advantages of a minibatch are divided by, 1 being that of the discounted"
        " return; has no effect without normalize_rewards",
        within=NOT_NEGATIVE,
    )
    shared_trunk: bool = static(
        False,
        bool,
        "default networks: policy and value function share one network with two heads",
    )

    # Set by subclasses: whether the loss takes single steps of feed-forward networks.
    single_steps = True

    @property
    def needs_reference(self) -> bool:
        """Whether the loss uses `Batch.reference` even if that is the behaviour policy."""
        return False

    def check(self) -> None:
        super().check()
        if self.single_steps:
            sequences, minibatches = self.num_envs * self.replay_batches, ("num_minibatches", self.num_minibatches)
            replay = " * replay_batches" if self.replay_batches > 1 else ""
            check_divides(f"num_envs * num_steps{replay}", sequences * self.num_steps, *minibatches)
            if self.network != "mlp":  # minibatches then consist of whole sequences
                check_divides(f"num_envs{replay}", sequences, *minibatches)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("policy", "value"):
            if self.shared_trunk and getattr(self, name) is not None:
                raise HyperparameterError(f"shared_trunk=true requires the default networks; remove {name}=")

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: collect segments, update the replay buffer, compute targets, run the epochs."""
        scheduled = self.scheduled(state.env_steps.fraction_of(self.total_steps))
        collect_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.update))

        # Collect num_steps steps of every environment with the current policy, the behaviour policy of this segment.
        segment, envs = scheduled.collect(state, collect_key)
        reward_scale = state.extra.reward_scale
        if reward_scale is not None:
            reward_scale = reward_scale.update(segment, scheduled.discount)

        # The new segment replaces the oldest one in the replay buffer.
        replay = scheduled.replayed(state, scheduled.sequences(state, segment, envs))

        # Compute advantages and value targets with the value function before the update.
        batch = scheduled.batch(state, replay, reward_scale)

        # Run the epochs, one optimiser step per minibatch.
        params, opt_state, learning = scheduled.learn(state, batch, learn_key)

        # The next state, and metrics.
        kept = SegmentState(envs, reward_scale, None if self.replay_batches == 1 else replay)
        num_steps = jnp.int32(self.num_envs * self.num_steps)
        new_state = next_state(state, params, opt_state, segment.steps, num_steps, extra=kept)
        ended = (segment.terminated | segment.truncated) & segment.steps.mask
        episodes = segment.episode_return, segment.episode_length, ended, ~segment.steps.mask
        return new_state, update_metrics(scheduled, learning, *episodes)

    def collect(self, state: TrainState, key: jax.Array) -> tuple[Segment, RolloutState]:
        """Steps every environment num_steps times with the current policy.

        Returns:
          The segment (T, B), whose `steps.extras` are the log-probability of each step and, if the networks have a
          carry, its value; and the environments after it.
        """

        def act(
            carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
        ) -> tuple[Any, jax.Array, Any]:
            observation = self.normalized(state.normalizer, observation)
            carry, (output, value) = self.actor_critic.apply(state.params, carry, observation, is_first)
            distribution = self.distribution(output, action_mask)
            action = distribution.sample(key)
            # Without a carry the values of all steps are computed at once after the rollout.
            kept = value if jax.tree.leaves(carry) else ()
            return carry, action, (distribution.log_prob(action), kept)

        def final_value(carry: Any, observation: Any) -> jax.Array:
            return self.value_of(state, carry, observation, jnp.bool_(False))

        step_keys = environment_keys(key, self.num_envs)
        return collect_segment(
            self.env, act, final_value, state.extra.envs, starts_key(state.key), step_keys, self.num_steps
        )

    def sequences(self, state: TrainState, segment: Segment, envs: RolloutState) -> Sequences:
        """A segment (T, B) as B sequences (B, T); `envs` are the environments after it."""
        log_prob, value = segment.steps.extras
        following = envs.observation, envs.is_first
        if jax.tree.leaves(envs.carry):
            values, next_value = value.T, jax.vmap(functools.partial(self.value_of, state))(envs.carry, *following)
        else:
            steps = segment.steps.observation, segment.is_first
            joined = jax.tree.map(lambda x, last: jnp.concatenate([x, last[None]]), steps, following)
            every = each_step(lambda step: self.value_of(state, envs.carry, *step), joined, 2)
            values, next_value = every[:-1].T, every[-1]
        kept = dataclasses.replace(
            segment,
            steps=dataclasses.replace(segment.steps, extras=None),
            episode_return=None,
            episode_length=None,
        )
        by_env = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept)
        kept_value = next_value if self.keeps_values else None
        return Sequences(by_env, log_prob.T, state.extra.envs.carry, *following, values, kept_value)

    def replayed(self, state: TrainState, new: Sequences) -> Sequences:
        """The replay buffer, N = replay_batches * num_envs sequences, with the oldest batch replaced by `new`."""
        if self.replay_batches == 1:
            return new
        slot = state.update % self.replay_batches * self.num_envs
        insert = lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, slot, 0)  # noqa: E731
        return jax.tree.map(insert, state.extra.replay, new)

    def batch(self, state: TrainState, sequences: Sequences, reward_scale: RewardScale | None) -> Batch:
        """The batch to learn from, with advantages and value targets from the value function before the update.

        The final observation of a truncated episode is not kept: since it was collected, its value is taken to have
        changed by as much as that of the step before it.
        """
        segment, steps, log_prob = sequences.segment, sequences.segment.steps, sequences.log_prob
        decisions = steps.decisions
        observation = self.normalized(state.normalizer, steps.observation)
        reference, values, next_value = None, sequences.values, sequences.next_value
        final_value = segment.final_value
        if not self.keeps_values:
            inputs = observation, segment.is_first, steps.action_mask, sequences.carry
            reference, values = self.outputs(state.params, *inputs)
            next_value = self._next_value(state, observation, sequences)
            final_value = final_value + values - sequences.values
        following = jnp.concatenate([values[:, 1:], next_value[:, None]], axis=1)
        bootstrap = jnp.where(segment.truncated, final_value, following)
        rewards = steps.reward if reward_scale is None else reward_scale.apply(steps.reward)
        rewards = rewards - self.surprisal_bonus * jnp.where(decisions, log_prob, 0)
        # The TD error of an invalid step is then 0, so it affects neither its own target nor those of earlier steps.
        rewards = jnp.where(steps.mask, rewards, values)
        estimated = rewards.T, values.T, bootstrap.T, segment.terminated.T, segment.truncated.T
        if self.advantage_estimator == "vtrace":
            log_ratio = jnp.zeros_like(values) if reference is None else reference.log_prob(steps.action) - log_prob
            advantages, value_targets = losses.vtrace(
                jnp.where(steps.mask, log_ratio, 0).T, *estimated, discount=self.discount, vtrace_lambda=self.gae_lambda
            )
        else:
            advantages, value_targets = losses.generalized_advantage_estimation(
                *estimated, discount=self.discount, gae_lambda=self.gae_lambda
            )
        return Batch(
            observation=observation, is_first=segment.is_first, action=steps.action, action_mask=steps.action_mask,
            mask=decisions, value_mask=None if steps.action_mask is None else steps.mask, log_prob=log_prob,
            value=values, advantage=advantages.T, value_target=value_targets.T, reference=reference,
            carry=sequences.carry,
        )  # fmt: skip

    def learn(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Any, Metrics]:
        """Runs the epochs of one update: parameters, optimiser state and mean metrics; `self` must be `scheduled`."""
        chex.assert_tree_shape_prefix(dataclasses.replace(batch, carry=None), batch.mask.shape)
        chex.assert_equal_shape([batch.mask, batch.log_prob, batch.value, batch.advantage, batch.value_target])
        if self.single_steps and not jax.tree.leaves(batch.carry):
            batch = self._as_single_steps(batch)
        size = batch.is_first.shape[0]
        orders = epoch_orders(key, self.num_epochs, size)
        if self.replay_batches > 1:
            # Until the replay buffer is full, its contents are repeated to fill the batch, as evenly as possible.
            filled = jnp.minimum(state.update + 1, self.replay_batches) * (size // self.replay_batches)
            orders = orders % filled

        def gradients_of(params: Any, indices: jax.Array) -> tuple[Any, Metrics]:
            minibatch = shard_environments(jax.tree.map(lambda x: x.at[indices].get(mode="promise_in_bounds"), batch))
            return jax.grad(self.loss, has_aux=True)(params, minibatch)

        return run_epochs(self, state, gradients_of, orders, getattr(self, "target_kl", None))

    @abc.abstractmethod
    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss of a minibatch, a scalar to minimise, and metrics, including "loss"; `self` is `scheduled`."""

    # Policy and value function.

    @property
    def keeps_values(self) -> bool:
        """Whether the values from the rollout are used, instead of recomputing them for the replay buffer."""
        return not self.needs_reference and self.replay_batches == 1

    @property
    def least_advantage_std(self) -> Any:
        """`min_advantage_std`, or 0 where rewards have a scale of their own."""
        return self.min_advantage_std if self.normalize_rewards else 0.0

    @property
    def actor_critic(self) -> ActorCritic:
        """Policy and value function as one network with two outputs."""
        if self.shared_trunk:
            return ActorCritic(self.default_network(self.env.action_space, with_features=True), None)
        return ActorCritic(self.policy_network, self.value or self.default_network(None))

    def outputs(
        self, params: Any, observation: Any, is_first: jax.Array, action_mask: Any, carry: Any
    ) -> tuple[Distribution, jax.Array]:
        """Action distributions and values (N, T) of sequences that start from `carry` (N,). Without a carry every step
        is independent, and any leading axes are allowed."""

        def sequence(
            observation: Any, is_first: jax.Array, action_mask: Any, carry: Any
        ) -> tuple[Distribution, jax.Array]:
            _, (output, values) = self.actor_critic.apply(params, carry, observation, is_first)
            return self.distribution(output, action_mask), values

        if jax.tree.leaves(carry):
            return jax.vmap(sequence)(observation, is_first, action_mask, carry)
        return each_step(
            lambda step: sequence(step[0], step[1], step[2], carry), (observation, is_first, action_mask), is_first.ndim
        )

    def value_of(self, state: TrainState, carry: Any, observation: Any, is_first: jax.Array) -> jax.Array:
        """The value () of the observation of one environment."""
        observation = self.normalized(state.normalizer, observation)
        return self.actor_critic.value_of(state.params, carry, observation, is_first)[1]

    def _next_value(self, state: TrainState, observation: Any, sequences: Sequences) -> jax.Array:
        """The value (N,) of the observation after each sequence."""
        carry = sequences.carry
        if jax.tree.leaves(carry):
            after = functools.partial(self.actor_critic.value_of, state.params)
            carry, _ = jax.vmap(after)(carry, observation, sequences.segment.is_first)
        value_of = functools.partial(self.value_of, state)
        return jax.vmap(value_of)(carry, sequences.next_observation, sequences.next_is_first)

    def _as_single_steps(self, batch: Batch) -> Batch:
        """(N, T) -> (N T,), ordered by update, then by time.

        Without a carry the steps are independent and get no time axis: one of length 1 would make XLA transpose the
        gradients of all layers, which takes a third of the time of `learn`.
        """

        def flat(x: jax.Array) -> jax.Array:
            by_update = x.reshape(self.replay_batches, self.num_envs, *x.shape[1:])
            return jnp.swapaxes(by_update, 1, 2).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

        return jax.tree.map(flat, batch)

    def discarded(self, state: TrainState, new: TrainState) -> TrainState:
        """Keeps the new replay buffer: a frozen run never reads it again, and to restore it would mean to copy it."""
        return dataclasses.replace(state, extra=dataclasses.replace(state.extra, replay=new.extra.replay))

    @staticmethod
    def policy_params(params: Any) -> Any:
        return params["policy"]

    @staticmethod
    def with_policy_params(params: Any, policy_params: Any) -> Any:
        return {**params, "policy": policy_params}

    def init_params(self, key: jax.Array, observation: Any) -> Any:
        return self.actor_critic.init(key, observation)[0]

    def init_extra(self, state: TrainState) -> SegmentState:
        carry = self.actor_critic.init(jax.random.key(0), self.example_observation())[1]
        if self.single_steps and jax.tree.leaves(carry):
            # A custom recurrent network; `check` covers the default ones.
            sequences = self.num_envs * self.replay_batches
            check_divides("num_envs * replay_batches", sequences, "num_minibatches", self.num_minibatches)
        envs = start_environments(self.env, carry, starts_key(state.key), self.num_envs)
        reward_scale = None
        if self.normalize_rewards:
            reward_scale = RewardScale(RunningStatistics.of(jnp.float32(0)), jnp.zeros(self.num_envs, jnp.float32))
        extra = SegmentState(envs, reward_scale, None)
        if self.replay_batches == 1:
            return extra
        state = dataclasses.replace(state, extra=extra)
        shapes = jax.eval_shape(lambda: self.sequences(state, *self.collect(state, state.key)))
        size = self.replay_batches * self.num_envs
        replay = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), shapes)
        return dataclasses.replace(extra, replay=replay)


def starts_key(key: jax.Array) -> jax.Array:
    """The key of all initial states of a run. Updates fold their number into the same key; 2^32 - 1 is never one."""
    return jax.random.fold_in(key, 2**32 - 1)
