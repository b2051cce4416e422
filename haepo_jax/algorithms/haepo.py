"""HAEPO: History-Aggregated Exploratory Policy Optimization (arXiv 2508.18884), on a replay buffer of segments."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from haepo_jax import losses
from haepo_jax.algorithms.fields import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    UNIT,
    Range,
    Scheduled,
    check_divides,
    check_function,
    leaf,
    static,
)
from haepo_jax.algorithms.segments import Batch, SegmentAlgorithm
from haepo_jax.algorithms.state import Metrics
from haepo_jax.losses.numerics import masked_mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HAEPO(SegmentAlgorithm):
    """History-Aggregated Exploratory Policy Optimization (arXiv 2508.18884) on a replay buffer of segments.

    Every update collects one segment per environment and learns from those of the last `replay_batches` updates, using
    the stored log-probabilities of the behaviour policies; see `haepo_advantage_loss`. The softmax over a group weights
    a segment by how much more likely it has become under the current policy, and its saturation bounds the change,
    which makes many epochs over old data safe. Every update recomputes the advantages with the current value function;
    docs/mathematics.md says how where an episode is truncated.

    `surprisal_bonus` adds the entropy of whole trajectories to the return, as in maximum-entropy reinforcement learning
    (Ziebart 2010), which keeps exploration alive when rewards are sparse. The preset `haepo_explore` uses it; `haepo_minatar`
    has larger batches and no replay buffer.

    For the form of the paper and others without a value function see `EpisodicHAEPO`.

    Attributes:
      weight_function: (scores, mask, temperature) -> weights, a replacement for the softmax; see
        `haepo_jax.losses.weights`.

    Examples:
      >>> import haepo_jax as hx
      >>> algo = hx.HAEPO("CartPole-v1", total_steps=50_000, learning_rate=3e-3)
      >>> state = algo.init(jax.random.key(0))
      >>> state, metrics = jax.jit(algo.train_step)(state)
    """

    num_steps: int = static(32, int, "steps per environment and update", within=COUNT)
    num_epochs: int = static(4, int, "epochs over the replay buffer in each update", within=COUNT)
    num_minibatches: int = static(16, int, "minibatches per epoch", within=COUNT)
    learning_rate: Scheduled = leaf(2e-3, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    replay_batches: int = static(8, int, "size of the replay buffer in batches, including the newest", within=COUNT)
    group_size: int = static(
        4, int, "segments per softmax group; groups are redrawn in every epoch", within=Range(2, 2**31 - 1)
    )
    temperature: Scheduled = leaf(
        0.3, "temperature of the softmax over a group; sets the trust region", within=POSITIVE, scheduled=True
    )
    history_decay: float = leaf(0.95, "per-step decay of past log-ratios in the score", within=UNIT)
    kl_coef: Scheduled = leaf(
        0.3, "weight of the KL penalty to the policy before the update", within=NOT_NEGATIVE, scheduled=True
    )
    weight_function: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    single_steps = False
    needs_reference = True

    def check(self) -> None:
        super().check()
        check_function("weight_function", self.weight_function)
        sequences, part = self.num_envs * self.replay_batches, self.num_minibatches * self.group_size
        check_divides("num_envs * replay_batches", sequences, "num_minibatches * group_size", part)

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss to minimise, and metrics; groups consist of consecutive sequences."""
        current, values = self.outputs(params, batch.observation, batch.is_first, batch.action_mask, batch.carry)

        def grouped(x: jax.Array) -> jax.Array:
            """(N, T) -> (T, groups, group_size)."""
            return x.T.reshape(x.shape[1], -1, self.group_size)

        loss, metrics = losses.haepo_advantage_loss(
            grouped(current.log_prob(batch.action)), grouped(batch.log_prob), grouped(batch.advantage),
            grouped(batch.is_first), mask=grouped(batch.mask), min_advantage_std=self.least_advantage_std,
            history_decay=self.history_decay, temperature=self.temperature, entropy_coef=self.entropy_coef,
            kl_coef=self.kl_coef, policy_entropy=grouped(current.entropy()), policy_kl=grouped(batch.reference.kl_to(current)),
            weight_function=self.weight_function,
        )  # fmt: skip
        fitted = batch.mask if batch.value_mask is None else batch.value_mask
        value_loss = masked_mean((values - batch.value_target) ** 2, fitted) / 2
        total = loss + self.value_coef * value_loss
        return total, {**metrics, "loss": total, "value_loss": value_loss}
