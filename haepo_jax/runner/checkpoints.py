"""Checkpoints: numbered directories of plain arrays, each complete and verified, or not there.

    <run_dir>/checkpoints/000007/
        arrays/          every array of the train state by name, written by orbax
        progress.json    what the host knows beside it: rows logged, settings, versions; see `haepo_jax.runner.loop`
        manifest.json    size and SHA-256 of every other file

Orbax loads truncated files and flipped bits as wrong numbers, so nothing is read before its manifest has been checked. (Its
CheckpointManager commits a step before a manifest could be added.) A checkpoint is written under another name, flushed to
the disk, its manifest last, and then renamed: a process that is killed leaves a whole one or none. Reading one runs no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from haepo_jax.messages import one_line
from haepo_jax.runner.errors import CheckpointError
from haepo_jax.runner.run_dir import flush_to_disk

Arrays = dict[str, npt.NDArray[Any]]

ARRAYS, PROGRESS, MANIFEST = "arrays", "progress.json", "manifest.json"
FORMAT = 3


# --- A train state as named arrays ------------------------------------------------------------------------------------


def to_arrays(tree: Any) -> Arrays:
    """Copies every array of a pytree to the host, by its path; typed PRNG keys as their words."""
    import jax

    named = _named_leaves(tree)
    host = jax.device_get({name: jax.random.key_data(x) if _is_key(x) else x for name, x in named.items()})
    # On the CPU, `device_get` may hand out the device's own memory, which the next compiled call is given.
    return {name: np.array(x, copy=True) for name, x in host.items()}


def from_arrays(arrays: Arrays, like: Any, *, cast: bool = False) -> Any:
    """The pytree `like`, made of `jax.ShapeDtypeStruct`, with host arrays in place of its leaves (but typed PRNG keys).

    With `cast` a number may have another precision than its leaf, as between runs with and without 64-bit types. Raises
    CheckpointError where an array is missing or has another shape or type.
    """
    import jax

    leaves = []
    for name, leaf in _named_leaves(like).items():
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array: Any = np.zeros(words.shape, words.dtype) if 0 in words.shape else arrays.get(name)
        why = "it was written by other settings or another version"
        if array is None:
            raise CheckpointError(f"it has no array {name!r}: {why}")
        if cast and array.dtype.kind == np.dtype(words.dtype).kind:
            array = array.astype(words.dtype)
        if array.shape != words.shape or array.dtype != words.dtype:
            found, wanted = (f"{x.dtype}{list(x.shape)}" for x in (array, words))
            raise CheckpointError(f"its array {name!r} is {found}, not {wanted}: {why}")
        leaves.append(jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_key(x: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def prng_implementation() -> str:
    """The name of the generator behind the typed keys that jax makes now."""
    import jax

    config: Any = jax.config
    return str(config.jax_default_prng_impl)


def _key_impl(leaf: Any) -> Any:
    """The generator of typed keys of which only shape and type are there; `key_impl` wants keys, or tracers."""
    import jax

    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
    return found[0]


# --- One checkpoint ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's directory. Creating the object reads nothing."""

    path: Path

    @property
    def number(self) -> int:
        """Checkpoints of a run are numbered in the order in which they were written."""
        return int(self.path.name)

    def verify(self) -> None:
        """Compares every file with the manifest; raises CheckpointError at the first that differs."""
        expected = self._json(MANIFEST).get("files")
        if not isinstance(expected, dict) or PROGRESS not in expected:
            raise CheckpointError(f"{self.path}: its {MANIFEST} lists no files")
        present = {file.relative_to(self.path).as_posix(): file for file in self.path.rglob("*")}
        for name, entry in expected.items():
            if name not in present:
                raise CheckpointError(f"{self.path}: {one_line(name, 100)} is missing")
            with _reading(self.path, name):
                found = _describe(present[name])
            if found != entry:
                raise CheckpointError(f"{self.path}: {name} has changed since it was written")

    def progress(self) -> dict[str, Any]:
        """What the host knew; call `verify` first. Raises CheckpointError."""
        progress = self._json(PROGRESS)
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

    def restore(self, like: Any, *, cast: bool = False) -> Any:
        """The arrays in the structure of `like`; see `from_arrays`. Call `verify` first. Raises CheckpointError."""
        from orbax.checkpoint import RestoreArgs

        saved, now = self.progress().get("prng", ""), prng_implementation()
        if saved and saved != now:
            theirs = one_line(saved, 40)
            raise CheckpointError(
                f"{self.path}: its random numbers are of the generator {theirs}, and this process uses {now}: set "
                f"JAX_DEFAULT_PRNG_IMPL={theirs}"
            )
        try:
            named = {name: leaf for name, leaf in _named_leaves(like).items() if 0 not in leaf.shape}
            item = dict.fromkeys(named, np.zeros(()))
            arguments = dict.fromkeys(named, RestoreArgs(restore_type=np.ndarray))
            with contextlib.closing(_orbax()) as orbax:
                arrays = orbax.restore(self.path.absolute() / ARRAYS, item=item, restore_args=arguments)
        except Exception as error:  # orbax and tensorstore raise whatever the state of the files suggests to them
            raise CheckpointError(f"{self.path}: orbax cannot read its arrays: {one_line(str(error), 200)}") from None
        try:
            return from_arrays(arrays, like, cast=cast)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def _json(self, name: str) -> dict[str, Any]:
        with _reading(self.path, name):
            value = json.loads((self.path / name).read_bytes())
            if not isinstance(value, dict):
                raise ValueError
        return value


@contextlib.contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read {name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: {name} is damaged") from None


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


# --- The checkpoints of a run -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The directory with a run's checkpoints. Creating the object touches nothing."""

    path: Path

    def all(self) -> list[Checkpoint]:
        """Oldest first, not verified."""
        found = [Checkpoint(self.path / name) for name in self._names(r"\d{6,12}")]
        return sorted(found, key=lambda one: one.number)

    def _names(self, pattern: str) -> list[str]:
        with contextlib.suppress(OSError):
            return [name for name in os.listdir(self.path) if re.fullmatch(pattern, name)]
        return []

    def newest(self, accept: Callable[[Checkpoint], Any], reject: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint; None where there is no checkpoint at all.

        `accept` is a further check, which raises CheckpointError; `reject` is told, in one line, what is wrong with each
        newer one. Raises CheckpointError where there are checkpoints but none is intact.
        """
        candidates = self.all()[::-1]
        for checkpoint in candidates:
            try:
                checkpoint.verify()
                accept(checkpoint)
            except CheckpointError as error:
                reject(str(error))
            else:
                return checkpoint
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
        """Writes the next checkpoint in one step, as far as any reader can see; raises CheckpointError or OSError."""
        numbers = [checkpoint.number for checkpoint in self.all()]
        name = f"{max(numbers, default=-1) + 1:06d}"
        temporary = self.path / f".{name}.partial"
        # The run's own directory must exist: one that has vanished is not to be made again.
        self.path.mkdir(exist_ok=True)
        try:
            for leftover in self._names(r"\.\d{6,12}\.partial"):  # of processes that were killed
                shutil.rmtree(self.path / leftover, ignore_errors=True)
            temporary.mkdir()
            _reserve(temporary / ARRAYS, arrays)
            _save_arrays(temporary / ARRAYS, arrays)
            (temporary / PROGRESS).write_text(json.dumps({"format": FORMAT, **progress}), encoding="utf-8")
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            manifest = {file.relative_to(temporary).as_posix(): _describe(file) for file in files}
            for path in temporary.rglob("*"):
                flush_to_disk(path)
            (temporary / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
            flush_to_disk(temporary / MANIFEST)
            flush_to_disk(temporary)
            temporary.rename(self.path / name)
            flush_to_disk(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Checkpoint(self.path / name)

    def prune(self, keep: int) -> None:
        """Removes all but the last `keep` and the best by return."""
        kept = [*self.all()[-keep:], *self._by_return()[:1]]
        for checkpoint in self.all():
            if checkpoint not in kept:
                # Renamed first, so that a process killed here leaves no half of a checkpoint under its name.
                temporary = self.path / f".{checkpoint.path.name}.partial"
                checkpoint.path.rename(temporary)
                shutil.rmtree(temporary, ignore_errors=True)


def _reserve(file: Path, arrays: Arrays) -> None:
    """Raises OSError where the disk has no room for the arrays: orbax's threads would print tracebacks, too. Compression
    makes up for the space that its own files take."""
    size = sum(array.nbytes + 1024 for array in arrays.values()) + 2**16
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)
        file.unlink()


def _orbax() -> Any:
    """Reads and writes in this process alone: by itself orbax would wait for every other process of the job."""
    import jax
    from orbax.checkpoint import Checkpointer, PyTreeCheckpointHandler
    from orbax.checkpoint.options import MultiprocessingOptions

    own = jax.process_index()
    alone = MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix="haepo_jax")
    return Checkpointer(PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def _save_arrays(directory: Path, arrays: Arrays) -> None:
    try:
        with contextlib.closing(_orbax()) as orbax:
            # Orbax refuses arrays of no elements; `from_arrays` makes them anew.
            orbax.save(directory.absolute(), {name: array for name, array in arrays.items() if array.size})
    except OSError:
        raise
    except Exception as error:  # tensorstore reports a full disk as a ValueError, and has more of its own
        text = one_line(str(error), 2000)
        full = "No space left on device" in text or "ENOSPC" in text
        raise CheckpointError("No space left on device" if full else text[:200]) from None


# --- Saving during a run -----------------------------------------------------------------------------------------------


class Snapshot(NamedTuple):
    """A train state on the host, with the progress of that moment of the run, which is unlike any other's."""

    arrays: Arrays
    progress: dict[str, Any]
    moment: Any


class Saver:
    """Saves a run's checkpoints: copies on the caller's thread, writes on its own.

    The state with the best return is copied when its row is logged and written with the next checkpoint. A run that is
    killed before then resumes from a checkpoint before that row, and meets it again.

    Args:
      checkpoints: where they go; None: nothing is saved.
      keep: how many of the last ones stay; the best by return stays beside them.
      steps: environment steps per seed from one to the next; None: not by steps. Likewise `minutes`.
      flush_first: files that must be on the disk before a checkpoint that counts on them.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        *,
        keep: int = 3,
        steps: int | None = None,
        minutes: float | None = None,
        flush_first: Sequence[Path] = (),
    ) -> None:
        self._checkpoints, self._keep, self._steps, self._minutes = checkpoints, keep, steps, minutes
        self._flush_first = flush_first
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._best: Snapshot | None = None

    def prepare(self) -> None:
        """Imports orbax in the background: that takes more than a second, which can pass while a program is compiled."""
        if self._checkpoints is not None:
            self._pool.submit(importlib.import_module, "orbax.checkpoint")

    def start(self, steps: int, saved: Any = None) -> None:
        """Begins to count intervals at `steps` per seed; `saved` is the moment that the newest checkpoint holds."""
        self._saved, self._last_steps, self._last_time = saved, steps, time.perf_counter()

    def hold(self, state: Any, progress: dict[str, Any], moment: Any) -> None:
        """Copies the state with the best return so far."""
        if self._checkpoints is not None:
            self._best = Snapshot(to_arrays(state), progress, moment)

    def due(self, steps: int) -> bool:
        """Whether a checkpoint is due at `steps`, and the one before has been written. Raises what that one raised."""
        if self._writing is not None and self._writing.done():
            self.wait()
        by_steps = self._steps is not None and steps - self._last_steps >= self._steps
        by_time = self._minutes is not None and time.perf_counter() - self._last_time >= 60 * self._minutes
        return (by_steps or by_time) and self._writing is None

    def save(self, state: Any, steps: int, progress: dict[str, Any], moment: Any) -> None:
        """Writes the state of all seeds, and the best one before it, in the background; what has been saved already is not
        saved again."""
        if self._checkpoints is None:
            return
        self.wait()
        copies = [] if self._best is None else [self._best]
        if moment != self._saved and not (copies and copies[0].moment == moment):
            copies.append(Snapshot(to_arrays(state), progress, moment))
        if copies:
            self._writing = self._pool.submit(self._write, self._checkpoints, copies)
        self._best = None
        self.start(steps, moment)

    def _write(self, checkpoints: Checkpoints, copies: list[Snapshot]) -> None:
        for file in self._flush_first:
            flush_to_disk(file)
        for copy in copies:
            checkpoints.write(copy.arrays, copy.progress)
        checkpoints.prune(self._keep)

    def wait(self) -> None:
        """Until everything is on the disk; raises CheckpointError or OSError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True)
