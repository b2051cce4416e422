"""The base class of algorithms that learn from groups of complete episodes: EpisodicHAEPO, GRPO, DPO and Supervised.

They use the same batches and differ in `loss`. DPO sets its own reference policy, Supervised its own actions.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.fields import COUNT, Range, check_divides, static
from haepo_jax.algorithms.learning import next_state, run_epochs, update_metrics
from haepo_jax.algorithms.state import Metrics, TrainState
from haepo_jax.distributions import Distribution
from haepo_jax.networks import each_step
from haepo_jax.rollout import Trajectory, all_finite, collect_episodes, environment_keys
from haepo_jax.unbatched import any_in_batch, max_in_batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpisodeBatch:
    """Groups of complete episodes, leading axes (T, G, K): time, group, member.

    Attributes:
      steps: the trajectory; `steps.extras` holds the log-probabilities under the behaviour policy.
      observation: normalised observations, as the networks see them.
      reference: action distributions of the reference policy.
    """

    steps: Trajectory
    observation: Any
    reference: Any

    @property
    def mask(self) -> jax.Array:
        """The steps (T, G, K) that count in the loss; see `Trajectory.decisions`."""
        return self.steps.decisions

    def groups(self, indices: jax.Array) -> EpisodeBatch:
        """The groups with the given indices (M,)."""
        return jax.tree.map(lambda x: jnp.take(x, indices, axis=1), self)


@dataclasses.dataclass(frozen=True)
class TrajectoryAlgorithm(Algorithm):
    """Base class of algorithms that learn from groups of complete episodes; subclasses define `loss`."""

    group_size: int = static(8, int, "episodes per group", within=Range(2, COUNT.high))
    shared_start: bool = static(True, bool, "start the episodes of a group in the same state")

    def check(self) -> None:
        super().check()
        check_divides("num_envs", self.num_envs, "group_size", self.group_size)
        size = self.num_minibatches * self.group_size
        check_divides("num_envs", self.num_envs, "num_minibatches * group_size", size)

    def update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: collect complete episodes, run the epochs."""
        scheduled = self.scheduled(state.env_steps.fraction_of(self.total_steps))
        rollout_key, learn_key = jax.random.split(jax.random.fold_in(state.key, state.update))

        # Collect num_envs episodes with the current policy, the behaviour policy of this update.
        steps, returns, lengths, invalid = scheduled.collect(state, rollout_key)

        # Run the epochs, one optimiser step per minibatch of whole groups.
        params, opt_state, learning = scheduled.learn(state, steps, learn_key)

        # The next state, and metrics.
        reference = scheduled.next_reference(state, params)
        new_state = next_state(state, params, opt_state, steps, jnp.sum(lengths), reference=reference)
        return new_state, update_metrics(scheduled, learning, returns, lengths, ~invalid, invalid)

    def collect(self, state: TrainState, key: jax.Array) -> tuple[Trajectory, jax.Array, jax.Array, jax.Array]:
        """Collects num_envs episodes with the current policy, the behaviour policy of this update.

        Returns:
          The steps (T, G, K); and of each episode, (num_envs,), its return, its length, and whether it is invalid. An
          episode with a non-finite observation or reward is masked out of its group.
        """
        reset_key, step_key = jax.random.split(key)
        num_groups = self.num_envs // self.group_size
        if self.shared_start:
            reset_keys = jnp.repeat(environment_keys(reset_key, num_groups), self.group_size)
        else:
            reset_keys = environment_keys(reset_key, self.num_envs)

        def act(
            carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
        ) -> tuple[Any, jax.Array, jax.Array]:
            carry, distribution = self.act_distribution(state, carry, observation, is_first, action_mask)
            action = distribution.sample(key)
            return carry, action, distribution.log_prob(action)

        steps, returns, lengths = collect_episodes(
            self.env, act, self.initial_carry(), reset_keys, environment_keys(step_key, self.num_envs)
        )
        assert steps is not None
        steps, invalid = drop_invalid(steps)
        grouped = lambda x: x.reshape(x.shape[0], num_groups, self.group_size, *x.shape[2:])  # noqa: E731
        return jax.tree.map(grouped, steps), returns, lengths, invalid

    def learn(self, state: TrainState, steps: Trajectory, key: jax.Array) -> tuple[Any, Any, Metrics]:
        """Runs the epochs of one update: parameters, optimiser state and mean metrics; `self` must be `scheduled`."""
        chex.assert_rank(steps.mask, 3)
        chex.assert_tree_shape_prefix(steps, steps.mask.shape)
        horizon = steps.mask.shape[0]
        reference_params = state.params if state.reference is None else state.reference

        observation = self.normalized(state.normalizer, steps.observation)

        def prepare(batch: tuple[Any, Trajectory]) -> Distribution:
            made = self.sequence_distribution(reference_params, *batch)
            return jax.tree.map(lambda x: jnp.pad(x, [(0, horizon - x.shape[0]), *[(0, 0)] * (x.ndim - 1)]), made)

        batch = EpisodeBatch(steps, observation, on_valid_steps(prepare, (observation, steps), steps.mask))

        num_groups = self.num_envs // self.group_size
        orders = jax.vmap(lambda key: jax.random.permutation(key, num_groups))(jax.random.split(key, self.num_epochs))

        def gradients_of(params: Any, groups: jax.Array) -> tuple[Any, Metrics]:
            return on_valid_steps(
                lambda batch: jax.grad(self.loss, has_aux=True)(params, batch.groups(groups)),
                batch,
                jnp.take(steps.mask, groups, axis=1),
            )

        return run_epochs(self, state, gradients_of, orders)

    @abc.abstractmethod
    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        """The loss of a minibatch of groups, a scalar, and metrics, including "loss"; `self` is `scheduled`.

        The steps that count are those of `batch.mask`; `batch.steps.mask` also has forced ones, as in a prompt."""

    def sequence_distribution(self, params: Any, observation: Any, steps: Trajectory) -> Distribution:
        """Action distributions (T, G, K) of whole episodes under `params`."""
        carry = self.initial_carry()
        # A compile-time constant: it tells a transformer that its cache is empty.
        is_first = np.arange(steps.mask.shape[0]) == 0

        def sequence(observation: Any, action_mask: jax.Array | None, is_first: jax.Array) -> Distribution:
            output = self.policy_network.apply(params, carry, observation, is_first)[1]
            return self.distribution(output, action_mask)

        if jax.tree.leaves(carry):
            over_members = jax.vmap(sequence, in_axes=(1, 1, None), out_axes=1)
            return jax.vmap(over_members, in_axes=(1, 1, None), out_axes=1)(observation, steps.action_mask, is_first)
        each_first = jnp.broadcast_to(is_first[:, None, None], steps.mask.shape)
        return each_step(lambda step: sequence(*step), (observation, steps.action_mask, each_first), 3)

    def init_reference(self, params: Any) -> Any:
        """`TrainState.reference` at the start of a run."""
        # None stands for the behaviour policy.
        return jax.tree.map(jnp.copy, params) if getattr(self, "reference", None) == "initial" else None

    def next_reference(self, state: TrainState, params: Any) -> Any:
        """`TrainState.reference` after an update from `state` to `params`."""
        return state.reference


def on_valid_steps(function: Callable[[Any], Any], tree: Any, mask: jax.Array) -> Any:
    """Applies `function` to the shortest of three prefixes (1/8, 1/3, all) of a tree that contains every valid step.

    In most environments episodes end long before the horizon, and the padding would cost as much as the valid steps.
    The function is compiled three times, so it should contain only the expensive part. A loop over chunks of time would
    be compiled once, but has to compute or move every activation twice; it took 1.1 to 1.4 times as long at full
    length.

    Args:
      function: the function; its result must have the same shapes for every prefix.
      tree: arrays (T, ...).
      mask: (T, G, K), the valid steps.
    """
    horizon = mask.shape[0]
    sizes = sorted({-(-horizon // parts) for parts in (8, 3, 1)})
    longest = max_in_batch(jnp.sum(jnp.any(mask, axis=(1, 2))))
    branches = [lambda tree, size=size: function(jax.tree.map(lambda x: x[:size], tree)) for size in sizes]
    shorter = jnp.sum(jnp.array(sizes) < longest, dtype=jnp.int32)
    return jax.lax.switch(shorter, branches, tree)


def drop_invalid(steps: Trajectory) -> tuple[Trajectory, jax.Array]:
    """Masks out whole episodes (T, B) with a non-finite observation or reward; also returns which ones, (B,)."""
    finite = all_finite((steps.reward, steps.observation), 2)
    invalid = ~jnp.all(finite, axis=0)

    def drop(x: jax.Array) -> jax.Array:
        return jnp.where(jnp.expand_dims(invalid, tuple(range(1, x.ndim - 1))), jnp.zeros_like(x), x)

    return jax.lax.cond(any_in_batch(invalid), lambda: jax.tree.map(drop, steps), lambda: steps), invalid
