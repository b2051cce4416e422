"""Going on with a run: its settings, and the checkpoint to go on from. Nothing here imports jax."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from haepo_jax.config import AlgoConfig, ConfigError, OwnConfig, RunConfig, hyperparameter_defaults
from haepo_jax.config.arguments import Arguments, changed, compose, peek, read_arguments
from haepo_jax.messages import short
from haepo_jax.training.checkpoints import Checkpoint, CheckpointError, Checkpoints
from haepo_jax.training.run_dir import RunDir

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
    """How to go on with a run.

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
    if arguments.file is not None:
        config = changed(arguments.file.values, overrides, f"--config {short(arguments.file.name)}: ")
    elif saved is not None:
        config = changed(saved.to_dict(), overrides)
    else:
        config = compose(overrides, RunConfig)
    return config if saved is None or directory is None else allowed(saved, config, directory)


def existing_run(resume: str, run_dir: str | None) -> RunDir | None:
    """The run to go on with; None where `resume` is "auto" and there is none. Raises ConfigError."""
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
    """The command line that goes on with a run, quoted for the shell and for Hydra's grammar."""
    path = str(directory.path)
    plain = f"run_dir={path}"
    try:
        read = peek(read_arguments([plain]).overrides, RunConfig, "run_dir")
    except ConfigError:
        read = None
    if read != path:
        escaped = path.replace("'", "\\'")
        plain = f"run_dir='{escaped}'"
    several = ["distributed=true"] if distributed else []
    return shlex.join(["python", "-m", module, plain, "resume=true", *several])


def allowed(saved: RunConfig, config: RunConfig, directory: RunDir) -> RunConfig:
    """`config`, where a run with the settings `saved` may go on with it; raises ConfigError, which names what may not
    change."""
    before, after = flat(saved), flat(config)
    for key in [*after, *(key for key in before if key not in after)]:
        old, new = before.get(key), after.get(key)
        if old == new or key in FREE:
            continue
        if key == "total_steps" and new is not None and old is not None and new > old:
            continue
        name = str(directory.path)
        if key == "total_steps":
            raise ConfigError(
                f"total_steps={new} is less than the {old} of the run in {short(name)}, which can only be extended"
            )
        raise ConfigError(
            f"{key}={_text(new)}, but the run in {short(name)} has {key}={_text(old)}: a resumed run keeps its "
            "settings (another run_dir starts another run)"
        )
    return config


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


def _text(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or isinstance(value, bool)
        else short(value)
    )


def settings_that_matter(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint keeps of the settings, to be compared with those of the run that it is found in."""
    return {key: value for key, value in flat(config).items() if key not in FREE}


def default_settings(config: RunConfig) -> dict[str, Any]:
    """What a run with this algorithm has where nothing is set: a checkpoint that does not name a setting is older."""
    if isinstance(config, OwnConfig):
        return flat(config)
    name = config.algo.name
    algo = AlgoConfig(name, hyperparameter_defaults(name))
    own = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    return flat(dataclasses.replace(config, algo=algo)) | {
        k: v for k, v in own.items() if k not in ("algo", "env_kwargs")
    }


def make_plan(config: RunConfig, directory: RunDir, warn: Callable[[str], None]) -> Plan:
    """How to go on with the run in a directory, whose lock the caller holds.

    Args:
      config: the settings to go on with.
      directory: of the run.
      warn: is told, in one line each, which checkpoints are not intact.

    Raises:
      ConfigError: where the settings differ from the run's, or its checkpoints from both.
      CheckpointError: where there are checkpoints and none is intact.
    """
    saved = directory.read_config(own=isinstance(config, OwnConfig))
    allowed(saved, config, directory)
    damaged = []
    defaults = default_settings(saved)

    def accept(checkpoint: Checkpoint) -> None:
        try:
            rows = int(checkpoint.progress()["position"]["rows"])
            settings = dict(checkpoint.progress()["settings"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"{checkpoint.path}: its progress.json is not of this version") from None
        mine = settings_that_matter(saved)
        for key in {**mine, **settings}:
            settings.setdefault(key, defaults.get(key))
            if key != "total_steps" and settings[key] != mine.get(key):
                then, now = _text(settings.get(key)), _text(mine.get(key))
                raise ConfigError(f"{checkpoint.path} was written with {key}={then}, not {now} as config.yaml says")
        if directory.metrics_bytes(rows) is None:
            raise CheckpointError(f"{checkpoint.path}: metrics.jsonl has lost some of the {rows} rows logged before it")

    def reject(text: str) -> None:
        warn(f"{text}; trying the one before")

    checkpoints = Checkpoints(directory.checkpoints)
    newest = checkpoints.newest(accept, reject)
    if newest is not None:
        damaged = [checkpoint.path for checkpoint in checkpoints.all() if checkpoint.number > newest.number]
    ended = newest is not None and saved.total_steps == config.total_steps and directory.summary.exists()
    return Plan(config, newest, tuple(damaged), ended)
