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
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from haepo_jax.messages import one_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.errors import DeviceError, Elsewhere, RunError, outcome
from haepo_jax.runner.signals import interruptibly

T = TypeVar("T")

NOTE_BYTES = 1024


class Processes:
    """This process alone: whatever it says is agreed. `Job` is one of several."""

    index = 0
    alone = True

    @property
    def first(self) -> bool:
        return self.index == 0

    def meet(self, stop: int = 0, seconds: float = 0.0) -> tuple[int, float]:
        """Between two compiled calls: `stop` is the greatest of all processes, `seconds` the first one's.

        Raises:
          Elsewhere: where another process cannot continue.
        """
        return stop, seconds

    def of_first(self, function: Callable[[], T]) -> T:
        """What a function gives in the first process, the only one that calls it. Raises as `meet` does."""
        return function()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Entered around all that the processes do: none leaves it before the others, nor with another exit status."""
        yield


ALONE = Processes()


class Job(Processes):
    """One of several processes that `join` has brought together. Every method is called by all of them, in one order.

    Notes between them are a collective of the devices, as their programs are.
    """

    alone = False

    def __init__(self) -> None:
        import jax

        self.index = jax.process_index()

    def meet(self, stop: int = 0, seconds: float = 0.0) -> tuple[int, float]:
        notes = self._exchange((stop, seconds))
        return max(stop for stop, _ in notes), float(notes[0][1])

    def of_first(self, function: Callable[[], T]) -> T:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        content = pickle.dumps(function()) if self.first else b""
        size = self._exchange(len(content))[0]
        # As bytes, which a sum with zeros leaves as they are: a float may be -0.0.
        buffer = np.frombuffer(content, np.uint8) if self.first else np.zeros(size, np.uint8)
        value: T = pickle.loads(interruptibly(lambda: np.asarray(broadcast_one_to_all(buffer))).tobytes())
        return value

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        import jax

        try:
            try:
                yield
            except (Elsewhere, DeviceError, jax.errors.JaxRuntimeError):
                raise
            except BaseException as error:
                known = outcome(error)
                own = known or (1, f"{type(error).__name__}: {error}")
                failures = self._failures(own)
                if self.first or known is None:
                    raise
                # The first one tells what happened, its own reason before any other.
                raise Elsewhere(failures.get(0, own)[0], "") from None
            self._exchange(None)
        except DeviceError:
            _leave_without_others()
            raise
        except jax.errors.JaxRuntimeError as error:
            _leave_without_others()
            text = f"a device failed, or another process of the job has gone ({one_line(str(error), 160)})"
            raise RunError(text) from None

    def _exchange(self, value: Any) -> list[Any]:
        notes = self._notes(None, value)
        failures = {index: failure for index, (failure, _) in enumerate(notes) if failure is not None}
        if failures:
            index = min(failures)
            status, text = failures[index]
            tell = self.first and index > 0
            raise Elsewhere(status, f"process {index}: {text.removeprefix('error: ')}" if tell else "")
        return [value for _, value in notes]

    def _failures(self, own: tuple[int, str]) -> dict[int, tuple[int, str]]:
        notes = self._notes((own[0], one_line(own[1], NOTE_BYTES // 8)), None)
        return {index: failure for index, (failure, _) in enumerate(notes) if failure is not None}

    @staticmethod
    def _notes(failure: tuple[int, str] | None, value: Any) -> list[tuple[tuple[int, str] | None, Any]]:
        from jax.experimental.multihost_utils import process_allgather

        note = np.zeros(NOTE_BYTES, np.uint8)
        content = pickle.dumps((failure, value))
        note[: len(content)] = np.frombuffer(content, np.uint8)
        return [pickle.loads(row.tobytes()) for row in interruptibly(lambda: np.asarray(process_allgather(note)))]


def join() -> Processes:
    """Brings this process together with the others of its job, before jax computes anything.

    jax finds the coordinator, the number of processes and this one's place by itself on SLURM, Open MPI, Kubernetes and
    cloud TPUs. For processes that are started by hand they are JAX_COORDINATOR_ADDRESS, which jax reads as well,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. A process that has waited for the others in vain is ended by jax.

    Raises:
      ConfigError: nothing says what job this is, or jax cannot start.
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
    text = "waiting for the other processes of the job; jax gives up after 5 minutes"
    patience = threading.Timer(10, lambda: print(text, file=sys.stderr, flush=True))
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(**own)
        return Job() if jax.process_count() > 1 else ALONE
    except ValueError as error:
        raise ConfigError(
            "distributed=true finds no job that this process belongs to: start it with srun or mpirun, or set "
            f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID ({one_line(str(error), 120)})"
        ) from None
    except RuntimeError as error:
        raise ConfigError(
            f"distributed=true: the processes of the job cannot come together: {one_line(str(error), 200)}"
        ) from None
    finally:
        patience.cancel()


def part() -> None:
    """Lets the processes that `join` has brought together continue without each other, each on its own devices.

    From here on it is no matter to one if another is killed.
    """
    import jax

    jax.local_devices()  # jax asks the others what devices there are, once
    jax.distributed.shutdown()


def _leave_without_others() -> None:
    """At exit jax would wait minutes for processes that are gone."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    atexit.register(leave)
