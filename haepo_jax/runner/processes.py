"""The processes of one job, on one machine or many: they run the same compiled programs in lockstep.

The first process alone reads, writes, prints, and decides whatever depends on a clock. The others are told, so that all
of them come to the same compiled call; and where one of them cannot continue, all end with its exit status.

What they tell each other is pickled, since all of them run one program; nothing that comes from a file ever is.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.errors import DeviceError, Elsewhere, RunError, outcome
from haepo_jax.runner.signals import interruptibly, leave

T = TypeVar("T")

NOTE_BYTES = 1024


class Processes:
    """`count` processes, this one of which is number `index`. Every method is called by all of them, in one order; of
    one process alone it does nothing but to call its function."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.first, self.alone = index == 0, count == 1

    def meet(self, stop: int = 0, seconds: float = 0.0) -> tuple[int, float]:
        """Between two compiled calls: `stop` is the greatest of all processes, `seconds` the first one's. Raises Elsewhere
        where another process cannot continue."""
        notes = self._exchange((stop, seconds))
        return max(stop for stop, _ in notes), float(notes[0][1])

    def of_first(self, function: Callable[[], T]) -> T:
        """What a function gives in the first process, the only one that calls it. Raises as `meet` does."""
        if self.alone:
            return function()
        from jax.experimental.multihost_utils import broadcast_one_to_all

        content = pickle.dumps(function()) if self.first else b""
        size = self._exchange(len(content))[0]
        # As bytes, which a sum with zeros leaves as they are: a float may be -0.0.
        buffer = np.frombuffer(content, np.uint8) if self.first else np.zeros(size, np.uint8)
        value: T = pickle.loads(interruptibly(lambda: np.asarray(broadcast_one_to_all(buffer))).tobytes())
        return value

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Entered around all that the processes do: none leaves it before the others, nor with another exit status."""
        if self.alone:
            yield
            return
        import jax

        try:
            try:
                yield
            except (Elsewhere, DeviceError, jax.errors.JaxRuntimeError):
                raise
            except BaseException as error:
                known = outcome(error)
                status, text = known or (1, f"{type(error).__name__}: {error}")
                failure, _ = self._notes((status, one_line(text, NOTE_BYTES // 8)), None)[0]
                if self.first or known is None:
                    raise
                # The first one tells what happened, its own reason before any other.
                raise Elsewhere(failure[0] if failure else status, "") from None
            self._exchange(None)
        except (DeviceError, jax.errors.JaxRuntimeError) as error:
            atexit.register(leave, 1)  # jax would wait minutes for processes that are gone
            if isinstance(error, DeviceError):
                raise
            text = f"a device failed, or another process of the job has gone ({one_line(str(error), 160)})"
            raise RunError(text) from None

    def _exchange(self, value: Any) -> list[Any]:
        """The values of all processes; raises Elsewhere where another process has failed instead."""
        if self.alone:
            return [value]
        notes = self._notes(None, value)
        for index, (failure, _) in enumerate(notes):
            if failure is not None:
                tell = self.first and index > 0
                text = f"process {index}: {failure[1].removeprefix('error: ')}" if tell else ""
                raise Elsewhere(failure[0], text)
        return [value for _, value in notes]

    @staticmethod
    def _notes(failure: tuple[int, str] | None, value: Any) -> list[tuple[tuple[int, str] | None, Any]]:
        from jax.experimental.multihost_utils import process_allgather

        note = np.zeros(NOTE_BYTES, np.uint8)
        content = pickle.dumps((failure, value))
        note[: len(content)] = np.frombuffer(content, np.uint8)
        return [pickle.loads(row.tobytes()) for row in interruptibly(lambda: np.asarray(process_allgather(note)))]


ALONE = Processes()


def join() -> Processes:
    """Connects this process to the others of its job, before jax computes anything.

    jax finds the job by itself on SLURM, Open MPI, Kubernetes and cloud TPUs; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID name it. Raises ConfigError where nothing does, or jax cannot start.
    """
    import jax

    own: dict[str, Any] = {}
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"distributed=true: JAX_COORDINATOR_ADDRESS={one_line(address, 80)} is not host:port")
    for key in ("num_processes", "process_id"):
        name = f"JAX_{key.upper()}"
        if (text := os.environ.get(name)) is not None:
            if not text.isdecimal():
                raise ConfigError(f"distributed=true: {name}={one_line(text, 40)} is not a number")
            own[key] = int(text)
    # jax would take SIGTERM for itself, and then nothing could end the process in good order.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**own)
    except ValueError as error:
        raise ConfigError(
            "distributed=true finds no job that this process belongs to: start it with srun or mpirun, or set "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID ({one_line(str(error), 120)})"
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"distributed=true: the processes of the job cannot come together: {one_line(str(error), 200)}"
        ) from None
    return Processes(jax.process_index(), jax.process_count())


def part() -> None:
    """Lets the processes that `join` has connected continue without each other, each on its own devices."""
    import jax

    jax.local_devices()  # jax asks the others what devices there are, once
    jax.distributed.shutdown()
