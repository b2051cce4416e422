"""What a resumed run keeps of its settings, and what it may change. Nothing here imports jax."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from haepo_jax.messages import short
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import Arguments, compose, peek, shell_command, value_text
from haepo_jax.runner.run_dir import LOCK, RunDir, as_config_error

FREE = frozenset({
    "run_dir", "resume", "dry_run", "tensorboard", "wandb", "final_eval_episodes", "checkpoint_minutes",
    "keep_checkpoints", "completions",
})  # fmt: skip
"""Settings that change no update and no row of the metrics, so that a resumed run may change them."""


def compose_run(arguments: Arguments) -> tuple[RunConfig, RunDir | None]:
    """The settings of a training run: of a new one, or with `resume` of the one in `run_dir` with some changed; and the
    directory of the run to resume, if any. Raises ConfigError."""
    overrides = arguments.overrides
    directory = existing_run(*(peek(overrides, RunConfig, key) for key in ("resume", "run_dir")))
    if arguments.settings is not None:
        return compose(overrides, RunConfig, arguments.settings, f"--config {short(arguments.file)}: "), directory
    return compose(overrides, RunConfig, directory.read_config().to_dict() if directory else None), directory


def existing_run(resume: str, run_dir: str | None) -> RunDir | None:
    """The run to resume; None if `resume` is "false", or "auto" and there is none. Raises ConfigError."""
    if resume == "false":
        return None
    if run_dir is None:
        raise ConfigError(f"resume={resume} needs run_dir=<the directory of the run>")
    directory = RunDir(Path(run_dir))
    with as_config_error(run_dir):
        if directory.holds_run():
            return directory
        if resume == "true" and (directory.path / LOCK).exists():
            with directory.lock():  # raises where the run's own process has yet to write its settings
                pass
    if resume == "true":
        name = short(run_dir)
        raise ConfigError(f"run_dir={name} holds no run: there is nothing to resume (resume=auto starts a run)")
    return None


def resume_command(directory: RunDir, *, module: str = "haepo_jax.train") -> str:
    """The command line that resumes a run, quoted for the shell and for Hydra's grammar."""
    return shell_command(module, [f"run_dir={value_text(str(directory.path))}", "resume=true"])


def allowed(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    directory: RunDir,
    free: Collection[str] = FREE,
    grows: str = "total_steps",
) -> None:
    """Raises ConfigError, which names it, where the settings `after` change one of a run's settings `before` (both as `flat`
    gives them) that is not among the `free` ones; the one that `grows` may become larger."""
    name = short(str(directory.path))
    for key in {**after, **before}:
        old: Any = before.get(key)
        new: Any = after.get(key)
        if old == new or key in free or (key == grows and new > old):
            continue
        if key == grows:
            raise ConfigError(f"{key}={new} is less than the {old} of the run in {name}, which can only be extended")
        raise ConfigError(
            f"{key}={short(new, 160)}, but the run in {name} has {key}={short(old, 160)}: a resumed run keeps its settings "
            "(another run_dir starts another run)"
        )


def flat(config: RunConfig) -> dict[str, Any]:
    """The settings under the keys that the command line has for them, such as `algo.learning_rate` and `env_kwargs.gravity`;
    custom objects as `objects.network`."""
    values = config.to_dict()
    nested = {key: values.pop(key, {}) for key in ("env_kwargs", "objects", "algo")}
    values["algo"] = nested["algo"].pop("name")
    return values | {f"{key}.{part}": value for key, parts in nested.items() for part, value in parts.items()}
