"""A run's directory: what lies where, and how it is made and written."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import yaml

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.values import from_dict, own_from_dict

LOCK = ".lock"


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of one run, by name. Creating the object touches nothing."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings, as `--cfg job` prints them."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line for each logged update."""
        return self.path / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """Return against steps."""
        return self.path / "curve.png"

    @property
    def summary(self) -> Path:
        """How the run ended."""
        return self.path / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """The directory of `haepo_jax.runner.checkpoints.Checkpoints`."""
        return self.path / "checkpoints"

    def holds_run(self) -> bool:
        """Whether a run has left something here."""
        return any(file.exists() for file in (self.config, self.metrics, self.summary))

    def read_config(self, *, own: bool = False) -> RunConfig:
        """The settings of the run; raises ConfigError, also for those of custom objects, unless `own`:
        nothing can be built from them."""
        values = self.read_settings()
        if "objects" not in values:
            return from_dict(values, RunConfig)
        if own:
            return own_from_dict(values)
        raise ConfigError(
            f"run_dir={short(str(self.path))} is a run of custom objects ({short(values['objects'], 200)}): load it in "
            "Python with hx.load(run_dir, algorithm=...), resume it with hx.train(..., resume=True)"
        )

    def read_settings(self) -> dict[str, Any]:
        """The settings as they stand in the file, not checked; raises ConfigError."""
        values = self._read(self.config, yaml.safe_load)
        if not isinstance(values, dict):
            raise ConfigError(f"{str(self.config)!r} holds no settings")
        return values

    def read_summary(self) -> dict[str, Any]:
        """The summary of a run that has ended; raises ConfigError."""
        summary: dict[str, Any] = self._read(self.summary, json.loads)
        return summary

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far; raises ConfigError."""
        rows: list[dict[str, Any]] = self._read(
            self.metrics,
            lambda text: [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")],
        )
        return rows

    def _read(self, file: Path, parse: Any) -> Any:
        # Unlike `Path.is_dir`, this says no to a name that is too long.
        if not os.path.isdir(self.path):
            raise ConfigError(f"run_dir={short(str(self.path))} is no directory")
        try:
            return parse(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"run_dir={str(self.path)!r} holds no readable {file.name}: {error.strerror}") from None
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read {str(file)!r}: {one_line(str(error), 120)}") from None

    def remove_if_empty(self) -> None:
        """Takes back a directory that nothing but the lock has been written to."""
        with contextlib.suppress(OSError):
            if set(os.listdir(self.path)) <= {LOCK}:
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps the directory to one process while it is entered; raises ConfigError where another has it.

        The operating system releases the lock when the process ends, however it ends.
        """
        with refusing(str(self.path)):
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # Some network file systems have no locks; there the user is trusted.
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise ConfigError(f"run_dir={short(str(self.path))} is in use by another process") from None
            if os.fstat(descriptor).st_nlink == 0:
                raise ConfigError(f"run_dir={short(str(self.path))} was removed by another process; try again")
            yield
        finally:
            os.close(descriptor)

    def clean_up(self) -> None:
        """Removes what `write_atomically` had under way in a process that was killed; for the holder of the lock."""
        for file in (self.config, self.summary, self.curve):
            for leftover in self.path.glob(f".{file.name}.[0-9]*"):
                with contextlib.suppress(OSError):
                    leftover.unlink()


def read_run(run_dir: str) -> RunDir:
    """The directory of the run that a command's `run_dir` names; raises ConfigError where it is missing or holds no run."""
    if not run_dir:
        raise ConfigError("run_dir= is missing: name the directory of a run")
    directory = RunDir(Path(run_dir))
    directory.read_config()
    return directory


def check_run_dir(config: RunConfig) -> None:
    """Raises ConfigError where the run's directory cannot be used, as far as can be told without making it."""
    name = config.run_dir if config.run_dir is not None else "runs"
    path = Path(name)
    with refusing(name):
        if _exists(path) and not path.is_dir():
            raise ConfigError(f"run_dir={short(name)} is a file, not a directory")
        if config.run_dir is not None and RunDir(path).holds_run():
            raise ConfigError(
                f"run_dir={short(name)} already holds a run: choose another directory, or resume it with resume=true"
            )
    check_writable(name)


def check_writable(name: str) -> None:
    """Raises ConfigError where a directory of that name cannot be made or written, as far as can be told without."""
    path = Path(name)
    with refusing(name):
        nearest = next(parent for parent in (path, *path.absolute().parents) if _exists(parent))
        if not nearest.is_dir():
            raise ConfigError(f"run_dir={short(name)} cannot be made: {short(str(nearest))} is not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(f"run_dir={short(name)} cannot be written: no permission in {short(str(nearest))}")


def _exists(path: Path) -> bool:
    """Whether anything has that name; unlike `Path.exists` this lets other errors, such as too long a name, through."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def create_run_dir(config: RunConfig) -> RunDir:
    """Makes the run's directory and makes sure that it can be written; raises ConfigError.

    A directory without a name is new, whatever else starts at the same second.
    """
    check_run_dir(config)
    with refusing(config.run_dir or "runs"):
        path = None if config.run_dir is None else Path(config.run_dir)
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
        while path is None:
            with contextlib.suppress(FileExistsError):  # another process has just taken the name
                unused = unused_directory(f"{config.env.replace('/', '-')}-{config.algo.name}-{config.seed}")
                unused.mkdir(parents=True)
                path = unused
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"x")
    return RunDir(path)


def unused_directory(stem: str) -> Path:
    """A name below `runs` that nothing has: the stem, the time and, where that is taken, a number."""
    stem = f"{stem}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S')}"
    names = (stem if count == 1 else f"{stem}-{count}" for count in itertools.count(1))
    return next(path for path in (Path("runs") / name for name in names) if not path.exists())


@contextlib.contextmanager
def refusing(name: str) -> Iterator[None]:
    """Tells in one line, as a ConfigError, why the directory `run_dir=name` cannot be used."""
    try:
        yield
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(f"run_dir={short(name)} cannot be written: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the name
        raise ConfigError(f"run_dir={short(name)} cannot be written: {error}") from None


def config_text(config: RunConfig) -> str:
    """The settings as YAML."""
    text: str = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text


def output_file(name: str, suffix: str, why: str = "") -> Path:
    """The file that `out=` names; raises ConfigError, with the reason `why` for the suffix, where it cannot be made."""
    out = Path(name)
    if out.suffix.lower() != suffix:
        raise ConfigError(f"out={short(name)} must end in {suffix}{why}")
    if not os.path.isdir(out.absolute().parent):
        raise ConfigError(f"out={short(name)}: there is no directory {short(str(out.parent))}")
    return out


def write_output(out: Path, content: str | bytes) -> None:
    """Writes what a command was asked for, in one step; raises ConfigError."""
    try:
        write_atomically(out, content)
    except OSError as error:
        raise ConfigError(f"out={short(str(out))} cannot be written: {error.strerror}") from None


def write_atomically(file: Path, content: str | bytes) -> None:
    """Replaces a file in one step: a reader, or a crash, meets the old content or the new."""
    data = content.encode() if isinstance(content, str) else content
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def leading_rows(path: Path, keep: Callable[[dict[str, Any]], bool]) -> tuple[int, int]:
    """How many rows at the beginning of a file of JSON lines are whole and to be kept, and their bytes."""
    count = size = 0
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError), path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or not keep(json.loads(line)):
                break
            count, size = count + 1, size + len(line)
    return count, size


class AppendedFile:
    """A file that grows by whole records: one that finds no room on the disk leaves nothing of itself.

    Args:
      path: of the file, which is made where there is none.
      size: what is kept of it; None: all.
    """

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        self._size = os.fstat(self._descriptor).st_size if size is None else size
        os.ftruncate(self._descriptor, self._size)
        os.lseek(self._descriptor, self._size, os.SEEK_SET)

    @classmethod
    def continued(cls, path: Path, keep: Callable[[dict[str, Any]], bool]) -> Self:
        """A file of JSON lines, open to continue after the rows at its beginning that are kept."""
        return cls(path, leading_rows(path, keep)[1])

    def append(self, record: bytes) -> None:
        """Adds a record; raises OSError."""
        if not self._path.exists():
            # Writing on into a file that has been removed would succeed.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._path))
        written = 0
        try:
            while written < len(record):
                written += os.write(self._descriptor, record[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._size += written

    def flush(self) -> None:
        """Waits until everything is on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Closing twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in which a number that is not finite is null, as it is in every reader."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
