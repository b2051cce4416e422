"""Supervised learning on demonstrations, to pretrain a policy for the other algorithms."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, Scheduled, leaf, static
from haepo_jax.algorithms.state import Metrics, TrainState
from haepo_jax.algorithms.trajectory import EpisodeBatch, TrajectoryAlgorithm, drop_invalid
from haepo_jax.losses.numerics import masked_mean
from haepo_jax.rollout import Trajectory, environment_keys
from haepo_jax.rollout.stepping import step_environment


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Supervised(TrajectoryAlgorithm):
    """Maximum likelihood on the demonstrations of a task (behaviour cloning).

    The loss is the mean negative log-likelihood of the expert's actions; for a token task, next-token cross-entropy.
    Every update draws new demonstrations. The environment must provide `demonstration(state)`, the actions of an
    expert from that state with a leading axis of length horizon, in policy units. Actions after the end of the episode
    are ignored.
    """

    num_envs: int = static(64, int, "demonstrations per update, drawn anew every time", within=COUNT)
    num_epochs: int = static(1, int, "epochs over the batch in each update", within=COUNT)
    entropy_coef: Scheduled = leaf(0.0, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)

    # Demonstrations are not compared within groups.
    group_size: int = dataclasses.field(default=1, kw_only=True, metadata={"static": True})
    shared_start: bool = dataclasses.field(default=False, kw_only=True, metadata={"static": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if hasattr(self.env, "reset") and not callable(getattr(self.env, "demonstration", None)):
            raise ValueError(f"{self.env.name} has no demonstrations to learn from")

    def collect(self, state: TrainState, key: jax.Array) -> tuple[Trajectory, jax.Array, jax.Array, jax.Array]:
        """Collects demonstrations instead of episodes of the policy; see `TrajectoryAlgorithm.collect`."""
        steps = jax.vmap(self._demonstrate, out_axes=1)(environment_keys(key, self.num_envs))
        returns = jnp.sum(steps.reward, axis=0, where=steps.mask)
        lengths = jnp.sum(steps.mask, axis=0, dtype=jnp.int32)
        steps, invalid = drop_invalid(steps)
        return jax.tree.map(lambda x: x[:, :, None], steps), returns, lengths, invalid

    def _demonstrate(self, key: jax.Array) -> Trajectory:
        """One episode, (T,)."""
        reset_key, step_key = jax.random.split(key)
        state, observation = self.env.reset(reset_key)
        actions = self.env.demonstration(state)
        keys = jax.random.split(step_key, len(jax.tree.leaves(actions)[0]))

        def step(now: tuple[Any, Any, jax.Array], given: tuple[Any, jax.Array]) -> tuple[Any, Trajectory]:
            (state, observation, alive), (action, key) = now, given
            act = lambda carry, *_: (carry, action, None)  # noqa: E731
            stepped = step_environment(self.env, act, state, observation, (), jnp.bool_(False), alive, key)
            return (stepped.state, stepped.observation, alive & ~stepped.done), stepped.transition

        steps: Trajectory = jax.lax.scan(step, (state, observation, jnp.bool_(True)), (actions, keys))[1]
        return steps

    def loss(self, params: Any, batch: EpisodeBatch) -> tuple[jax.Array, Metrics]:
        steps, mask = batch.steps, batch.mask
        current = self.sequence_distribution(params, batch.observation, steps)
        likelihood = masked_mean(current.log_prob(steps.action), mask)
        entropy = masked_mean(current.entropy(), mask)
        loss = -likelihood - self.entropy_coef * entropy
        metrics = {"loss": loss, "objective": likelihood, "entropy": entropy}
        chosen = jax.tree.leaves(steps.action)
        if all(jnp.issubdtype(part.dtype, jnp.integer) for part in chosen):
            hits = [mode == part for mode, part in zip(jax.tree.leaves(current.mode()), chosen, strict=True)]
            right = [jnp.all(hit, axis=tuple(range(mask.ndim, hit.ndim))) for hit in hits]
            metrics["accuracy"] = masked_mean(functools.reduce(jnp.logical_and, right).astype(loss.dtype), mask)
        return loss, jax.lax.stop_gradient(metrics)
