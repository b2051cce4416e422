"""What is compiled: a base case for each algorithm, and one axis at a time from there."""

from __future__ import annotations

from typing import Any

CARTPOLE = "CartPole-v1"
PPO: dict[str, Any] = {"num_envs": 32, "num_steps": 128, "num_epochs": 4, "num_minibatches": 4}
GROUPS: dict[str, Any] = {"num_envs": 32, "num_epochs": 8, "num_minibatches": 4}
FORMER: dict[str, Any] = {"num_epochs": 16, "num_minibatches": 1, "group_size": 8}
"""HAEPO's default before: fewer and larger gradient steps."""

BASES: dict[str, dict[str, Any]] = {
    "HAEPO": {"algo": "HAEPO"},
    "HAEPO 16x1": {"algo": "HAEPO", "settings": FORMER},
    "EpisodicHAEPO": {"algo": "EpisodicHAEPO", "settings": GROUPS},
    "GRPO": {"algo": "GRPO", "settings": GROUPS},
    "DPO": {"algo": "DPO", "settings": GROUPS},
    "PPO": {"algo": "PPO", "settings": PPO},
    "rejax PPO": {"side": "rejax", "algo": "PPO", "settings": PPO},
}

TASKS: dict[str, dict[str, Any]] = {
    "Breakout-MinAtar": {"env": "Breakout-MinAtar"},
    "inverted_pendulum": {"env": "brax/inverted_pendulum"},
    "ant": {"env": "brax/ant"},
    "reverse, transformer": {"env": "haepo/reverse", "settings": {"network": "transformer", "hidden_sizes": (64,)}},
    "CartPole, GRU": {"env": CARTPOLE, "settings": {"network": "gru", "hidden_sizes": (64,)}},
}

ENVIRONMENTS = (8, 256, 2048, 16384)
CONFIGURATIONS = (32, 1024)


def case(base: str, target: str = "h100", program: str = "train_step", **changes: Any) -> dict[str, Any]:
    settings = {**BASES[base].get("settings", {}), **changes.pop("settings", {})}
    defaults = {"side": "haepo_jax", "env": CARTPOLE, "target": target, "program": program}
    found = {**defaults, **BASES[base], **changes}
    if (found["side"], found["env"]) == ("haepo_jax", CARTPOLE):
        settings["normalize_observations"] = False  # as in rejax
    return {**found, "settings": settings}


def all_cases() -> dict[str, dict[str, dict[str, Any]]]:
    """Cases by part and name. A name is base/what is changed/target."""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    parts["base"] = {f"{base}/h100": case(base) for base in BASES}
    parts["tasks"] = {
        f"{base}/{name}/h100": case(base, **change) for base in ("HAEPO", "PPO") for name, change in TASKS.items()
    } | {"rejax PPO/Breakout-MinAtar/h100": case("rejax PPO", env="Breakout-MinAtar")}
    parts["environments"] = {
        f"{base}/{size} environments/h100": case(base, settings={"num_envs": size})
        for base in ("HAEPO", "PPO", "rejax PPO")
        for size in ENVIRONMENTS
        if not (base == "HAEPO" and size == 8)  # the base case itself
    }
    parts["configurations"] = {
        f"{base}/{size} configurations/h100": case(base, configurations=size)
        for base in ("HAEPO", "PPO", "rejax PPO")
        for size in CONFIGURATIONS
    }
    parts["tpu"] = {
        f"{base}/{target}": case(base, target)
        for target in ("tpu", "tpu4")
        for base, settings in BASES.items()
        if settings.get("side") != "rejax" or target == "tpu"
    }
    kinds = {"mlp": {}, **{kind: {"network": kind, "hidden_sizes": (64,)} for kind in ("gru", "lstm", "transformer")}}
    parts["train"] = {
        f"{base}/{kind}/train/{target}": case(base, target, "train", settings=settings)
        for base in ("HAEPO", "EpisodicHAEPO", "GRPO", "DPO", "PPO")
        for kind, settings in kinds.items()
        for target in ("h100", "tpu", "tpu4")
    } | {
        f"Supervised/{kind}/train/{target}": case(
            "HAEPO", target, "train", algo="Supervised", env="haepo/reverse", settings=kinds[kind]
        )
        for kind in ("mlp", "transformer")
        for target in ("h100", "tpu", "tpu4")
    }
    return parts
