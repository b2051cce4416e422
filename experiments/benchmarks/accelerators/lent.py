"""Measures on a GPU what was estimated without one; made for a machine that is lent for some minutes.

    python experiments/benchmarks/accelerators/lent.py --output OUT [--rejax-python VENV/bin/python] [--minutes 8]

Everything is compiled first, eight programs at a time, into a cache; then each part runs by itself. What matters most comes
first, each part is written as soon as it is known, and what no longer fits into the minutes is left out and named. `--tiny`
tries everything at small sizes, for example on a CPU. The parts:

- speed: steps/s of PPO, HAEPO and rejax's PPO on CartPole, 256 to 16,384 environments, compilation apart, medians;
- sweep: steps/s of 1 to 1,024 configurations (learning rates) in one program;
- resume: two halves of a run equal to the whole, bit for bit, with deterministic operations;
- memory: the device's peak in each of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
ROUNDS = 5


def settings(tiny: bool) -> dict[str, Any]:
    steps = 8 if tiny else 128
    return {"num_steps": steps, "num_epochs": 4, "num_minibatches": 4}


def timed(step: Callable[[Any], Any], state: Any) -> tuple[float, float]:
    """Seconds to compile `step`, a state -> the next one, and the median seconds of a run."""
    import jax

    begin = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state).compile()
    compiling = time.perf_counter() - begin
    state = jax.block_until_ready(compiled(state))
    runs = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        state = jax.block_until_ready(compiled(state))
        runs.append(time.perf_counter() - begin)
    return compiling, statistics.median(runs)


def peak_bytes() -> int | None:
    import jax

    found = jax.devices()[0].memory_stats()
    return None if found is None else int(found["peak_bytes_in_use"])


def ours(algo: str, size: int, configurations: int, tiny: bool) -> dict[str, Any]:
    """Steps/s of an algorithm on CartPole."""
    import jax
    import jax.numpy as jnp

    import haepo_jax as hx

    own: dict[str, Any] = settings(tiny)
    if algo == "HAEPO":
        own |= {"num_steps": 8 if tiny else 32, "num_minibatches": 2 if tiny else 16, "group_size": 4}
    own["normalize_observations"] = False  # as in rejax
    made = getattr(hx, algo)("CartPole-v1", total_steps=10**9, num_envs=size, **own)
    keys, rates = jax.random.split(jax.random.key(0), configurations), jnp.geomspace(1e-4, 1e-2, configurations)
    if configurations == 1:
        state = jax.jit(made.init)(keys[0])
        compiling, seconds = timed(lambda state: made.train_step(state)[0], state)
    else:
        one = lambda rate, state: made.replace(learning_rate=rate).train_step(state)[0]  # noqa: E731
        state = jax.jit(jax.vmap(made.init))(keys)
        compiling, seconds = timed(lambda state: jax.vmap(one)(rates, state), state)
    steps = configurations * size * made.num_steps
    return {"compile_seconds": compiling, "seconds": seconds, "steps_per_second": steps / seconds}


def rejax(size: int, tiny: bool) -> dict[str, Any]:
    import jax
    import rejax as library

    own = settings(tiny)
    algo = library.PPO.create(
        env="CartPole-v1", total_timesteps=10**9, eval_freq=10**9, skip_initial_evaluation=True, num_envs=size, **own,
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
    )  # fmt: skip
    algo = algo.replace(eval_callback=lambda algo, state, key: ())
    state = jax.jit(algo.init_state)(jax.random.key(0))
    compiling, seconds = timed(algo.train_iteration, state)
    return {"compile_seconds": compiling, "seconds": seconds, "steps_per_second": size * own["num_steps"] / seconds}


def resume(algo: str, tiny: bool) -> dict[str, Any]:
    """Whether a run cut in the middle, its state through host memory, ends with the same bits."""
    import jax
    import numpy as np

    import haepo_jax as hx

    made = getattr(hx, algo)("CartPole-v1", total_steps=10**6, **({"num_steps": 8} if tiny else {}))
    step = jax.jit(lambda state: made.train_step(state)[0])
    turns = 2 if tiny else 20

    def run(state: Any, times: int) -> Any:
        for _ in range(times):
            state = step(state)
        return state

    start = jax.jit(made.init)(jax.random.key(1))
    whole = run(start, 2 * turns)
    key_data = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    middle = jax.tree.map(lambda x: x if key_data(x) is not x else jax.device_put(np.asarray(x)), run(start, turns))
    pairs = zip(jax.tree.leaves(whole.params), jax.tree.leaves(run(middle, turns).params), strict=True)
    return {"bit_equal": all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs), "updates": 2 * turns}


def parts(tiny: bool) -> Iterator[dict[str, Any]]:
    """What to measure, the most important first; each in a process of its own."""
    sizes = (4, 8) if tiny else (256, 2048, 16384)
    for size in sizes:
        yield {"part": "speed", "side": "haepo_jax", "algo": "PPO", "size": size}
        yield {"part": "speed", "side": "rejax", "algo": "PPO", "size": size}
        yield {"part": "speed", "side": "haepo_jax", "algo": "HAEPO", "size": size}
        if size == sizes[0]:
            yield {"part": "resume", "side": "haepo_jax", "algo": "HAEPO"}
            yield {"part": "resume", "side": "haepo_jax", "algo": "PPO"}
            for count in (1, 2) if tiny else (1, 32, 256, 1024):
                yield {"part": "sweep", "side": "haepo_jax", "algo": "HAEPO", "size": 8, "configurations": count}


def answer(request: dict[str, Any], tiny: bool) -> dict[str, Any]:
    import jax

    if request["part"] == "resume":
        found = resume(request["algo"], tiny)
    elif request["side"] == "rejax":
        found = rejax(request["size"], tiny)
    else:
        found = ours(request["algo"], request["size"], request.get("configurations", 1), tiny)
    device = jax.devices()[0]
    return {**found, "peak_bytes": peak_bytes(), "device": device.device_kind, "jax": jax.__version__}


def environment(request: dict[str, Any], cache: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if request["side"] == "haepo_jax" or key != "PYTHONPATH"}
    flags = os.environ.get("XLA_FLAGS", "")
    if request["part"] == "resume" and "cpu" not in os.environ.get("JAX_PLATFORMS", ""):
        flags += " --xla_gpu_deterministic_ops=true"
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    ours = {"PYTHONPATH": os.pathsep.join(paths)} if request["side"] == "haepo_jax" else {}
    cached = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return kept | ours | cached | {"XLA_FLAGS": flags.strip(), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def ask(request: dict[str, Any], options: argparse.Namespace, cache: Path, end: float) -> dict[str, Any]:
    """The answer of a process of its own, in which a part is measured."""
    python = options.rejax_python if request["side"] == "rejax" else sys.executable
    left = end - time.monotonic()
    if python is None or left < (0 if options.tiny else 10):
        return {"left_out": "no interpreter" if python is None else "no time"}
    call = [python, __file__, "--output", options.output, "--answer", json.dumps(request)]
    call += ["--tiny"] if options.tiny else []
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=left, env=environment(request, cache))
    except subprocess.TimeoutExpired:
        return {"left_out": "no time"}
    said = done.stdout.strip().splitlines()
    if done.returncode or not said:
        return {"error": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}
    found: dict[str, Any] = json.loads(said[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of lent.json")
    parser.add_argument("--rejax-python", help="interpreter with rejax; without it rejax is left out")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--answer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        print(json.dumps(answer(json.loads(options.answer), options.tiny)), flush=True)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    requests = list(parts(options.tiny))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        with ThreadPoolExecutor(2 if options.tiny else 8) as pool:
            compiled = list(pool.map(lambda request: ask(request, options, cache, end), requests))
        for request, first in zip(requests, compiled, strict=True):
            found = first if request["part"] == "resume" else ask(request, options, cache, end)
            if "compile_seconds" in found and "compile_seconds" in first:
                found["compile_seconds"] = first["compile_seconds"]  # of eight at a time; now it came from the cache
            rows.append({**request, **found})
            print(json.dumps(rows[-1]), flush=True)
            (options.output / "lent.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
