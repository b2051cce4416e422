"""One run whose environments are shared out over devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import haepo_jax
from haepo_jax import sharding

EIGHT_DEVICES = """
import jax, numpy as np
import haepo_jax as hx
from haepo_jax import sharding
assert jax.device_count() == 8
env = hx.make_env("haepo/random_walk", length=4, horizon=8)
sizes = dict(num_envs=16, group_size=8, num_minibatches=1, num_epochs=2, hidden_sizes=(4,))
algorithm = hx.HAEPO(env, total_steps=2000, **sizes)
start = jax.jit(algorithm.init)(jax.random.key(0))
results = []
for shared in (False, True):
    step = lambda state: algorithm.train_step(state)
    if shared:
        with sharding.over_environments() as mesh:
            compiled = jax.jit(step).lower(start).compile()
        assert mesh.devices.size == 8
        # Every device plays two of the sixteen episodes, and what the losses sum or normalise over is put together.
        assert "all-reduce" in compiled.as_text() or "all-gather" in compiled.as_text()
    else:
        compiled = jax.jit(step).lower(start).compile()
    state = start
    if shared:
        state = jax.device_put(start, compiled.input_shardings[0][0])
    for _ in range(3):
        state, metrics = compiled(state)
        state = jax.device_put(jax.device_get(state), compiled.input_shardings[0][0])
    results.append((jax.device_get(state.params), state.env_steps.to_int(), jax.device_get(metrics["loss"])))
(one, steps, loss), (eight, shared_steps, shared_loss) = results
assert steps == shared_steps
np.testing.assert_allclose(loss, shared_loss, rtol=1e-3, atol=1e-5)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
"""


@pytest.mark.slow
def test_eight_devices_do_what_one_does() -> None:
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(haepo_jax.__file__).parents[1]),
    }
    command = [sys.executable, "-c", EIGHT_DEVICES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_nothing_is_shared_out_unless_it_is_asked_for() -> None:
    lanes = {"x": jnp.zeros((4, 2)), "key": jax.random.split(jax.random.key(0), 4)}
    assert sharding.share_out(lanes) is lanes
    with sharding.over_environments():
        shared = jax.jit(sharding.share_out)(lanes)
    assert shared["x"].shape == (4, 2) and shared["key"].shape == (4,)
    assert sharding.share_out(lanes) is lanes
