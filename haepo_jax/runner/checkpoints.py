"""Checkpoints: directories of arrays that Orbax writes, complete and verified, or not there.

    <run_dir>/checkpoints/000007-5f1c0a9e3b7d2468/
        arrays/          every array of the train state by name
        progress.json    what the host knows beside it; see `haepo_jax.runner.loop`

The hexadecimal digits begin the SHA-256 of all files, which is compared before anything is read: Orbax loads truncated files
and flipped bits as wrong numbers. A checkpoint is written under another name, flushed to the disk and then renamed: a process
that is killed leaves a whole one or none. Reading one runs no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from haepo_jax.messages import one_line
from haepo_jax.runner.errors import CheckpointError, warn
from haepo_jax.runner.run_dir import flush_to_disk

Arrays = dict[str, npt.NDArray[Any]]

ARRAYS, PROGRESS = "arrays", "progress.json"
FORMAT = 4
HASH_DIGITS = 16


# --- A train state as named arrays ------------------------------------------------------------------------------------


def to_arrays(tree: Any) -> Arrays:
    """Copies every array of a pytree to the host, by its path; typed PRNG keys as their words."""
    named = _named_leaves(tree)
    host = jax.device_get({name: jax.random.key_data(x) if _is_key(x) else x for name, x in named.items()})
    # On the CPU, `device_get` may hand out the device's own memory, which the next compiled call is given.
    return {name: np.array(x, copy=True) for name, x in host.items()}


def from_arrays(arrays: Arrays, like: Any) -> Any:
    """The pytree `like`, made of `jax.ShapeDtypeStruct`, with host arrays in place of its leaves (but typed PRNG keys).
    Raises CheckpointError where an array is missing or left over, or has another shape or type."""
    leaves, named, why = [], _named_leaves(like), "it was written by other settings or another version"
    if unknown := sorted(arrays.keys() - named.keys()):
        raise CheckpointError(f"its array {unknown[0]!r} has no place in this run: {why}")
    for name, leaf in named.items():
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array: Any = np.zeros(words.shape, words.dtype) if 0 in words.shape else arrays.get(name)
        if array is None:
            raise CheckpointError(f"it has no array {name!r}: {why}")
        if array.shape != words.shape or array.dtype != words.dtype:
            found, wanted = (f"{x.dtype}{list(x.shape)}" for x in (array, words))
            raise CheckpointError(f"its array {name!r} is {found}, not {wanted}: {why}")
        leaves.append(jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _key_impl(leaf: Any) -> Any:
    """The generator of typed keys of which only shape and type are there; `key_impl` wants keys, or tracers."""
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
    return found[0]


# --- On the disk ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory. Creating the object reads nothing."""

    path: Path

    @property
    def number(self) -> int:
        """Checkpoints of a run are numbered in the order in which they were written."""
        return int(self.path.name.partition("-")[0])

    def verify(self) -> None:
        """Compares the files with the hash in the directory's name; raises CheckpointError."""
        try:
            found = _hash(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from None
        if found != self.path.name.partition("-")[2]:
            raise CheckpointError(f"{self.path} has changed since it was written")

    def progress(self) -> dict[str, Any]:
        """What the host knew; call `verify` first. Raises CheckpointError."""
        try:
            progress: dict[str, Any] = json.loads((self.path / PROGRESS).read_bytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: its {PROGRESS} cannot be read: {one_line(str(error), 200)}") from None
        if progress.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path}: it was written by another version of haepo_jax (format "
                f"{one_line(repr(progress.get('format')), 40)}, not {FORMAT}), which has to read it"
            )
        return progress

    @property
    def mean_return(self) -> float:
        """The return that it was taken at; -inf where there is none, or none to be read."""
        with contextlib.suppress(CheckpointError):
            value = self.progress().get("return")
            return -np.inf if value is None or np.isnan(value) else value
        return -np.inf

    def restore(self, like: Any) -> Any:
        """The arrays in the structure of `like`; see `from_arrays`. Call `verify` first. Raises CheckpointError."""
        from orbax.checkpoint import RestoreArgs

        path = self.path.absolute() / ARRAYS
        try:
            with contextlib.closing(_orbax()) as orbax:
                names = _named_leaves(orbax.metadata(path).item_metadata.tree)
                as_numpy = dict.fromkeys(names, RestoreArgs(restore_type=np.ndarray))
                arrays = orbax.restore(path, item=dict.fromkeys(names, np.zeros(())), restore_args=as_numpy)
        except Exception as error:  # Orbax and TensorStore raise whatever the state of the files suggests to them
            raise CheckpointError(f"{self.path} cannot be read by Orbax: {one_line(str(error), 200)}") from None
        try:
            return from_arrays(arrays, like)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None


def _orbax() -> Any:
    """Reads and writes in this process alone: by itself Orbax would wait for all processes that `jax.distributed` knows."""
    from orbax.checkpoint import Checkpointer, PyTreeCheckpointHandler
    from orbax.checkpoint.options import MultiprocessingOptions

    own = jax.process_index()
    alone = MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix="haepo_jax")
    return Checkpointer(PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _hash(directory: Path) -> str:
    """Of the names and contents of all files."""
    digest = hashlib.sha256()
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(directory).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:HASH_DIGITS]


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The directory with a run's checkpoints. Creating the object touches nothing."""

    path: Path

    def all(self) -> list[Checkpoint]:
        """Oldest first, not verified."""
        name = re.compile(rf"\d{{6,}}-[0-9a-f]{{{HASH_DIGITS}}}")
        found = [Checkpoint(path) for path in self.path.glob("*-*") if name.fullmatch(path.name)]
        return sorted(found, key=lambda one: one.number)

    def newest(self, warn: Callable[[str], None] = warn) -> Checkpoint | None:
        """The newest intact checkpoint; None where there is no checkpoint at all. `warn` is told of damaged newer ones.
        Raises CheckpointError where there are checkpoints but none is intact."""
        candidates = self.all()[::-1]
        for checkpoint in candidates:
            try:
                checkpoint.verify()
                return checkpoint
            except CheckpointError as error:
                warn(f"{error}; trying the one before")
        if candidates:
            raise CheckpointError(f"none of the {len(candidates)} checkpoints in {self.path} is intact")
        return None

    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the highest return, the older of two equal ones; None where none has a return."""
        for checkpoint in self._by_return():
            with contextlib.suppress(CheckpointError):
                checkpoint.verify()
                return checkpoint
        return None

    def _by_return(self) -> list[Checkpoint]:
        """Those that have a return, the best first, and of equal ones the older first."""
        found = [(-checkpoint.mean_return, checkpoint.number, checkpoint) for checkpoint in self.all()]
        return [checkpoint for value, _, checkpoint in sorted(found) if value < np.inf]

    def write(self, arrays: Arrays, progress: dict[str, Any]) -> Checkpoint:
        """Writes the next checkpoint in one step, as far as any reader can see; raises OSError."""
        # The run's own directory must exist: one that has vanished is not to be made again.
        self.path.mkdir(exist_ok=True)
        for leftover in self.path.glob("*.partial"):  # of processes that were killed
            shutil.rmtree(leftover, ignore_errors=True)
        number = max((checkpoint.number for checkpoint in self.all()), default=-1) + 1
        temporary = self.path / f"{number:06d}.partial"
        temporary.mkdir()
        try:
            _write_arrays(temporary / ARRAYS, arrays)
            (temporary / PROGRESS).write_text(json.dumps({"format": FORMAT, **progress}), encoding="utf-8")
            for path in (*temporary.rglob("*"), temporary):
                flush_to_disk(path)
            final = temporary.rename(self.path / f"{number:06d}-{_hash(temporary)}")
            flush_to_disk(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Checkpoint(final)

    def prune(self, keep: int) -> None:
        """Removes all but the last `keep` and the best by return."""
        kept = [*self.all()[-keep:], *self._by_return()[:1]]
        for checkpoint in self.all():
            if checkpoint not in kept:
                # Renamed first, so that a process killed here leaves no half of a checkpoint under its name.
                shutil.rmtree(checkpoint.path.rename(self.path / f"{checkpoint.path.name}.partial"), ignore_errors=True)


def _write_arrays(directory: Path, arrays: Arrays) -> None:
    """Raises OSError where the disk has no room, before Orbax does: its threads would print tracebacks, too."""
    # Compression makes up for the space that Orbax's own files take.
    if shutil.disk_usage(directory.parent).free < sum(array.nbytes + 1024 for array in arrays.values()) + 2**16:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    try:
        with contextlib.closing(_orbax()) as orbax:
            # Orbax refuses arrays of no elements; `from_arrays` makes them anew.
            orbax.save(directory.absolute(), {name: array for name, array in arrays.items() if array.size})
    except ValueError as error:  # TensorStore's for whatever happens to a file
        raise OSError(errno.ENOSPC if "ENOSPC" in str(error) else errno.EIO, one_line(str(error), 200)) from None


# --- Saving during a run ----------------------------------------------------------------------------------------------


class Saver:
    """Saves a run's checkpoints: copies on the caller's thread, writes on its own.

    The state with the best return is copied when its row is logged and written with the next checkpoint. A run that is
    killed before then resumes from a checkpoint before that row, and meets it again.

    Args:
      checkpoints: where they go; None: nothing is saved.
      keep: how many of the last ones stay; the best by return stays beside them.
      minutes: from one to the next; None: only the last one is saved.
      flush_first: files that must be on the disk before a checkpoint that counts on them.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        *,
        keep: int = 3,
        minutes: float | None = None,
        flush_first: Sequence[Path] = (),
    ) -> None:
        self._checkpoints, self._keep, self._minutes, self._flush_first = checkpoints, keep, minutes, flush_first
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._best: tuple[Arrays, dict[str, Any]] | None = None

    def start(self, saved: Any = None) -> None:
        """Begins to count minutes; `saved` is the `moment` of the newest checkpoint."""
        self._saved, self._last = saved, time.perf_counter()

    def hold(self, state: Any, progress: dict[str, Any]) -> None:
        """Copies the state with the best return so far."""
        if self._checkpoints is not None:
            self._best = to_arrays(state), progress

    def due(self) -> bool:
        """Whether a checkpoint is due, and the one before has been written. Raises what that one raised."""
        if self._writing is not None and self._writing.done():
            self.wait()
        seconds = time.perf_counter() - self._last
        return self._writing is None and self._minutes is not None and seconds >= 60 * self._minutes

    def save(self, state: Any, progress: dict[str, Any]) -> None:
        """Writes the state of all seeds, and the best one before it, in the background. What has been saved already, by
        `progress["moment"]`, is not saved again."""
        if self._checkpoints is None:
            return
        self.wait()
        copies = [] if self._best is None else [self._best]
        moment = progress["moment"]
        if moment not in [self._saved, *(earlier["moment"] for _, earlier in copies)]:
            copies.append((to_arrays(state), progress))
        if copies:
            self._writing = self._pool.submit(self._write, self._checkpoints, copies)
        self._best = None
        self.start(moment)

    def _write(self, checkpoints: Checkpoints, copies: list[tuple[Arrays, dict[str, Any]]]) -> None:
        for file in self._flush_first:
            flush_to_disk(file)
        for arrays, progress in copies:
            checkpoints.write(arrays, progress)
        checkpoints.prune(self._keep)

    def wait(self) -> None:
        """Until everything is on the disk; raises OSError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True)
