"""PPO: Proximal Policy Optimization (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from haepo_jax import losses
from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, POSITIVE, UNIT, Scheduled, leaf, static
from haepo_jax.algorithms.segments import Batch, SegmentAlgorithm
from haepo_jax.algorithms.state import Metrics


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPO(SegmentAlgorithm):
    """Proximal Policy Optimization (arXiv 1707.06347); with a replay buffer, GePPO (arXiv 2111.00072).

    The clipped surrogate on fixed-length segments; see `ppo_loss`. With `replay_batches` above 1 every update also
    learns from the segments of previous updates, with advantages recomputed by the current value function; together with
    `clip_around="current"` this is GePPO (Queeney et al. 2021).

    The defaults learn from few environment steps; they are the best single setting found on six small tasks
    (`experiments/claims`). The presets `ppo_continuous` and `ppo_minatar` have larger batches and fewer epochs.
    """

    num_steps: int = static(32, int, "steps per environment and update", within=COUNT)
    num_minibatches: int = static(8, int, "minibatches per epoch", within=COUNT)
    learning_rate: Scheduled = leaf(5e-4, "learning rate of Adam", within=NOT_NEGATIVE, scheduled=True)
    entropy_coef: Scheduled = leaf(0.03, "weight of the entropy bonus", within=NOT_NEGATIVE, scheduled=True)
    gae_lambda: float = leaf(0.9, "lambda of generalised advantage estimation or V-trace", within=UNIT)
    max_grad_norm: float = leaf(0.5, "maximum global norm of the gradients", within=POSITIVE)
    clip_eps: Scheduled = leaf(0.1, "clip range of the probability ratio", within=POSITIVE, scheduled=True)
    clip_around: str = static(
        "behaviour",
        str,
        "centre of the clip range: the behaviour policy (a ratio of 1), or the policy before the update (GePPO)",
        choices=("behaviour", "current"),
    )
    kl_coef: Scheduled | None = leaf(
        None,
        "weight of the KL penalty to the policy before the update; null: no penalty",
        within=NOT_NEGATIVE,
        scheduled=True,
        optional=True,
    )
    value_clip_eps: float | None = leaf(
        None,
        "clip range of the change of a value in an update; null: no clipping",
        within=POSITIVE,
        optional=True,
    )
    normalize_advantages: bool = static(True, bool, "standardise the advantages of each minibatch")
    target_kl: float | None = leaf(
        None,
        "skip an update's remaining minibatches once the KL to the policy at the clip centre exceeds this; null: never",
        within=POSITIVE,
        optional=True,
    )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef is not None

    def loss(self, params: Any, batch: Batch) -> tuple[jax.Array, Metrics]:
        """The loss to minimise, and metrics; see `ppo_loss`."""
        current, values = self.outputs(params, batch.observation, batch.is_first, batch.action_mask, batch.carry)
        centre = None
        if self.clip_around == "current" and batch.reference is not None:
            centre = batch.reference.log_prob(batch.action)
        penalty: dict[str, Any] = {}
        if self.kl_coef is not None:
            penalty = {"kl_coef": self.kl_coef, "policy_kl": batch.reference.kl_to(current)}
        return losses.ppo_loss(
            current.log_prob(batch.action), batch.log_prob, batch.advantage, values=values,
            value_targets=batch.value_target, behaviour_values=batch.value, clip_eps=self.clip_eps,
            clip_around_log_probs=centre, value_coef=self.value_coef, value_clip_eps=self.value_clip_eps,
            entropy_coef=self.entropy_coef, policy_entropy=current.entropy(), mask=batch.mask,
            value_mask=batch.value_mask, normalize_advantages=self.normalize_advantages,
            min_advantage_std=self.least_advantage_std, **penalty,
        )  # fmt: skip
