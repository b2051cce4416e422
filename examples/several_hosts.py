"""One training run over the devices of several processes, for example one process per host of a cluster job.

Start it once per process. `jax.distributed` finds the job on SLURM, Open MPI, Kubernetes and cloud TPUs (`srun python
examples/several_hosts.py`). Elsewhere, pass the first process's address, the number of processes and this one's index:

    python examples/several_hosts.py 127.0.0.1:9911 2 0 &
    python examples/several_hosts.py 127.0.0.1:9911 2 1
"""

import sys

import jax

import haepo_jax as hx


def algorithm() -> hx.HAEPO:
    """HAEPO with three updates."""
    sizes = {"num_envs": 16, "num_steps": 16, "group_size": 8, "num_minibatches": 2, "num_epochs": 2}
    return hx.HAEPO("CartPole-v1", total_steps=768, log_points=3, eval_episodes=0, replay_batches=1, **sizes)


def main() -> None:
    if len(sys.argv) > 1:
        address, count, index = sys.argv[1:]
        jax.distributed.initialize(address, int(count), int(index))
    else:
        jax.distributed.initialize()

    algo = algorithm()
    with hx.sharding.over_environments() as mesh:  # all devices of all processes
        everywhere = hx.sharding.replicated(mesh)
        train = jax.jit(algo.train, in_shardings=everywhere, out_shardings=everywhere)
        _, metrics = train(jax.random.key(0))
    # Every process has the whole result; the first one prints it.
    if jax.process_index() == 0:
        print(f"{jax.device_count()} devices of {jax.process_count()} processes")
        for name in ("loss", "ess", "episode_length"):
            print(name, *jax.device_get(metrics[name]).tolist())


if __name__ == "__main__":
    main()
