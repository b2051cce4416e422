"""A run's directory: what lies where, and how it is made and written."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.values import custom_from_dict, from_dict

LOCK = ".lock"


def _file(name: str, doc: str) -> Path:
    return property(lambda directory: directory.path / name, doc=doc)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True)
class RunDir:
    """The files of one run, by name. Creating the object touches nothing."""

    path: Path

    config = _file("config.yaml", "The settings, as `--cfg job` prints them.")
    metrics = _file("metrics.jsonl", "One JSON object a line for each logged update.")
    curve = _file("curve.png", "Return against steps.")
    summary = _file("summary.json", "How the run ended.")
    checkpoints = _file("checkpoints", "The directory of `haepo_jax.runner.checkpoints.Checkpoints`.")

    def holds_run(self) -> bool:
        """Whether a run has left something here."""
        return any(file.exists() for file in (self.config, self.metrics, self.summary))

    def read_config(self, *, custom: bool = False) -> RunConfig:
        """The settings of the run; raises ConfigError, also for those of custom objects, unless `custom`:
        nothing can be built from them."""
        values = self.read_settings()
        if "model" in values:
            raise ConfigError(f"run_dir={short(str(self.path))} is a run of haepo_jax.llm")
        if "objects" in values and not custom:
            raise ConfigError(
                f"run_dir={short(str(self.path))} is a run of custom objects ({short(values['objects'], 200)}): load it "
                "in Python with hx.load(run_dir, algorithm=...), resume it with hx.train(..., resume=True)"
            )
        try:
            return custom_from_dict(values) if "objects" in values else from_dict(values, RunConfig)
        except ConfigError as error:
            raise ConfigError(f"cannot use {str(self.config)!r}: {error}") from None

    def read_settings(self) -> dict[str, Any]:
        """The settings as they stand in the file, not checked; raises ConfigError."""

        def parse(text: str) -> Any:
            values = yaml.safe_load(text)
            json.dumps(values, default=str)  # raises ValueError for anchors that contain themselves
            return values

        values = self._read(self.config, parse)
        if not isinstance(values, dict):
            raise ConfigError(f"{str(self.config)!r} holds no settings")
        return values

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Writes the settings, replacing the file in one step."""
        write_atomically(self.config, config_text(settings))

    def read_summary(self) -> dict[str, Any]:
        """The summary of a run that has ended; raises ConfigError."""
        return self._read(self.summary, json.loads)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows logged so far; raises ConfigError."""
        return self._read(self.metrics, rows_of)

    def _read(self, file: Path, parse: Callable[[str], Any]) -> Any:
        # Unlike `Path.is_dir`, this says no to a name that is too long.
        if not os.path.isdir(self.path):
            raise ConfigError(f"run_dir={short(str(self.path))} is not a directory")
        try:
            return parse(file.read_text(encoding="utf-8"))
        except OSError as error:
            for other, kind in (
                ("sweep.json", "a sweep: train its best configuration with the command in summary.json"),
                ("comparison.json", "a comparison: name one of the runs in it"),
            ):
                if (self.path / other).is_file():
                    raise ConfigError(f"run_dir={str(self.path)!r} is the directory of {kind}") from None
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
        """Keeps the directory to one process while it is entered, however that ends; raises ConfigError where another has
        it. One that nothing was written to is taken back then."""
        with as_config_error(str(self.path)):
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
            try:
                yield
            finally:
                self.remove_if_empty()
        finally:
            os.close(descriptor)


def rows_of(text: str) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file. A last line without its end is still being written."""
    # Not `splitlines`, which also splits at line separators within a string.
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_run(run_dir: str) -> RunDir:
    """The directory of the run that a command's `run_dir` names; raises ConfigError where it is missing or holds no run."""
    if not run_dir:
        raise ConfigError("run_dir= is missing: name the directory of a run")
    directory = RunDir(Path(run_dir))
    directory.read_config()
    return directory


def check_run_dir(name: str | None) -> None:
    """Raises ConfigError if a new run's directory (None: one below `runs`) cannot be used, as far as can be told without
    creating it."""
    if name is not None:
        with as_config_error(name):
            if RunDir(Path(name)).holds_run():
                raise ConfigError(
                    f"run_dir={short(name)} already holds a run: choose another directory, or resume it with resume=true"
                )
    check_writable(name or "runs")


def check_sweep_dir(name: str) -> None:
    """Raises ConfigError if a sweep's directory cannot be used, as far as can be told without creating it."""
    check_writable(name)
    if RunDir(Path(name)).config.exists():
        raise ConfigError(f"run_dir={short(name)} holds a training run: choose another directory")


def check_writable(name: str) -> None:
    """Raises ConfigError if a directory of that name cannot be created or written, as far as can be told without."""
    path = Path(name)
    try:
        str(path.absolute()).encode()  # Orbax needs it
    except UnicodeEncodeError:
        raise ConfigError(f"run_dir={short(name)} is not valid Unicode: choose another directory") from None
    with as_config_error(name):
        nearest = next(parent for parent in (path, *path.absolute().parents) if os.access(parent, os.F_OK))
        if not nearest.is_dir():
            raise ConfigError(f"run_dir={short(name)} cannot be made: {short(str(nearest))} is not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(f"run_dir={short(name)} cannot be written: {short(str(nearest))} is not writable")


def create_run_dir(name: str) -> RunDir:
    """Makes a run's directory; raises ConfigError."""
    check_run_dir(name)
    path = Path(name)
    with as_config_error(str(path)):
        path.mkdir(parents=True, exist_ok=True)
    return RunDir(path)


def unused_directory(stem: str) -> str:
    """A directory below `runs` that is not there yet, named by the time to the microsecond."""
    return f"runs/{stem.replace('/', '-')}-{datetime.datetime.now().strftime('%Y%m%d-%H%M%S-%f')}"


@contextlib.contextmanager
def as_config_error(name: str) -> Iterator[None]:
    """Tells in one line, as a ConfigError, why the directory `run_dir=name` cannot be used."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError) as error:  # the latter for a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"run_dir={short(name)} cannot be written: {reason}") from None


def config_text(settings: Mapping[str, Any]) -> str:
    """Settings as YAML."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def output_file(name: str, suffix: str) -> Path:
    """The file that `out=` names; raises ConfigError where it cannot be made."""
    out = Path(name)
    if out.suffix.lower() != suffix:
        raise ConfigError(f"out={short(name)} must end in {suffix}")
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
    temporary = file.with_name(
        f".{file.name}.{secrets.token_hex(4)}"
    )  # processes of two containers may share their number
    try:
        temporary.write_bytes(data)
        flush_to_disk(temporary)
        os.replace(temporary, file)
    except OSError as error:  # says the name of the temporary file
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        temporary.unlink(missing_ok=True)


def keep_rows(file: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Cuts a file of JSON lines, created if missing, after the rows at its beginning that are whole and kept."""
    size = 0
    with file.open("a+b") as stream:
        stream.seek(0)
        with contextlib.suppress(ValueError, TypeError, KeyError):
            for line in stream:
                if not line.endswith(b"\n") or not keep(json.loads(line)):
                    break
                size += len(line)
        stream.truncate(size)


def append_record(file: Path, record: str) -> None:
    """Adds a record to a file that exists. If the disk has no room for all of it, none of it is left. Raises OSError."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
    size, data = os.fstat(descriptor).st_size, record.encode()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        os.ftruncate(descriptor, size)
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        os.close(descriptor)


def flush_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON in which a number that is not finite is null, as it is in every reader."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    return json.dumps(finite, indent=indent, allow_nan=False)
