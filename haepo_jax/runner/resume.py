"""Resuming a run: its settings, and the checkpoint to resume from. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from haepo_jax.messages import short
from haepo_jax.runner.checkpoints import Checkpoint, CheckpointError, Checkpoints
from haepo_jax.runner.config import ConfigError, OwnConfig, RunConfig
from haepo_jax.runner.config.arguments import Arguments, compose, peek, value_text
from haepo_jax.runner.run_dir import RunDir, leading_rows

FREE = frozenset(
    {
        "run_dir",
        "resume",
        "dry_run",
        "distributed",
        "tensorboard",
        "wandb",
        "final_eval_episodes",
        "checkpoint_steps",
        "checkpoint_minutes",
        "keep_checkpoints",
        "completions",
        "weights",
    }
)
"""Settings that change no update and no row of the metrics, so that a resumed run may change them."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to resume a run.

    Attributes:
      config: its settings.
      checkpoint: where from; None: from the beginning, because it was ended before its first one.
      damaged: checkpoints that are not intact.
      ended: whether nothing is left to do.
    """

    config: RunConfig
    checkpoint: Checkpoint | None
    damaged: tuple[Path, ...]
    ended: bool


def compose_run(arguments: Arguments) -> RunConfig:
    """The settings of a training run: of a new one, or with `resume` of the one in `run_dir` with the changes that are
    allowed. Raises ConfigError."""
    overrides = list(arguments.overrides)
    resume, run_dir = (peek(overrides, RunConfig, key) for key in ("resume", "run_dir"))
    directory = None if resume == "false" else existing_run(resume, run_dir)
    # Whether there are several processes is not the run's to say but that of those who start them.
    saved = None if directory is None else dataclasses.replace(directory.read_config(), distributed=False)
    if arguments.settings is not None:
        config = compose(overrides, RunConfig, arguments.settings, f"--config {short(arguments.file)}: ")
    else:
        config = compose(overrides, RunConfig, None if saved is None else saved.to_dict())
    if saved is not None and directory is not None:
        allowed(flat(saved), flat(config), directory)
    return config


def existing_run(resume: str, run_dir: str | None) -> RunDir | None:
    """The run to resume; None where `resume` is "auto" and there is none. Raises ConfigError."""
    if run_dir is None:
        raise ConfigError(f"resume={resume} needs run_dir=<the directory of the run>")
    directory = RunDir(Path(run_dir))
    try:
        if directory.holds_run():
            return directory
        exists = directory.path.exists()
        if exists and not directory.path.is_dir():
            raise ConfigError(f"run_dir={short(run_dir)} is a file, not a directory")
    except (OSError, ValueError) as error:
        raise ConfigError(f"run_dir={short(run_dir)} cannot be read: {error}") from None
    if resume == "true":
        what = "holds no run" if exists else "does not exist"
        raise ConfigError(f"run_dir={short(run_dir)} {what}: there is nothing to resume (resume=auto starts a run)")
    return None


def resume_command(directory: RunDir, *, distributed: bool = False, module: str = "haepo_jax.train") -> str:
    """The command line that resumes a run, quoted for the shell and for Hydra's grammar."""
    several = ["distributed=true"] if distributed else []
    return shlex.join(["python", "-m", module, f"run_dir={value_text(str(directory.path))}", "resume=true", *several])


def allowed(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    directory: RunDir,
    free: Collection[str] = FREE,
    grows: str = "total_steps",
) -> None:
    """Raises ConfigError, which names it, where the settings `after` change one of the run's that may not change.

    Args:
      before: the settings of the run, by the keys of the command line (see `flat`).
      after: those to resume with.
      directory: of the run.
      free: those that may change.
      grows: the one that may grow.
    """
    name = short(str(directory.path))
    for key in {**after, **before}:
        old: Any = before.get(key)
        new: Any = after.get(key)
        if old == new or key in free or (key == grows and new > old):
            continue
        if key == grows:
            raise ConfigError(f"{key}={new} is less than the {old} of the run in {name}, which can only be extended")
        raise ConfigError(
            f"{key}={short(new)}, but the run in {name} has {key}={short(old)}: a resumed run keeps its settings "
            "(another run_dir starts another run)"
        )


def flat(config: RunConfig) -> dict[str, Any]:
    """The settings under the keys that the command line has for them: `algo.learning_rate`, `env_kwargs.gravity`."""
    values = config.to_dict()
    algo, env_kwargs = values.pop("algo"), values.pop("env_kwargs")
    values["algo"] = algo.pop("name")
    return (
        values
        | {f"algo.{key}": value for key, value in algo.items()}
        | {f"env_kwargs.{key}": value for key, value in env_kwargs.items()}
    )


def settings_that_matter(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint keeps of the settings, to be compared with those of the run that it is found in."""
    return {key: value for key, value in flat(config).items() if key not in FREE}


def check_written_with(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Raises ConfigError where a checkpoint was written with other settings, as far as it names them: an older version
    had fewer."""
    saved, mine = checkpoint.progress().get("settings"), settings_that_matter(config)
    if not isinstance(saved, dict):
        raise CheckpointError(f"{checkpoint.path}: its progress.json is not of this version")
    for key in {**mine, **saved}:
        named = key in saved or key.startswith("env_kwargs.")
        if named and key != "total_steps" and saved.get(key) != mine.get(key):
            then, now = short(saved.get(key)), short(mine.get(key))
            raise ConfigError(f"{checkpoint.path} was written with {key}={then}, not {now} as config.yaml says")


def make_plan(config: RunConfig, directory: RunDir, warn: Callable[[str], None]) -> Plan:
    """How to resume the run in a directory, whose lock the caller holds.

    Args:
      config: the settings to resume with.
      directory: of the run.
      warn: is told, in one line each, which checkpoints are not intact.

    Raises:
      ConfigError: where the settings differ from the run's, or its checkpoints from both.
      CheckpointError: where there are checkpoints and none is intact.
    """
    saved = directory.read_config(own=isinstance(config, OwnConfig))
    allowed(flat(saved), flat(config), directory)
    damaged = []

    def accept(checkpoint: Checkpoint) -> None:
        try:
            rows = int(checkpoint.progress()["position"]["rows"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{checkpoint.path}: its progress.json is not of this version") from None
        check_written_with(checkpoint, saved)
        if leading_rows(directory.metrics, lambda row: row["row"] < rows)[0] < rows:
            raise CheckpointError(f"{checkpoint.path}: metrics.jsonl has lost some of the {rows} rows logged before it")

    def reject(text: str) -> None:
        warn(f"{text}; trying the one before")

    checkpoints = Checkpoints(directory.checkpoints)
    newest = checkpoints.newest(accept, reject)
    if newest is not None:
        damaged = [checkpoint.path for checkpoint in checkpoints.all() if checkpoint.number > newest.number]
    ended = newest is not None and saved.total_steps == config.total_steps and directory.summary.exists()
    return Plan(config, newest, tuple(damaged), ended)
