"""Checkpoints: numbered directories of plain arrays, each of them complete and checked, or not there.

    <run_dir>/checkpoints/000007/
        arrays/          every array of the train state by name, written by orbax
        progress.json    what the host knows beside it: rows logged, settings, versions; see `haepo_jax.runner.loop`
        manifest.json    size and SHA-256 of every other file

Orbax loads truncated files and flipped bits as wrong numbers, so nothing is read before its manifest has been checked.
Orbax's CheckpointManager is not used: it commits a step before a manifest could be added, so a kill in between would leave a
complete step that has to be distrusted; and on a full disk its threads print tracebacks where one line is due.
A checkpoint is written under another name, flushed to the disk, its manifest last, and then renamed: a process that is
killed leaves a whole one or none. Reading one runs no code: arrays are put, by name, into a structure that the
algorithm has made, and everything else is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haepo_jax.messages import one_line
from haepo_jax.runner.errors import CheckpointError

Arrays = dict[str, npt.NDArray[Any]]

ARRAYS, PROGRESS, MANIFEST = "arrays", "progress.json", "manifest.json"
FORMAT = 2


# --- A train state as named arrays ------------------------------------------------------------------------------------


def to_arrays(tree: Any) -> Arrays:
    """Copies every array of a pytree to the host, by its path; typed PRNG keys as their words.

    The copies share no memory with the device, so the next compiled call may be given the buffers.
    """
    import jax

    named = _named_leaves(tree)
    host = jax.device_get({name: jax.random.key_data(x) if _is_key(x) else x for name, x in named.items()})
    # On the CPU, `device_get` may hand out the device's own memory.
    return {name: np.array(x, copy=True) for name, x in host.items()}


def prng_implementation(key: Any = None) -> str:
    """The name of the generator behind typed keys (also `jax.ShapeDtypeStruct`); None: behind those that jax makes now."""
    import jax

    key = jax.eval_shape(lambda: jax.random.key(0)) if key is None else key
    return str(_key_impl(key))


def from_arrays(arrays: Arrays, like: Any, *, cast: bool = False) -> Any:
    """The pytree `like`, made of `jax.ShapeDtypeStruct`, with host arrays in place of its leaves (but typed PRNG keys).

    With `cast` a number may have another precision than its leaf, as between runs with and without 64-bit types.

    Raises:
      CheckpointError: where an array is missing or has another shape or type.
    """
    import jax

    named, leaves = _named_leaves(like), []
    for name, leaf in named.items():
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        array: Any = np.zeros(words.shape, words.dtype) if 0 in words.shape else arrays.get(name)
        if array is not None and cast and array.dtype.kind == np.dtype(words.dtype).kind:
            array = array.astype(words.dtype)
        if array is None:
            raise CheckpointError(f"it has no array {name!r}: it was written by other settings or another version")
        if array.shape != words.shape or array.dtype != words.dtype:
            raise CheckpointError(
                f"its array {name!r} is {array.dtype}{list(array.shape)}, not {words.dtype}{list(words.shape)}: it was "
                "written by other settings or another version"
            )
        leaves.append(jax.random.wrap_key_data(array, impl=_key_impl(leaf)) if _is_key(leaf) else array)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named_leaves(tree: Any) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise CheckpointError("two arrays of the train state have the same name")
    return named


def _key_impl(leaf: Any) -> Any:
    """The kind of generator of typed keys of which only shape and type are there; `key_impl` wants keys, or tracers."""
    import jax

    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), leaf)
    return found[0]


def _is_key(x: Any) -> bool:
    import jax

    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


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
        present = {file.relative_to(self.path).as_posix(): file for file in _files(self.path)}
        for name, entry in expected.items():
            if name not in present:
                raise CheckpointError(f"{self.path}: {one_line(name, 100)} is missing")
            try:
                found = _describe(present[name])
            except OSError as error:
                raise CheckpointError(f"{self.path}: cannot read {name}: {error.strerror}") from None
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

    def restore(self, like: Any, *, cast: bool = False) -> Any:
        """The arrays in the structure of `like`; see `from_arrays`. Call `verify` first. Raises CheckpointError."""
        from orbax.checkpoint import RestoreArgs

        saved, now = self.progress().get("prng"), prng_implementation()
        if isinstance(saved, str) and saved != now:
            raise CheckpointError(
                f"{self.path}: its random numbers are of the generator {one_line(saved, 40)}, and this process uses {now}: set "
                f"JAX_DEFAULT_PRNG_IMPL={one_line(saved, 40)}"
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
        try:
            value = json.loads((self.path / name).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot read {name}: {error.strerror}") from None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{self.path}: {name} is damaged") from None
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.path}: {name} is damaged")
        return value


def _files(directory: Path) -> list[Path]:
    return sorted(Path(folder) / name for folder, _, names in os.walk(directory) for name in names)


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
        """Oldest first, unchecked."""
        with contextlib.suppress(OSError):
            names = [name for name in os.listdir(self.path) if re.fullmatch(r"\d{6,12}", name)]
            return sorted((Checkpoint(self.path / name) for name in names), key=lambda one: one.number)
        return []

    def newest(self, accept: Callable[[Checkpoint], Any], reject: Callable[[str], None]) -> Checkpoint | None:
        """The newest intact checkpoint; None where there is no checkpoint at all.

        Args:
          accept: a further check, which raises CheckpointError.
          reject: is told, in one line, what is wrong with each newer one.

        Raises:
          CheckpointError: where there are checkpoints but none is intact.
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
        for checkpoint in sorted(self.all(), key=lambda one: (-_return(one), one.number)):
            with contextlib.suppress(CheckpointError):
                checkpoint.verify()
                if _return(checkpoint) > -np.inf:
                    return checkpoint
        return None

    def write(self, arrays: Arrays, progress: dict[str, Any]) -> Checkpoint:
        """Writes the next checkpoint in one step, as far as any reader can see; raises CheckpointError or OSError."""
        numbers = [checkpoint.number for checkpoint in self.all()]
        name = f"{max(numbers, default=-1) + 1:06d}"
        temporary = self.path / f".{name}.partial"
        # The run's own directory must exist: one that has vanished is not to be made again.
        self.path.mkdir(exist_ok=True)
        try:
            self.sweep()
            temporary.mkdir()
            _reserve(temporary / ARRAYS, arrays)
            _save_arrays(temporary / ARRAYS, arrays)
            (temporary / PROGRESS).write_text(json.dumps({"format": FORMAT, **progress}), encoding="utf-8")
            manifest = {file.relative_to(temporary).as_posix(): _describe(file) for file in _files(temporary)}
            _flush(temporary)
            (temporary / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1), encoding="utf-8")
            _flush_one(temporary / MANIFEST)
            _flush_one(temporary)
            temporary.rename(self.path / name)
            _flush_one(self.path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return Checkpoint(self.path / name)

    def prune(self, keep: int, bad: Iterable[Path] = ()) -> None:
        """Removes all but the last `keep` and the best by return; `bad` ones count for neither."""
        good = [checkpoint for checkpoint in self.all() if checkpoint.path not in set(bad)]
        kept = {checkpoint.path for checkpoint in good[-keep:]}
        best = max(good, key=lambda one: (_return(one), -one.number), default=None)
        if best is not None and _return(best) > -np.inf:
            kept.add(best.path)
        for checkpoint in self.all():
            if checkpoint.path not in kept:
                # Renamed first, so that a process killed here leaves no half of a checkpoint under its name.
                temporary = self.path / f".{checkpoint.path.name}.partial"
                checkpoint.path.rename(temporary)
                shutil.rmtree(temporary, ignore_errors=True)

    def sweep(self) -> None:
        """Removes what processes that were killed have left half written. For the holder of the run's lock."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path):
                if re.fullmatch(r"\.\d{6,12}\.partial", name):
                    shutil.rmtree(self.path / name, ignore_errors=True)


def _return(checkpoint: Checkpoint) -> float:
    """The return that a checkpoint was taken at; -inf where there is none, or none to be read."""
    with contextlib.suppress(CheckpointError):
        value = checkpoint.progress().get("return")
        if isinstance(value, int | float) and value == value:
            return float(value)
    return -np.inf


def _reserve(file: Path, arrays: Arrays) -> None:
    """Raises OSError where the disk has no room for the arrays.

    Orbax would notice, too, but its threads then try to report to an event loop that it has closed, each with a
    traceback. Compression makes up for the space that its own files take.
    """
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


def _flush(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _flush_one(Path(folder) / name)
        _flush_one(Path(folder))


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Saving during a run -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A train state on the host, with what the host knew at that moment; `value` is its return, where it has one.

    No other moment of the run has the same `mark`.
    """

    arrays: Arrays
    position: dict[str, Any]
    value: float | None
    mark: Any


class Saver:
    """Saves a run's checkpoints: copies on the caller's thread, writes on one of its own.

    The state with the best return is copied when its row is logged and written with the next checkpoint. A run that is
    killed before then resumes from a checkpoint before that row, and meets it again.

    Args:
      checkpoints: where they go.
      keep: how many of the last ones stay; the best by return stays beside them.
      steps: environment steps per seed from one to the next; None: not by steps.
      minutes: likewise.
      bad: checkpoints that are known not to be intact.
      flush_first: files that must be on the disk before a checkpoint that counts on them.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        keep: int = 3,
        steps: int | None = None,
        minutes: float | None = None,
        bad: Sequence[Path] = (),
        flush_first: Sequence[Path] = (),
    ) -> None:
        self._checkpoints, self._keep, self._steps, self._minutes = checkpoints, keep, steps, minutes
        self._bad, self._flush_first = bad, flush_first
        self._about: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._best: Snapshot | None = None
        self._best_return = -np.inf
        self._last_steps, self._last_time = 0, time.perf_counter()
        self._saved: Any = None
        self.blocked_seconds = 0.0
        """How long the training loop has waited for checkpoints: copies, not writes."""
        self.write_seconds = 0.0
        """How long writing took meanwhile."""

    def prepare(self) -> None:
        """Imports orbax meanwhile: that takes more than a second, which can pass while a program is compiled."""
        self._pool.submit(_import_orbax)

    def start(self, steps: int, *, best_return: float | None, saved: Any, about: dict[str, Any]) -> None:
        """Begins to count intervals at `steps`.

        Args:
          steps: environment steps per seed so far.
          best_return: of the rows so far.
          saved: the mark of what the newest checkpoint holds already, or None.
          about: what every checkpoint says of the run.
        """
        self._about = about
        self._last_steps, self._last_time, self._saved = steps, time.perf_counter(), saved
        self._best_return = -np.inf if best_return is None else best_return

    @property
    def best_return(self) -> float | None:
        """The highest return of a row so far."""
        return None if self._best_return == -np.inf else self._best_return

    def row(self, state: Any, value: float, mark: Any, position: Callable[[], dict[str, Any]]) -> None:
        """After a row with the return `value`: copies the state where it is the best so far."""
        if value > self._best_return:
            begin = time.perf_counter()
            self._best_return = value
            self._best = Snapshot(to_arrays(state), position(), value, mark)
            self.blocked_seconds += time.perf_counter() - begin

    def due(self, steps: int) -> bool:
        """Whether a checkpoint is due at `steps`, and the one before has been written. Raises what that one raised."""
        if self._writing is not None and self._writing.done():
            self.wait()
        by_steps = self._steps is not None and steps - self._last_steps >= self._steps
        by_time = self._minutes is not None and time.perf_counter() - self._last_time >= 60 * self._minutes
        return (by_steps or by_time) and self._writing is None

    def save(self, state: Any, steps: int, mark: Any, value: float | None, position: dict[str, Any]) -> None:
        """Writes the state, and the best one before it, in the background.

        Args:
          state: of all seeds.
          steps: environment steps per seed, from which the next interval counts.
          mark: of this moment; what has been saved already is not saved again.
          value: the return that belongs to exactly this state, if any.
          position: what else resuming needs.
        """
        begin = time.perf_counter()
        self.wait()
        copies = [] if self._best is None else [self._best]
        if mark != self._saved and not (copies and copies[0].mark == mark):
            copies.append(Snapshot(to_arrays(state), position, value, mark))
        if copies:
            self._writing = self._pool.submit(self._write, copies)
        self._best, self._saved = None, mark
        self._last_steps, self._last_time = steps, time.perf_counter()
        self.blocked_seconds += self._last_time - begin

    def _write(self, copies: list[Snapshot]) -> None:
        begin = time.perf_counter()
        for file in self._flush_first:
            _flush_one(file)
        for copy in copies:
            self._checkpoints.write(copy.arrays, {**self._about, "return": copy.value, "position": copy.position})
        self._checkpoints.prune(self._keep, self._bad)
        self.write_seconds += time.perf_counter() - begin

    def wait(self) -> None:
        """Until everything is on the disk; raises CheckpointError or OSError where that failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for what is being written, whatever becomes of it."""
        self._pool.shutdown(wait=True)


def _import_orbax() -> None:
    import orbax.checkpoint  # noqa: F401
