"""One run whose environments are sharded over devices."""

from __future__ import annotations

import runpy
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from haepo_jax import sharding
from tests.jobs import environment, run

EIGHT_DEVICES = """
import sys
import jax, numpy as np
import haepo_jax as hx
from haepo_jax import sharding
assert jax.device_count() == 8
env = hx.make_env("haepo/random_walk", length=4, horizon=8)
sizes = dict(num_envs=16, group_size=8, num_minibatches=1, num_epochs=2, hidden_sizes=(4,))
algorithm = getattr(hx, sys.argv[1])(env, total_steps=2000, **sizes)
start = jax.jit(algorithm.init)(jax.random.key(0))
results = []
for sharded in (False, True):
    step = lambda state: algorithm.train_step(state)
    if sharded:
        with sharding.over_environments() as mesh:
            compiled = jax.jit(step).lower(start).compile()
        assert mesh.devices.size == 8
        # Every device plays two of the sixteen episodes, and what the losses sum or normalise over is put together.
        assert "all-reduce" in compiled.as_text() or "all-gather" in compiled.as_text()
    else:
        compiled = jax.jit(step).lower(start).compile()
    state = start
    if sharded:
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
@pytest.mark.parametrize("method", ["HAEPO", "EpisodicHAEPO"])
def test_eight_devices_do_what_one_does(method: str) -> None:
    result = run(["-c", EIGHT_DEVICES, method], 8)
    assert result.returncode == 0, result.stderr


def test_two_processes_train_as_one_does() -> None:
    """Three updates over two devices of each process; the script is the one that the docs name."""
    script = Path(__file__).parents[1] / "examples" / "several_hosts.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), address, "2", str(index)],
            env=environment(2, JAX_DISABLE_MOST_OPTIMIZATIONS="1"),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        _, metrics = jax.jit(runpy.run_path(str(script))["algorithm"]().train)(jax.random.key(0))
        lines, others = (
            # Gloo's threads write into one another's lines.
            [
                x
                for x in process.communicate(timeout=300)[0].splitlines()
                if not x.startswith("[Gloo]") and "peer rank" not in x
            ]
            for process in processes
        )
    finally:
        for process in processes:
            process.kill()
    assert lines[0] == "4 devices of 2 processes" and others == []
    for name, *values in map(str.split, lines[1:]):
        np.testing.assert_allclose([float(value) for value in values], metrics[name], rtol=1e-3, err_msg=name)
    assert len(lines) == 4 and len(metrics["loss"]) == 3


def test_nothing_is_sharded_unless_it_is_asked_for() -> None:
    arrays = {"x": jnp.zeros((4, 2)), "key": jax.random.split(jax.random.key(0), 4)}
    assert sharding.shard_environments(arrays) is arrays
    with sharding.over_environments():
        sharded = jax.jit(sharding.shard_environments)(arrays)
    assert sharded["x"].shape == (4, 2) and sharded["key"].shape == (4,)
    assert sharding.shard_environments(arrays) is arrays


def test_a_mesh_of_another_kind_is_left_alone() -> None:
    """Such as that of a sweep, which is inside of `shard_map`, or one's own over the same axis."""
    arrays = jnp.zeros((4, 2))
    for name in ("population", sharding.AXIS):
        mesh = jax.make_mesh((1,), (name,), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
        share = PartitionSpec(name)
        mapped = jax.shard_map(sharding.shard_environments, mesh=mesh, in_specs=share, out_specs=share, check_vma=False)
        assert "sharding_constraint" not in str(jax.make_jaxpr(mapped)(arrays))


def test_a_jitted_function_follows_the_mesh() -> None:
    """It may have been called outside before; the environments may be those of several seeds."""
    sharded = jax.jit(lambda arrays: jax.vmap(sharding.shard_environments)(arrays))
    arrays = jnp.zeros((3, 4))
    assert "sharding_constraint" not in str(jax.make_jaxpr(sharded)(arrays))
    with sharding.over_environments(jax.devices()[:1]):
        assert "sharding_constraint" in str(jax.make_jaxpr(sharded)(arrays))
        assert sharding.shard_environments(arrays) is arrays, "what is not traced is where it is"
    assert "sharding_constraint" not in str(jax.make_jaxpr(sharded)(arrays))
