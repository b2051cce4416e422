"""HAEPO in Tunix: a configuration and a learner that take the place of `GRPOConfig` and `GRPOLearner`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.rl import algo_core, common, function_registry
from tunix.rl import utils as rl_utils
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner, TrainExample
from tunix.rl.rl_cluster import Mode, RLCluster, Role
from tunix.rl.rl_learner import MetricFn, RewardFn

from haepo_jax.losses import haepo_loss
from haepo_jax.losses.numerics import k3
from haepo_jax.losses.returns import NORMALIZATIONS
from haepo_jax.losses.weights import Temperature

SCORES = ("log_ratio", "mean_log_ratio", "likelihood", "mean_likelihood")


@dataclasses.dataclass(kw_only=True)
class HAEPOConfig(GRPOConfig):
    """HAEPO's settings, beside those of Tunix's `GRPOConfig` that keep their meaning: `num_generations` (the group),
    `num_iterations`, `beta` (weight of the KL penalty to the reference; 0: no reference is asked) and `reward_manager`.

    Those that belong to GRPO's loss (`epsilon`, `loss_algo`, `loss_agg_mode`, `kl_loss_mode`) are accepted, so that a
    script need not be changed, and are not used.

    Attributes:
      score: what the softmax over a group's completions is taken of, sums over tokens l: "log_ratio", sum (l - l_old),
        whose gradient in the first iteration is REINFORCE with the group's mean as baseline, every token counting the
        same; "mean_log_ratio", the same over the completion's length, which is the logarithm of GSPO's sequence ratio;
        "likelihood", sum l, the paper's, and "mean_likelihood", the same over the length.
      weight_temperature: tau of that softmax, above 0, or "auto" (see `haepo_jax.plackett_luce_weights`). The
        temperature at which tokens are sampled is the rollout's.
      normalize: of the rewards within a group: "none", "center", "standardize" or "rank".
      entropy_coef: weight of the mean entropy of the tokens' distributions.
    """

    algo_variant: str = "haepo"
    advantage_estimator: str = "haepo"
    policy_loss_fn: str = "haepo"
    score: str = "log_ratio"
    weight_temperature: Temperature = 1.0
    normalize: str = "standardize"
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in (("score", SCORES), ("normalize", NORMALIZATIONS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, got {getattr(self, name)!r}")


class HAEPOLearner(GRPOLearner[HAEPOConfig]):
    """Tunix's learner with HAEPO's loss: takes what `GRPOLearner` takes, and trains in the same way.

    It differs where a sum of log-probabilities is less forgiving than a mean over tokens: the end token, an action like
    any other, is part of its completion (Tunix's sampler cuts it off), and the old policy's log-probabilities are taken
    at the temperature that the tokens were sampled at. Groups stay whole: a micro-batch is made of prompts with all
    their completions, and sequence packing, which would mix them, is refused.

    Tried with Tunix's own rollout and with actor and rollout on one mesh. That rollout takes the same random numbers in
    every step; `haepo_jax.llm.Rollout` (`ClusterConfig(rollout_engine=...)`) takes fresh ones.

    Raises:
      ValueError: `max_seq_token_per_tpu` is set.
    """

    def __init__(
        self,
        rl_cluster: RLCluster,
        algo_config: HAEPOConfig,
        reward_fns: RewardFn | list[RewardFn],
        metric_fns: Sequence[MetricFn] | None = None,
        data_shuffle_seed: int | None = None,
    ) -> None:
        if rl_cluster.cluster_config.training_config.max_seq_token_per_tpu is not None:
            raise ValueError("HAEPO needs whole groups: max_seq_token_per_tpu must be None (no sequence packing)")
        super().__init__(rl_cluster, algo_config, reward_fns, metric_fns, data_shuffle_seed)
        rl_cluster.actor_trainer.with_rl_metrics_to_log(
            {name: np.mean for name in ("kl", "entropy", "ess", "max_weight", "alignment")}
        )

    def _generate_and_compute_advantage(self, training_input: dict[str, Any], mode: Mode = Mode.TRAIN) -> TrainExample:
        """Samples every prompt's completions and has them rewarded: one example a completion, groups side by side."""
        cluster, config = self.rl_cluster, self.algo_config
        pad, eos = cluster.rollout.pad_id(), cluster.rollout.eos_id()
        limit = cluster.get_rollout_config(mode).max_tokens_to_generate
        prompts = [str(prompt) for prompt in training_input["prompts"]]
        columns = {key: value for key, value in training_input.items() if key != "prompts"}

        output = cluster.generate(prompts, mode=mode, micro_batch_size=self._rollout_micro_batch_size * self.group_size)
        tokens = [with_end(row, eos, limit) for row in output.tokens]
        completions = np.full((len(tokens), limit), pad, np.int32)
        for row, ids in zip(completions, tokens, strict=True):
            row[: len(ids)] = ids
        # By length, not by `!= pad`: where the tokenizer pads with its end token, the end counts.
        lengths = np.array([len(ids) for ids in tokens])
        mask = np.arange(limit) < lengths[:, None]
        prompt_ids, completion_ids = jnp.asarray(output.left_padded_prompt_tokens), jnp.asarray(completions)

        chunk = self._compute_logps_micro_batch_size * self.group_size
        reference = None
        if config.beta != 0.0:
            reference = cluster.get_ref_per_token_logps(prompt_ids, completion_ids, pad, eos, micro_batch_size=chunk)
        # In a single iteration the old policy is the current one, which the loss then takes for it.
        old = self._log_probs(prompt_ids, completion_ids, chunk) if config.num_iterations > 1 else None

        rewards = self._compute_rewards(prompts=prompts, completions=output.text, mode=mode, **columns)
        for statistic in (np.mean, np.max, np.min):  # under the names that GRPOLearner gives them
            name = statistic.__name__
            metrics = {f"rewards/score/{name}": rewards, f"completions/{name}_length": lengths}
            cluster.buffer_metrics({key: (statistic(x), np.mean) for key, x in metrics.items()}, mode=mode)
        for metric_fn in self.metric_fns:
            found = metric_fn(prompts=prompts, completions=output.text, rewards=rewards, advantages=rewards, **columns)
            cluster.buffer_metrics(found, mode=mode)
        return TrainExample(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_ids != pad,
            completion_ids=completion_ids,
            completion_mask=jnp.asarray(mask),
            advantages=jnp.asarray(rewards, jnp.float32),
            ref_per_token_logps=reference,
            old_per_token_logps=old,
        )

    @property
    def group_size(self) -> int:
        """Completions of one prompt."""
        return self.algo_config.num_generations

    def _log_probs(self, prompt_ids: jax.Array, completion_ids: jax.Array, chunk: int) -> jax.Array:
        """The current policy's log-probabilities, (B, T), at the temperature of the rollout."""
        cluster = self.rl_cluster
        graph, state = nnx.split(cluster.actor_trainer.model)
        with cluster.cluster_config.role_to_mesh[Role.ACTOR]:
            parts = [
                common.compute_per_token_logps(
                    graph,
                    state,
                    prompt_ids[part],
                    completion_ids[part],
                    pad_id=cluster.rollout.pad_id(),
                    eos_id=cluster.rollout.eos_id(),
                    temperature=self.algo_config.temperature,
                )
                for part in rl_utils.chunk_slices_by_size(len(prompt_ids), chunk)
            ]
        return jnp.concatenate(parts)


def with_end(tokens: np.ndarray[Any, Any], eos_id: int, limit: int) -> np.ndarray[Any, Any]:
    """The tokens of a completion with the end token that Tunix's sampler cuts off; at `limit` tokens there was none."""
    if len(tokens) >= limit or (len(tokens) and tokens[-1] == eos_id):
        return tokens[:limit]
    return np.append(tokens, eos_id)


@function_registry.default_registry.register("advantage_estimator", "haepo")
def _raw_rewards(rewards: Any, num_generations: int) -> Any:
    """HAEPO's loss normalises the rewards itself."""
    del num_generations
    return rewards


@function_registry.register_policy_loss_fn("haepo")
def policy_loss(
    model: nnx.Module, train_example: TrainExample, algo_config: HAEPOConfig, pad_id: int, eos_id: int, **_: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`haepo_jax.haepo_loss` of a batch of completions, (B, T), of which each `num_generations` in a row are a group.

    The loss is the mean over groups, and the metrics are those of `haepo_loss`.
    """
    log_probs, logits = common.compute_per_token_logps(
        *nnx.split(model),
        train_example.prompt_ids,
        train_example.completion_ids,
        pad_id=pad_id,
        eos_id=eos_id,
        stop_gradient=False,
        return_logits=True,
        temperature=algo_config.temperature,  # type: ignore[attr-defined]  # GRPOLearner sets it
    )
    entropies = algo_core.compute_entropy_from_logits(logits.astype(jnp.float32))
    return loss_of_log_probs(
        log_probs,
        train_example.completion_mask,
        train_example.advantages,
        algo_config,
        old_log_probs=train_example.old_per_token_logps,
        reference_log_probs=train_example.ref_per_token_logps,
        entropies=entropies if algo_config.entropy_coef else jax.lax.stop_gradient(entropies),
    )


def loss_of_log_probs(
    log_probs: jax.Array,
    mask: jax.Array,
    rewards: jax.Array,
    config: HAEPOConfig,
    *,
    old_log_probs: jax.Array | None,
    reference_log_probs: jax.Array | None,
    entropies: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """HAEPO's loss of token log-probabilities: sums over tokens, groups along the leading axis.

    Args:
      log_probs: (B, T), of the tokens under the policy being optimised, B a multiple of `config.num_generations`.
      mask: (B, T), whether the token belongs to the completion, its end token included.
      rewards: (B,), raw.
      config: the settings.
      old_log_probs: (B, T), under the policy that sampled; None: the current one, without gradient.
      reference_log_probs: (B, T), under the reference; None: no penalty. The penalty is the k3 estimate of
        KL(theta || reference), because the tokens come from the policy being trained, not from the reference.
      entropies: (B, T), of the tokens' distributions.

    Returns:
      The loss and the metrics of `haepo_loss`.
    """
    live = mask.astype(bool)
    # Selected before anything is computed, so that what stands beside a completion reaches no gradient.
    log_probs = jnp.where(live, log_probs, 0.0).astype(jnp.float32)

    def total(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(live, x, 0.0), axis=-1).reshape(-1, config.num_generations)

    lengths = total(jnp.ones_like(log_probs))

    def mean(x: jax.Array) -> jax.Array:  # over a group's tokens
        return jnp.sum(total(x), axis=-1) / jnp.maximum(jnp.sum(lengths, axis=-1), 1)

    history = log_probs
    if config.score.endswith("log_ratio"):
        old = log_probs if old_log_probs is None else old_log_probs.astype(jnp.float32)
        # Subtracted token by token: the difference of two long sums would lose digits.
        history = log_probs - jax.lax.stop_gradient(old)
    kl = jnp.zeros(len(lengths))
    if reference_log_probs is not None:
        kl = mean(k3(jnp.where(live, reference_log_probs, 0.0).astype(jnp.float32) - log_probs))
    return haepo_loss(
        total(history),  # of log-ratios too, where it is the score as it stands
        rewards.reshape(-1, config.num_generations),
        score="mean_likelihood" if config.score.startswith("mean") else "likelihood",
        lengths=lengths,
        temperature=config.weight_temperature,
        normalize=config.normalize,
        entropy_coef=config.entropy_coef,
        kl_coef=config.beta,
        policy_entropy=mean(entropies),
        policy_kl=kl,
    )
