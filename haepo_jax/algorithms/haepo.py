"""HAEPO: History-Aggregated Exploratory Policy Optimization (arXiv 2508.18884), on the histories of the last policies."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from haepo_jax import losses
from haepo_jax.algorithms import hyperparameters
from haepo_jax.algorithms.base import Metrics, TrainState
from haepo_jax.algorithms.segments import Extra, RewardScale, SegmentAlgorithm, epoch_orders
from haepo_jax.losses.numerics import masked_mean
from haepo_jax.rollout import RolloutState, Segment
from haepo_jax.sharding import share_out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces:
    """N pieces of experience, each played by the policy of one update; leading axes (N, T), or (N,) where it says so.

    Attributes:
      segment: the steps; `segment.steps.extras` holds the behaviour policy's log-probabilities.
      carry: (N,) of policy and value function before the first step.
      end: (N,) the observation that follows the last step, and whether it starts an episode.
    """

    segment: Segment
    carry: Any
    end: tuple[Any, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What a minibatch is taken from: leading axes (N, T), of `carry` (N,); observations as the networks see them."""

    observation: Any
    is_first: jax.Array
    action: jax.Array
    action_mask: jax.Array | None
    mask: jax.Array
    log_prob: jax.Array
    advantage: jax.Array
    value_target: jax.Array
    reference: Any
    carry: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HAEPO(hyperparameters.HAEPO, SegmentAlgorithm):
    """Plackett-Luce weights over the histories of the last policies; see `haepo_advantage_loss`.

    Every update plays one segment and learns from the last `history_batches` of them, each step with the probability
    that the policy which played it gave it. The softmax over a group weighs a history by how much likelier the policy
    has made it since, and bounds how far it may: that makes many passes over old experience safe. Advantages are
    estimated anew with the value function of the moment; only what lay beyond a time limit keeps the value it had then.

    With `history_bonus` an action also earns its surprise, -log pi_behaviour, so that the return to maximise holds the
    entropy of whole histories and not of single decisions: where reward is too rare to show a way, all ways are kept open
    (maximum-entropy reinforcement learning, Ziebart 2010). The preset `haepo_explore` does this.

    The paper's form, and others that need no value function, are `EpisodicHAEPO`.

    Examples:
      >>> import haepo_jax as hx
      >>> algo = hx.HAEPO("CartPole-v1", total_steps=50_000, learning_rate=3e-3)
      >>> state = algo.init(jax.random.key(0))
      >>> state, metrics = jax.jit(algo.train_step)(state)
    """

    def improve(
        self, state: TrainState, segment: Segment, lanes: RolloutState, reward_scale: RewardScale | None, key: jax.Array
    ) -> tuple[Any, Any, Pieces, Metrics]:
        """Puts the segment in the place of the oldest one, then learns from all."""
        pieces = self._pieces(state, segment, lanes)
        slot = state.update % self.history_batches * self.num_envs
        history = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, 0), state.extra.history, pieces
        )
        batch = self._batch(state, history, reward_scale)
        filled = jnp.minimum(state.update + 1, self.history_batches) * self.num_envs
        params, opt_state, metrics = self.learn(state, batch, filled, key)
        return params, opt_state, history, metrics

    def learn(self, state: TrainState, batch: Batch, filled: jax.Array, key: jax.Array) -> tuple[Any, Any, Metrics]:
        """The epochs of one update; `self` must be `scheduled`.

        Args:
          state: before the update.
          batch: N pieces.
          filled: () how many of them there are yet; the others are not looked at.
          key: of the epochs' orders.

        Returns:
          Parameters, optimiser state and mean metrics.
        """
        num_pieces = batch.is_first.shape[0]
        orders = epoch_orders(key, self.num_epochs, num_pieces)
        # Until the history is full, the pieces that there are stand in for the others, equally often or once more.
        minibatches = (orders % filled).reshape(self.num_epochs * self.num_minibatches, -1)

        def step(loop: tuple[Any, Any], indices: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, opt_state = loop
            minibatch = share_out(jax.tree.map(lambda x: jnp.take(x, indices, axis=0), batch))
            gradients, metrics = jax.grad(self.loss, has_aux=True)(params, minibatch)
            params, opt_state = self._optimize(params, opt_state, gradients)
            return (params, opt_state), {**metrics, "grad_norm": optax.tree.norm(gradients)}

        (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.opt_state), minibatches)
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, and metrics; groups are of consecutive pieces."""
        current, values = self._outputs(params, batch.observation, batch.is_first, batch.action_mask, batch.carry)

        def grouped(x: jax.Array) -> jax.Array:
            """(N, T) -> (T, groups, group_size)."""
            return x.T.reshape(x.shape[1], -1, self.group_size)

        loss, metrics = losses.haepo_advantage_loss(
            grouped(current.log_prob(batch.action)), grouped(batch.log_prob), grouped(batch.advantage),
            grouped(batch.is_first), mask=grouped(batch.mask), history_decay=self.history_decay,
            temperature=self.temperature, entropy_coef=self.entropy_coef, kl_coef=self.kl_coef,
            policy_entropy=grouped(current.entropy()), policy_kl=grouped(batch.reference.kl_to(current)),
        )  # fmt: skip
        value_loss = masked_mean((values - batch.value_target) ** 2, batch.mask) / 2
        total = loss + self.value_coef * value_loss
        return total, {**metrics, "loss": total, "value_loss": value_loss}

    def _pieces(self, state: TrainState, segment: Segment, lanes: RolloutState) -> Pieces:
        """A segment as it is kept; `lanes` is where it ended."""
        log_prob, _ = segment.steps.extras
        kept = dataclasses.replace(segment, steps=dataclasses.replace(segment.steps, extras=log_prob))
        by_piece = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept)
        return Pieces(by_piece, state.extra.lanes.carry, (lanes.observation, lanes.is_first))

    def _batch(self, state: TrainState, pieces: Pieces, reward_scale: RewardScale | None) -> Batch:
        """Advantages and value targets by the value function of the moment, and the policy before the update."""
        segment, steps = pieces.segment, pieces.segment.steps
        observation = self.normalized(state.normalizer, steps.observation)
        reference, values = self._outputs(state.params, observation, segment.is_first, steps.action_mask, pieces.carry)
        end = self._end_values(state, observation, segment.is_first, pieces)
        following = jnp.concatenate([values[:, 1:], end[:, None]], axis=1)
        bootstrap = jnp.where(segment.truncated, segment.final_value, following)
        rewards = steps.reward if reward_scale is None else reward_scale.apply(steps.reward)
        rewards = rewards - self.history_bonus * jnp.where(steps.decisions, steps.extras, 0)
        # The delta of an invalid step is then 0: it teaches nothing, and nothing of it reaches the steps before.
        rewards = jnp.where(steps.mask, rewards, values)
        advantages, value_targets = losses.generalized_advantage_estimation(
            rewards.T, values.T, bootstrap.T, segment.terminated.T, segment.truncated.T,
            discount=self.discount, gae_lambda=self.gae_lambda,
        )  # fmt: skip
        return Batch(
            observation=observation, is_first=segment.is_first, action=steps.action, action_mask=steps.action_mask,
            mask=steps.decisions, log_prob=steps.extras, advantage=advantages.T, value_target=value_targets.T,
            reference=reference, carry=pieces.carry,
        )  # fmt: skip

    def _end_values(self, state: TrainState, observation: Any, is_first: jax.Array, pieces: Pieces) -> jax.Array:
        """The value (N,) of the observation that follows each piece."""
        end, end_is_first = pieces.end
        carry = pieces.carry
        if jax.tree.leaves(carry):
            after = functools.partial(self.actor_critic.value_of, state.params)
            carry, _ = jax.vmap(after)(carry, observation, is_first)
        return jax.vmap(lambda *lane: self._value(state, *lane))(carry, end, end_is_first)

    def _init_extra(self, state: TrainState) -> Extra:
        extra = super()._init_extra(state)
        state = dataclasses.replace(state, extra=extra)
        shapes = jax.eval_shape(lambda: self._pieces(state, *self.collect(state, state.key)))
        history = jax.tree.map(
            lambda x: jnp.zeros((self.history_batches * self.num_envs, *x.shape[1:]), x.dtype), shapes
        )
        return dataclasses.replace(extra, history=history)
