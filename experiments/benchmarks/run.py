"""The benchmark: haepo_jax beside rejax, Brax's PPO and Stable-Baselines3, and beside what bare JAX takes.

    python experiments/benchmarks/run.py --size quick
    python experiments/benchmarks/run.py --size full --parts start speed limit memory sweep checkpoints

Parts:
  start        seconds from pressing return to the first update, and to a return of 475 on CartPole: ours and every peer's,
               with an empty and with a filled compilation cache; and the peak of memory
  speed        environment steps a second, compilation and evaluation left out, ours and a peer's in turns
  curves       returns of our PPO and of rejax's at equal hyperparameters
  limit        the share that an update of HAEPO has of bare JAX's time for the same shapes (`limit.py`)
  sequences    what a transformer gains from one pass over a sequence, against a scan over its carry
  memory       memory of an update with 1,024 environments, against the trajectories stored in it, by horizon
  sweep, sequential, processes, sweep_rejax, growth, halving, seeds     of `--algo`; see `sweeps.py`
  checkpoints  how long checkpoints keep the training loop waiting

Every part writes its results, the machine, the versions and the command to `OUTPUT/<part>.json` (of a sweep with its algorithm);
`python experiments/benchmarks/report.py OUTPUT` makes tables and figures from those files alone. The peers' environments
are made at first use, in the user's cache directory; see `peers.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]  # a checkout that is not installed

import checkpoints  # noqa: E402
import peers  # noqa: E402
import sweeps  # noqa: E402

CARTPOLE: dict[str, Any] = {"env": "CartPole-v1", "algo": "ppo", "num_envs": 32}
REACHER = {"backend": "spring"}
SPEED: dict[str, list[tuple[str, dict[str, Any], list[int]]]] = {
    "quick": [("rejax", CARTPOLE | {"total_steps": 163_840}, [1, 8])],
    "full": [
        ("rejax", CARTPOLE | {"total_steps": 163_840}, [1, 8]),
        ("rejax", CARTPOLE | {"total_steps": 81_920}, [64]),
        ("rejax", CARTPOLE | {"env": "Acrobot-v1", "total_steps": 163_840}, [1, 8]),
        ("rejax", CARTPOLE | {"env": "Breakout-MinAtar", "total_steps": 81_920}, [1]),
        *(("rejax", CARTPOLE | {"num_envs": envs, "total_steps": 128 * envs * 5}, [1]) for envs in (256, 1024, 4096)),
        ("brax", {"env": "brax/inverted_pendulum", "algo": "ppo", "num_envs": 256, "total_steps": 655_360}, [1]),
        ("brax", {"env": "brax/reacher", "algo": "ppo", "num_envs": 256, "total_steps": 655_360, "env_kwargs": REACHER}, [1]),
    ],
}  # fmt: skip
"""Who is measured beside us, on what, and with how many vmapped seeds."""


def command_of(side: str, seed: int, folder: Path) -> list[str]:
    """Of a training of CartPole until it is solved."""
    if not side.startswith("haepo_jax"):
        return [peers.interpreter(side), str(HERE / "worker.py"), "solve", side, str(seed)]
    algo = side.removeprefix("haepo_jax_")
    settings = ["env=CartPole-v1", f"algo={algo}", f"seed={seed}", "algo.log_points=120", f"run_dir={folder / 'run'}"]
    return [sys.executable, "-m", "haepo_jax.train", *settings]


def started(side: str, seed: int, cache: Path, limit: float) -> dict[str, float | None]:
    """Seconds from the start of a process to its first update and to a return of 475, and its peak memory."""
    found: dict[str, float | None] = {"updated": None, "solved": None}
    # Not that of matplotlib's fonts, which is no matter of compilation.
    caches = {"XDG_CACHE_HOME": str(cache), "MPLCONFIGDIR": matplotlib.get_cachedir()}
    if not side.startswith("haepo_jax"):  # jax's cache is off by default there; it is turned on, to be fair
        caches = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile("w+") as output:
        folder = Path(name)
        rows = folder / "run" / "metrics.jsonl"
        command, variables = command_of(side, seed, folder), peers.environment(side, **caches)
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, env=variables)
        status = pid = 0
        while not pid and found["solved"] is None and time.perf_counter() - begin < limit:
            time.sleep(0.02)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            now = time.perf_counter() - begin
            if side.startswith("haepo_jax"):
                lines = rows.read_text().splitlines() if rows.exists() else []
                events = [json.loads(line) for line in lines if line.endswith("}")]
                found["updated"] = found["updated"] or (now if events else None)
                done = any(row["eval_return"] >= 475 for row in events)
            else:
                output.seek(0)
                events = [json.loads(line) for line in output if line.startswith("{") and line.endswith("}\n")]
                found["updated"] = found["updated"] or (now if events else None)
                done = any(event["event"] == "solved" for event in events)
            found["solved"] = now if done else None
        ended = bool(pid)
        if not ended:
            process.send_signal(signal.SIGKILL)
            pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if ended and found["updated"] is None:
            raise RuntimeError(f"{side} ended with exit status {process.returncode} before its first update")
    return found | {"peak_bytes": float(1024 * usage.ru_maxrss)}


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    sides = ["haepo_jax_haepo", "haepo_jax_ppo", "rejax", "sb3"]
    runs: dict[str, dict[str, list[Any]]] = {side: {"cold": [], "warm": []} for side in sides}
    for side in sides:  # what is installed for a peer is compiled to bytecode, and read into the disk's cache
        with tempfile.TemporaryDirectory() as cache:
            started(side, 0, Path(cache), options.limit)
    for seed in range(options.rounds):
        for side in sides if seed % 2 else sides[::-1]:
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    runs[side][kind].append(started(side, seed, Path(cache), options.limit))
                    print(f"  {side:16s} {kind}  {runs[side][kind][-1]}", flush=True)
    return {"runs": runs}


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Trains in turns after one call that compiles; each round gives one ratio, which the machine's drift leaves alone."""
    rows = []
    for peer, request, all_seeds in SPEED[options.size]:
        for seeds in all_seeds:
            with peers.Worker("haepo_jax") as mine, peers.Worker(peer) as theirs:
                workers = {worker.side: worker for worker in (mine, theirs)}
                asked = request | {"seeds": seeds}
                first = {side: worker.ask(**asked, seed=0) for side, worker in workers.items()}
                answers: dict[str, list[Any]] = {side: [] for side in workers}
                for turn in range(options.rounds):
                    for side in list(workers)[:: 1 if turn % 2 else -1]:
                        answers[side].append(workers[side].ask(**asked, seed=turn + 1))
                rates = {side: [a["steps"] / a["seconds"] for a in found] for side, found in answers.items()}
                ratios = [ours / other for ours, other in zip(*rates.values(), strict=True)]
                versions = {side: worker.versions for side, worker in workers.items()}
                rows.append(
                    {**asked, "peer": peer, "versions": versions, "first": first, "answers": answers, "ratios": ratios}
                )
            print(f"  {request['env']} beside {peer}, {seeds} seeds: {statistics.median(ratios):.2f}", flush=True)
    return {"rows": rows}


def measure_curves(options: argparse.Namespace) -> dict[str, Any]:
    full = options.size == "full"
    request = CARTPOLE | {"total_steps": 409_600 if full else 40_960, "points": 25 if full else 5, "episodes": 128}
    returns = {}
    for side in ("haepo_jax", "rejax"):
        with peers.Worker(side) as worker:
            returns[side] = worker.ask(**request, seeds=16 if full else 2, seed=2025)["returns"]
    return {**request, "returns": returns}


BATCHES = {"num_epochs": 8, "num_minibatches": 4}
"""Of EpisodicHAEPO's former default, whose update is measured."""

LIMITS = [
    ("EpisodicHAEPO", "CartPole-v1", "cartpole", 200_000),
    ("PPO", "CartPole-v1", "cartpole", 20_480),
    ("HAEPO", "CartPole-v1", "cartpole", 20_000),
    ("HAEPO", "Breakout-MinAtar", "breakout", 4_096),
    ("HAEPO", "brax/inverted_pendulum", "inverted_pendulum", 4_096),
]
"""Algorithm, task, its name in `limit.py`, and steps after which episodes are long and HAEPO's history is full."""


def measure_limit(options: argparse.Namespace) -> dict[str, Any]:
    """Updates, in turns with the frozen script on the same shapes: of EpisodicHAEPO a batch at full length, of HAEPO one with
    a full history. Where there is a value function, it is as large as the policy and counts as another one."""
    import jax

    import haepo_jax as hx

    def bare(task: str, *shapes: int) -> dict[str, float]:
        command = [sys.executable, str(HERE / "limit.py"), *map(str, shapes), task]
        found = subprocess.run(
            command, env=peers.environment("haepo_jax"), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip
        parts: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
        return parts

    rows = []
    for name, env, task, steps in LIMITS:
        own = {"num_envs": 32, **BATCHES} if name == "EpisodicHAEPO" else {}
        algorithm = getattr(hx, name)(env, eval_episodes=0, normalize_observations=False, **own)
        trainer = algorithm.replace(total_steps=steps if options.size == "full" else steps // 10)
        state, _ = jax.jit(trainer.train)(jax.random.key(0))
        update = jax.jit(algorithm.train_step)
        length = round(float(update(state)[1]["episode_length"])) if name == "EpisodicHAEPO" else algorithm.num_steps
        for _ in range(options.rounds):
            seconds = []
            for _ in range(11):
                begin = time.perf_counter()
                jax.block_until_ready(update(state))
                seconds.append(time.perf_counter() - begin)
            passes = algorithm.num_epochs, algorithm.num_minibatches
            batches = algorithm.replay_batches if name == "HAEPO" else 1
            row = bare(task, length, algorithm.num_envs, 1, 1)
            row |= {"learn_seconds": bare(task, length, algorithm.num_envs * batches, *passes)["learn_seconds"]}
            row["learn_seconds"] *= 1 if name == "EpisodicHAEPO" else 2
            row |= {"update_seconds": statistics.median(seconds)}
            row["share"] = (row["rollout_seconds"] + row["learn_seconds"]) / row["update_seconds"]
            rows.append({"algorithm": name, "env": env, **row})
            print(f"  {name} on {env}: {row['share']:.2f} of the limit", flush=True)
    return {"rows": rows}


def measure_sequences(options: argparse.Namespace) -> dict[str, Any]:
    """The gradient of a transformer's log-likelihood on sequences of 128 tokens: one causal pass, as `learn` makes it, and
    a scan over the carry, step by step, as the rollout does; in turns."""
    import jax
    import jax.numpy as jnp

    from haepo_jax.sequence_networks import sequence_policy
    from haepo_jax.spaces import Discrete

    length, tokens = 128, Discrete(32)
    policy = sequence_policy("transformer", tokens, tokens, hidden_sizes=(64, 64), context=length)
    params, carry = policy.init(jax.random.key(1), jnp.int32(0))
    is_first = np.arange(length) == 0

    def parallel(params: Any, said: jax.Array) -> jax.Array:
        return policy.apply(params, carry, said, is_first)[1]

    def scanned(params: Any, said: jax.Array) -> jax.Array:
        step = lambda carry, now: policy.apply(params, carry, *now)  # noqa: E731
        return jax.lax.scan(step, carry, (said, jnp.asarray(is_first)))[1]

    def gradient(logits: Any, said: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            log_probs = jax.nn.log_softmax(jax.vmap(logits, (None, 0))(params, said)[:, :-1])
            return jnp.mean(jnp.take_along_axis(log_probs, said[:, 1:, None], axis=2))

        return jax.jit(jax.grad(loss))

    rows = []
    for sequences in (1, 8, 32):
        said = jax.random.randint(jax.random.key(0), (sequences, length), 0, 32)
        calls = {"parallel": gradient(parallel, said), "scanned": gradient(scanned, said)}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(2 * options.rounds + 1):
            for name, call in calls.items():
                begin = time.perf_counter()
                jax.block_until_ready(call(params))
                if turn:  # the first one compiles
                    seconds[name].append(time.perf_counter() - begin)
        ratios = [slow / fast for fast, slow in zip(*seconds.values(), strict=True)]
        rows.append({"sequences": sequences, "length": length, "seconds": seconds, "ratios": ratios})
        print(
            f"  {sequences} sequences: one pass is {statistics.median(ratios):.1f} times as fast as a scan", flush=True
        )
    return {"rows": rows}


def measure_memory(options: argparse.Namespace) -> dict[str, Any]:
    """By the compiler's own account; nothing runs. A segment of PPO and HAEPO is as long as the horizon. What is stored is the
    batch, or HAEPO's replay buffer; memory is temporary memory and the replay buffer."""
    import jax

    import haepo_jax as hx

    rows = []
    for name in ("EpisodicHAEPO", "HAEPO", "HAEPO, one batch", "PPO"):
        for horizon in (100, 1000, 10_000) if options.size == "full" else (100,):
            env = hx.make_env("CartPole-v1", max_steps_in_episode=horizon)
            own = {
                "EpisodicHAEPO": BATCHES,
                "HAEPO": {"num_steps": horizon},
                "HAEPO, one batch": {"num_steps": horizon, "replay_batches": 1},
                "PPO": {"num_steps": horizon},
            }
            algorithm = getattr(hx, name.partition(",")[0])(env, num_envs=1024, **own[name])
            state = jax.eval_shape(algorithm.init, jax.eval_shape(lambda: jax.random.key(0)))
            replay = getattr(state.extra, "replay", None)
            stored = jax.eval_shape(algorithm.collect, state, state.key)[0] if replay is None else replay
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))
            analysis = jax.jit(algorithm.train_step, donate_argnums=0).lower(state).compile().memory_analysis()
            assert analysis is not None
            memory = int(analysis.temp_size_in_bytes) + (0 if replay is None else size)
            rows.append({"algorithm": name, "horizon": horizon, "stored_bytes": size, "memory_bytes": memory})
            print(f"  {name}, horizon {horizon}: {memory / size:.1f} times what is stored", flush=True)
    return {"rows": rows}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start": measure_start,
    "speed": measure_speed,
    "curves": measure_curves,
    "limit": measure_limit,
    "sequences": measure_sequences,
    "memory": measure_memory,
    **sweeps.PARTS,
    "checkpoints": checkpoints.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("quick", "full"), default="quick")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["start", "speed", "limit", "memory", "sweep", "sequential"]
    )
    parser.add_argument("--rounds", type=int, help="timed runs of each side (quick: 1, full: 15)")
    parser.add_argument("--limit", type=float, default=300, help="seconds after which a training is given up")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the JSON files")
    sweeps.add_arguments(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or (15 if options.size == "full" else 1)
    options.output.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmarks/run.py", *sys.argv[1:]]),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("jax", "jaxlib")}},
    }
    with contextlib.suppress(OSError):
        about["machine"]["load_before"] = os.getloadavg()[0]
    for part in options.parts:
        print(f"{part}:", flush=True)
        found = {**about, "size": options.size, **PARTS[part](options)}
        of = f"_{options.algo}" if part in sweeps.PARTS else ""
        (options.output / f"{part}{of}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
