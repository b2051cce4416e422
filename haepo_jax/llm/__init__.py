"""HAEPO for pretrained language models: an adapter to Tunix, Google's post-training library in JAX (extra `llm`).

In a script that trains with Tunix's GRPO, two names change; reward functions, data and everything else stay:

    from haepo_jax.llm import HAEPOConfig, HAEPOLearner

    learner = HAEPOLearner(cluster, HAEPOConfig(num_generations=8, beta=0.04), reward_fns=[reward])
    learner.train(dataset)

A completion is a trajectory, the completions of one prompt are a group, and the loss is `haepo_jax.haepo_loss` on sums
of token log-probabilities. Model, sampling, reference, optimiser, sharding and checkpoints are Tunix's. Without a
script, `python -m haepo_jax.llm` fine-tunes a folder in Hugging Face format, and writes one.

Tried, on CPU with Tunix 0.1.7: Qwen 2, Qwen 3 and Llama models of two layers and 30,000 parameters, with weights and
tokenizer made and trained on the spot and loaded as a downloaded folder is; the folders written give the same logits in
`transformers`; one device, and two simulated ones. Not tried: a downloaded checkpoint of any size (no model of 0.5
billion parameters was run), an accelerator, and vLLM or SGLang for sampling. Refused: published Llama 3 folders,
because Tunix 0.1.7 computes their rotary embeddings with another theta and without scaling; and mixtures of experts.
"""

from __future__ import annotations

import importlib
from importlib import util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haepo_jax.llm.learner import HAEPOConfig as HAEPOConfig
    from haepo_jax.llm.learner import HAEPOLearner as HAEPOLearner
    from haepo_jax.llm.rollout import Rollout as Rollout

_HOMES = {
    "HAEPOConfig": "haepo_jax.llm.learner",
    "HAEPOLearner": "haepo_jax.llm.learner",
    "Rollout": "haepo_jax.llm.rollout",
}

__all__ = list(_HOMES)

NEEDS_TUNIX = "haepo_jax.llm needs Tunix, which the extra `llm` installs: pip install 'haepo-jax[llm]'"


def has_tunix() -> bool:
    """Whether Tunix is installed."""
    return util.find_spec("tunix") is not None


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'haepo_jax.llm' has no attribute {name!r}")
    if not has_tunix():
        raise ImportError(NEEDS_TUNIX)
    return getattr(importlib.import_module(_HOMES[name]), name)
