"""PPO: Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import dataclasses
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
from haepo_jax.unbatched import any_in_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What a minibatch is taken from: N sequences, leading axes (N, T), or (N,) single steps for feed-forward networks."""

    observation: Any
    is_first: jax.Array
    action: jax.Array
    action_mask: jax.Array | None
    mask: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    value_target: jax.Array

    def sequences(self, indices: jax.Array) -> Batch:
        """The sequences of these indices (M,)."""
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=0), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPO(hyperparameters.PPO, SegmentAlgorithm):
    """Clipped surrogate on fixed-length segments with generalised advantage estimation; see `ppo_loss`."""

    def improve(
        self, state: TrainState, segment: Segment, lanes: RolloutState, reward_scale: RewardScale | None, key: jax.Array
    ) -> tuple[Any, Any, None, Metrics]:
        """Advantages, then num_epochs passes in shuffled minibatches."""
        rewards = segment.steps.reward if reward_scale is None else reward_scale.apply(segment.steps.reward)
        batch, carry = self._batch(state, state.extra.lanes, lanes, segment, rewards)
        params, opt_state, metrics = self.learn(state, batch, carry, key)
        return params, opt_state, None, metrics

    def _init_extra(self, state: TrainState) -> Extra:
        extra = super()._init_extra(state)
        if jax.tree.leaves(extra.lanes.carry):
            # A recurrent network learns from the whole segments of lanes, not from single steps.
            hyperparameters.check_divides("num_envs", self.num_envs, "num_minibatches", self.num_minibatches)
        return extra

    def learn(self, state: TrainState, batch: Batch, carry: Any, key: jax.Array) -> tuple[Any, Any, Metrics]:
        """The epochs of one update; `self` must be `scheduled`. Returns parameters, optimiser state and mean metrics."""
        num_sequences = batch.is_first.shape[0]
        orders = epoch_orders(key, self.num_epochs, num_sequences)
        minibatches = orders.reshape(self.num_epochs * self.num_minibatches, -1)

        def step(loop: tuple[Any, Any], indices: jax.Array) -> tuple[tuple[Any, Any], Metrics]:
            params, opt_state = loop
            own_carry = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), carry)
            gradients, metrics = jax.grad(self.loss, has_aux=True)(params, batch.sequences(indices), own_carry)
            params, opt_state = self._optimize(params, opt_state, gradients)
            return (params, opt_state), {**metrics, "grad_norm": optax.tree.norm(gradients)}

        def step_below_target(
            loop: tuple[Any, Any, Metrics], indices: jax.Array
        ) -> tuple[tuple[Any, Any, Metrics], Metrics]:
            # Once the KL has passed the target in one minibatch, the later ones repeat its metrics and change nothing.
            params, opt_state, last = loop
            below = last["kl"] <= jnp.asarray(self.target_kl)

            def go() -> tuple[tuple[Any, Any], Metrics]:
                new, metrics = step((params, opt_state), indices)
                return jax.tree.map(
                    lambda x, old: jnp.where(below, x, old), (new, metrics), ((params, opt_state), last)
                )

            (params, opt_state), metrics = jax.lax.cond(any_in_batch(below), go, lambda: ((params, opt_state), last))
            return (params, opt_state, metrics), metrics

        if self.target_kl is None:
            (params, opt_state), metrics = jax.lax.scan(step, (state.params, state.opt_state), minibatches)
        else:
            shapes = jax.eval_shape(step, (state.params, state.opt_state), minibatches[0])[1]
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (params, opt_state, _), metrics = jax.lax.scan(
                step_below_target, (state.params, state.opt_state, nothing), minibatches
            )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    def loss(self, params: Any, batch: Batch, carry: Any) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise, and metrics, on M sequences, each starting from its `carry` (M, ...)."""
        distribution, values = self._outputs(params, batch.observation, batch.is_first, batch.action_mask, carry)
        flat = lambda x: x.reshape(-1)  # noqa: E731
        return losses.ppo_loss(
            flat(distribution.log_prob(batch.action)), flat(batch.log_prob), flat(batch.advantage), values=flat(values),
            value_targets=flat(batch.value_target), behaviour_values=flat(batch.value), clip_eps=self.clip_eps,
            value_coef=self.value_coef, value_clip_eps=self.value_clip_eps, entropy_coef=self.entropy_coef,
            policy_entropy=masked_mean(distribution.entropy(), batch.mask), mask=flat(batch.mask),
            normalize_advantages=self.normalize_advantages,
        )  # fmt: skip

    def _batch(
        self, state: TrainState, start: RolloutState, end: RolloutState, segment: Segment, rewards: jax.Array
    ) -> tuple[Batch, Any]:
        """Advantages and value targets of a segment, laid out as sequences with the carry that each starts from."""
        log_probs, values = segment.steps.extras
        last = jax.vmap(lambda *lane: self._value(state, *lane))(end.carry, end.observation, end.is_first)
        following = jnp.concatenate([values[1:], last[None]])
        bootstrap = jnp.where(segment.truncated, segment.final_value, following)
        # The delta of an invalid step is then 0: it teaches nothing, and nothing of it reaches the steps before.
        rewards = jnp.where(segment.steps.mask, rewards, values)
        advantages, value_targets = losses.generalized_advantage_estimation(
            rewards, values, bootstrap, segment.terminated, segment.truncated,
            discount=self.discount, gae_lambda=self.gae_lambda,
        )  # fmt: skip
        batch = Batch(
            observation=self.normalized(state.normalizer, segment.steps.observation), is_first=segment.is_first,
            action=segment.steps.action, action_mask=segment.steps.action_mask, mask=segment.steps.decisions,
            log_prob=log_probs, value=values, advantage=advantages, value_target=value_targets,
        )  # fmt: skip
        if jax.tree.leaves(start.carry):
            return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), batch), start.carry
        # Without a carry every step is a sequence by itself, and has no time axis: one of length 1 would make XLA
        # transpose the gradients of all layers, a third of the time of `learn`.
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch), start.carry
