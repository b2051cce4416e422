"""The algorithms. Each is a frozen pytree with `init`, `train_step`, `train` and `evaluate`.

Importing this package does not import JAX; the classes are loaded on first use.
"""

import importlib
from typing import Any

_HOMES = {
    "HAEPO": "haepo",
    "EpisodicHAEPO": "episodic",
    "PPO": "ppo",
    "GRPO": "grpo",
    "DPO": "dpo",
    "Supervised": "supervised",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
