"""HAEPO for pretrained language models, on the models and the sampler of Tunix, Google's post-training library in JAX
(extra `llm`).

`python -m haepo_jax.llm` fine-tunes a folder in Hugging Face format and writes one. In Python:

    from haepo_jax.llm import Learner, LearnerConfig, load_tokenizer, read_folder

    folder = read_folder("SmolLM2-135M")
    learner = Learner(LearnerConfig(learning_rate=2e-5), folder, load_tokenizer(folder), prompt_length=64)
    completions = learner.sample(prompts, key)  # group_size times each prompt of prompts_per_step
    batches, metrics = learner.learn([learner.batch(completions, rewards)])

A completion is a trajectory, the completions of one prompt are a group, and the loss is `haepo_jax.haepo_loss` on sums
of token log-probabilities, `haepo_jax.grpo_loss` or `haepo_jax.dpo_loss`. Only public functions of Tunix are called.

Tested on CPU with Tunix 0.1.7: SmolLM2-135M, which has also run on an H100, and Qwen 2, Qwen 3 and Llama models of two layers.
"""

from __future__ import annotations

import importlib
from importlib import util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haepo_jax.llm.folder import load_tokenizer as load_tokenizer
    from haepo_jax.llm.folder import read_folder as read_folder
    from haepo_jax.llm.learner import Learner as Learner
    from haepo_jax.llm.settings import LearnerConfig as LearnerConfig

_HOMES = {"Learner": "learner", "LearnerConfig": "settings", "load_tokenizer": "folder", "read_folder": "folder"}

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
    return getattr(importlib.import_module(f"haepo_jax.llm.{_HOMES[name]}"), name)
