"""Several processes of one job on this machine, for the tests of what several hosts do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import haepo_jax

TIMEOUT = 600


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """Of a process with so many simulated devices, in which this haepo_jax and the tests can be imported."""
    given = os.environ.get("PYTHONPATH", "")
    paths = (str(Path(haepo_jax.__file__).parents[1]), str(Path(__file__).parent / "sweeps"), given)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "SLURM_"))}
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | changes


def run(command: Sequence[str], devices: int = 1, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments and waits."""
    return subprocess.run(
        [sys.executable, *command],
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        **keywords,
    )


class Job:
    """The same command in several processes, which find each other over loopback."""

    def __init__(self, command: Sequence[str], count: int = 2, devices: int = 1, **changes: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        job = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
        # Files, because nobody reads a pipe of one process while another is waited for.
        self._outputs: list[IO[str]] = [tempfile.TemporaryFile("w+") for _ in range(2 * count)]  # noqa: SIM115
        self.processes = [
            subprocess.Popen(
                [sys.executable, *command],
                env=environment(devices, **job, JAX_PROCESS_ID=str(index), **changes),
                stdout=self._outputs[2 * index],
                stderr=self._outputs[2 * index + 1],
            )
            for index in range(count)
        ]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for output in self._outputs:
            output.close()

    def wait(self) -> list[int]:
        """The exit status of each."""
        return [process.wait(timeout=TIMEOUT) for process in self.processes]

    def output(self, index: int) -> tuple[str, str]:
        """What a process has printed on stdout, but for what its libraries say of their connections, and on stderr."""
        texts = []
        for output in self._outputs[2 * index : 2 * index + 2]:
            output.seek(0)
            lines = output.read().splitlines(keepends=True)
            texts.append("".join(line for line in lines if not line.startswith("[Gloo]")))
        return texts[0], texts[1]


def ended(job: Job) -> Mapping[str, Any]:
    """Everything to be told of a job where a test fails."""
    return {"status": job.wait(), "output": [job.output(index) for index in range(len(job.processes))]}
