"""Compiles one program for a device that is not there, and prints what it would run, as one line of JSON.

    python worker.py '{"side": "haepo_jax", "algo": "PPO", "env": "CartPole-v1", "target": "h100", "program": "train_step"}'

`run.py` calls it under the interpreter of each side; it imports the libraries of that side alone.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

TARGETS: dict[str, dict[str, Any]] = {
    "h100": {"platform": "cuda", "devices": 1, "topology": {"topology": "1x1x1"}},
    "tpu": {"platform": "tpu", "devices": 1, "topology": {"topology_name": "v5e:2x2"}},
    "tpu4": {"platform": "tpu", "devices": 4, "topology": {"topology_name": "v5e:2x2"}},
}
"""v5e has no smaller slice with a name than four chips; one chip is the first of them."""

GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
"""Without a GPU nothing can be timed, so what is chosen by timing keeps its default."""


def prepare(target: str) -> None:
    """Must come before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if TARGETS[target]["platform"] == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {GPU_FLAGS}".strip()
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"


def devices_of(target: str) -> list[Any]:
    """The absent devices of a target."""
    from jax.experimental import topologies

    chosen = TARGETS[target]
    extra = {"target_config": (HERE / "h100.txtpb").read_text()} if chosen["platform"] == "cuda" else {}
    found = topologies.get_topology_desc(platform=chosen["platform"], **chosen["topology"], **extra)
    return list(found.devices[: chosen["devices"]])


def ours(case: dict[str, Any]) -> tuple[Callable[..., Any], Any, Callable[[Any], Any], int | None]:
    """train_step, an abstract state, train, and the number of environment steps of an update (None: until all end)."""
    import jax

    import haepo_jax as hx

    env = hx.make_env(case["env"], **case.get("env_settings", {}))
    algo = getattr(hx, case["algo"])(env, **case.get("settings", {}))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return algo.train_step, jax.eval_shape(algo.init, key), algo.train, getattr(algo, "num_steps", None)


def rejax(case: dict[str, Any]) -> tuple[Callable[..., Any], Any, Callable[[Any], Any], int | None]:
    """As `ours`, of rejax's PPO."""
    import jax
    import rejax as library

    settings = dict(case.get("settings", {}))
    algo = library.PPO.create(
        env=case["env"],
        total_timesteps=settings.pop("total_steps", 50_000),
        eval_freq=10**6,
        skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": settings.pop("hidden_sizes", (64, 64)), "activation": "tanh"},
        **settings,
    )
    algo = algo.replace(eval_callback=lambda algo, state, key: ())
    key = jax.eval_shape(lambda: jax.random.key(0))
    return algo.train_iteration, jax.eval_shape(algo.init_state, key), algo.train, algo.num_steps


SIDES = {"haepo_jax": ours, "rejax": rejax}


def compiled(case: dict[str, Any]) -> tuple[Any, dict[str, Any], int | None]:
    """The compiled program of a case, and how long it took; `prepare` was called."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

    target = TARGETS[case["target"]]
    devices = devices_of(case["target"])
    step, state, train, num_steps = SIDES[case["side"]](case)
    function, argument = (step, state) if case["program"] == "train_step" else (
        train, jax.eval_shape(lambda: jax.random.key(0))
    )  # fmt: skip
    configurations = case.get("configurations", 1)
    if configurations > 1:
        function = jax.vmap(function)
        argument = jax.tree.map(lambda x: jax.ShapeDtypeStruct((configurations, *x.shape), x.dtype), argument)

    def placed(sharding: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), argument)

    jitted = jax.jit(function, donate_argnums=0 if case["program"] == "train_step" else ())
    begin = time.perf_counter()
    if len(devices) > 1:
        from haepo_jax.sharding import over_environments

        with over_environments(devices) as mesh:
            lowered = jitted.trace(placed(NamedSharding(mesh, PartitionSpec()))).lower(
                lowering_platforms=(target["platform"],)
            )
            middle = time.perf_counter()
            program = lowered.compile()
    else:
        lowered = jitted.trace(placed(SingleDeviceSharding(devices[0]))).lower(lowering_platforms=(target["platform"],))
        middle = time.perf_counter()
        program = lowered.compile()
    times = {"lower_seconds": middle - begin, "compile_seconds": time.perf_counter() - middle}
    return program, times, num_steps


def measure(case: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, str(HERE))
    from hlo import count

    program, found, num_steps = compiled(case)
    text = program.as_text()
    if "dump" in case:
        Path(case["dump"]).write_text(text)
    found |= count(text, num_steps)
    memory = program.memory_analysis()
    if memory is not None:
        names = ("temp", "argument", "output", "alias", "generated_code")
        found["memory"] = {name: int(getattr(memory, f"{name}_size_in_bytes")) for name in names}
    costs = program.cost_analysis()
    if costs:
        # The compiler's own count, which takes every loop's body once.
        found["cost_analysis"] = {name: costs[name] for name in ("flops", "bytes accessed") if name in costs}
    found["peak_bytes_of_compiling"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    prepare(request["target"])
    print(json.dumps(measure(request)), flush=True)
