"""haepo_jax: functional reinforcement learning around HAEPO in JAX.

The names below are the public API. They are loaded on first use, so that the command line can check its input without
importing JAX.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from typing import TYPE_CHECKING, Any

from haepo_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from haepo_jax.algorithms.dpo import DPO as DPO
    from haepo_jax.algorithms.episodic import EpisodicHAEPO as EpisodicHAEPO
    from haepo_jax.algorithms.fields import HyperparameterError as HyperparameterError
    from haepo_jax.algorithms.grpo import GRPO as GRPO
    from haepo_jax.algorithms.haepo import HAEPO as HAEPO
    from haepo_jax.algorithms.ppo import PPO as PPO
    from haepo_jax.algorithms.supervised import Supervised as Supervised
    from haepo_jax.envs import list_envs as list_envs
    from haepo_jax.envs import make_env as make_env
    from haepo_jax.losses import dpo_loss as dpo_loss
    from haepo_jax.losses import generalized_advantage_estimation as generalized_advantage_estimation
    from haepo_jax.losses import grpo_loss as grpo_loss
    from haepo_jax.losses import haepo_advantage_loss as haepo_advantage_loss
    from haepo_jax.losses import haepo_loss as haepo_loss
    from haepo_jax.losses import haepo_prefix_loss as haepo_prefix_loss
    from haepo_jax.losses import plackett_luce_weights as plackett_luce_weights
    from haepo_jax.losses import ppo_loss as ppo_loss
    from haepo_jax.losses import trajectory_log_likelihood as trajectory_log_likelihood
    from haepo_jax.losses import vtrace as vtrace
    from haepo_jax.runner.loading import TrainedPolicy as TrainedPolicy
    from haepo_jax.runner.loading import load as load
    from haepo_jax.runner.scripting import TrainResult as TrainResult
    from haepo_jax.runner.scripting import train as train
    from haepo_jax.runner.sweeps.worker import sweep as sweep

_HOMES = {
    "HAEPO": "haepo_jax.algorithms.haepo",
    "EpisodicHAEPO": "haepo_jax.algorithms.episodic",
    "PPO": "haepo_jax.algorithms.ppo",
    "GRPO": "haepo_jax.algorithms.grpo",
    "DPO": "haepo_jax.algorithms.dpo",
    "Supervised": "haepo_jax.algorithms.supervised",
    "HyperparameterError": "haepo_jax.algorithms.fields",
    "train": "haepo_jax.runner.scripting",
    "TrainResult": "haepo_jax.runner.scripting",
    "sweep": "haepo_jax.runner.sweeps.worker",
    "make_env": "haepo_jax.envs",
    "list_envs": "haepo_jax.envs",
    "load": "haepo_jax.runner.loading",
    "TrainedPolicy": "haepo_jax.runner.loading",
    "trajectory_log_likelihood": "haepo_jax.losses",
    "plackett_luce_weights": "haepo_jax.losses",
    "haepo_advantage_loss": "haepo_jax.losses",
    "haepo_loss": "haepo_jax.losses",
    "haepo_prefix_loss": "haepo_jax.losses",
    "ppo_loss": "haepo_jax.losses",
    "grpo_loss": "haepo_jax.losses",
    "dpo_loss": "haepo_jax.losses",
    "generalized_advantage_estimation": "haepo_jax.losses",
    "vtrace": "haepo_jax.losses",
}

if os.environ.get("MPLBACKEND", "").startswith("module://") and "matplotlib" not in sys.modules:
    # Processes started from Jupyter inherit its matplotlib backend. It is not needed here, but matplotlib, which gymnax
    # also imports, cannot be imported if the backend in this environment variable is not installed.
    try:
        _backend = importlib.util.find_spec(os.environ["MPLBACKEND"].removeprefix("module://"))
    except (ImportError, ValueError):
        _backend = None
    if _backend is None:
        del os.environ["MPLBACKEND"]

_MODULES = ("envs", "losses", "networks", "rollout", "sequence_networks", "sharding", "statistics")

__all__ = [*_HOMES, *_MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"haepo_jax.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'haepo_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """`import haepo_jax.train` must not put the command's module in the place of the function `hx.train`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
