"""Sampling: Tunix's own sampler with what training needs of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from flax import nnx
from tunix.rl.rollout.base_rollout import CacheConfig, RolloutConfig, RolloutOutput
from tunix.rl.rollout.vanilla_rollout import VanillaRollout

from haepo_jax.llm.learner import with_end


class Rollout(VanillaRollout):
    """Tunix's vanilla rollout, with fresh random numbers in every call and each completion's end token kept.

    The vanilla rollout takes `RolloutConfig.seed` anew in each call, so that every step of a run samples with the same
    numbers, and cuts the end token off, so that nothing learns when to stop. For
    `ClusterConfig(rollout_engine=Rollout)`, with actor and rollout on one mesh.

    Attributes:
      calls: how many batches have been sampled; a resumed run sets it, and samples on as if it had not been ended.
    """

    def __init__(self, *, rollout_actor: nnx.Module, tokenizer: Any, mesh: Any, rollout_config: RolloutConfig) -> None:
        del mesh
        model: Any = rollout_actor.config  # type: ignore[attr-defined]
        cache = CacheConfig(rollout_config.kv_cache_size, model.num_layers, model.num_kv_heads, model.head_dim)
        super().__init__(rollout_actor, tokenizer, cache)
        self.calls = 0

    def generate(self, prompts: list[str], rollout_config: RolloutConfig, **keywords: Any) -> RolloutOutput:
        """Samples a completion of every prompt."""
        seed = 0 if rollout_config.seed is None else rollout_config.seed
        key = jax.random.fold_in(jax.random.key(seed) if isinstance(seed, int) else seed, self.calls)
        self.calls += 1
        output = super().generate(prompts, dataclasses.replace(rollout_config, seed=key), **keywords)
        limit = rollout_config.max_tokens_to_generate
        return dataclasses.replace(output, tokens=[with_end(row, self.eos_id(), limit) for row in output.tokens])
