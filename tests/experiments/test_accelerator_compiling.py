"""Updates compile for an H100 and for TPU v5e, one chip and four, where jax's plugins are installed; no device is needed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
WORKER = REPOSITORY / "experiments" / "benchmarks" / "accelerators" / "worker.py"
SMALL: dict[str, Any] = {"num_envs": 8, "hidden_sizes": (8,)}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "HAEPO": {"num_steps": 8},
    "PPO": {"num_steps": 8, "num_minibatches": 2},
    "EpisodicHAEPO": {"num_minibatches": 1},
    "GRPO": {"num_minibatches": 1},
    "DPO": {"num_minibatches": 1},
}


def has(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(plugin) is not None
    except ModuleNotFoundError:
        return False


CUDA = pytest.mark.skipif(not has("jax_plugins.xla_cuda13"), reason="needs jax-cuda13-plugin and jax-cuda13-pjrt")
TPU = pytest.mark.skipif(not has("libtpu"), reason="needs libtpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [pytest.param("h100", marks=CUDA), pytest.param("tpu", marks=TPU), pytest.param("tpu4", marks=TPU)]
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_update_compiles(name: str, target: str) -> None:
    settings = {**SMALL, "group_size": 2, **ALGORITHMS[name]}
    if name == "PPO":
        del settings["group_size"]
    case = {"side": "haepo_jax", "algo": name, "env": "CartPole-v1", "target": target, "program": "train_step"}
    command = [sys.executable, str(WORKER), json.dumps({**case, "settings": settings})]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["callbacks"] == found["transfers"] == 0
    if name in ("HAEPO", "PPO"):
        assert found["whole"]["conditionals"] == found["whole"]["unknown_loops"] == 0
        assert found["loops_in_gradient_step"] == []
    if target == "tpu4":
        assert found["whole"]["collectives"] > 0
