"""Losses: arrays in, a scalar and metrics out. They can be used without the rest of the library."""

from haepo_jax.losses.advantages import generalized_advantage_estimation
from haepo_jax.losses.dpo import dpo_loss
from haepo_jax.losses.grpo import grpo_loss
from haepo_jax.losses.haepo import haepo_loss
from haepo_jax.losses.haepo_advantage import haepo_advantage_loss
from haepo_jax.losses.haepo_prefix import haepo_prefix_loss
from haepo_jax.losses.kl import kl_k3
from haepo_jax.losses.off_policy import vtrace
from haepo_jax.losses.ppo import ppo_loss
from haepo_jax.losses.returns import normalize_returns
from haepo_jax.losses.weights import AUTO, Auto, plackett_luce_weights, trajectory_log_likelihood

__all__ = [
    "AUTO",
    "Auto",
    "dpo_loss",
    "generalized_advantage_estimation",
    "grpo_loss",
    "haepo_advantage_loss",
    "haepo_loss",
    "haepo_prefix_loss",
    "kl_k3",
    "normalize_returns",
    "plackett_luce_weights",
    "ppo_loss",
    "trajectory_log_likelihood",
    "vtrace",
]
