"""Completion of settings, algorithms and environments in bash and zsh: `source <(haepo completion bash)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from haepo_jax.envs import list_envs
from haepo_jax.messages import short
from haepo_jax.runner.commands import ALL
from haepo_jax.runner.commands.board import BoardConfig
from haepo_jax.runner.commands.compare import CompareConfig
from haepo_jax.runner.commands.evaluate import EvaluateConfig
from haepo_jax.runner.commands.plot import PlotConfig
from haepo_jax.runner.commands.render import RenderConfig
from haepo_jax.runner.config import ALGORITHM_NAMES, ConfigError, RunConfig, hyperparameter_fields
from haepo_jax.runner.sweeps.plan import SweepConfig

SCHEMAS: dict[str, tuple[type, ...]] = {
    "train": (RunConfig,), "compare": (CompareConfig, RunConfig), "sweep": (SweepConfig,),
    "evaluate": (EvaluateConfig,), "render": (RenderConfig,), "plot": (PlotConfig,), "board": (BoardConfig,),
}  # fmt: skip


def completion(argv: Sequence[str]) -> str:
    """The script for the shell that is named; raises ConfigError."""
    if len(argv) != 1 or argv[0] not in ("bash", "zsh"):
        raise ConfigError(f"completion takes the name of a shell, bash or zsh, not {short(' '.join(argv))}")
    shell = argv[0]
    of_command = {
        f"haepo-{command}": [*dict.fromkeys(word for schema in schemas for word in _words(schema, shell)), "--help"]
        for command, schemas in SCHEMAS.items()
    }
    of_command["haepo"] = [*ALL, *dict.fromkeys(word for words in of_command.values() for word in words)]
    lines = [f"# Load it in the current shell with: source <(python -m haepo_jax completion {shell})"]
    for program, words in of_command.items():
        if shell == "bash":
            lines.append(f"complete -o default -o nospace -W '{' '.join(words)}' {program}")
        else:
            lines.append(f"_{program}() {{ compadd -S '' -- {' '.join(words)} }}; compdef _{program} {program}")
    return "\n".join(lines) + "\n"


def _words(schema: type, shell: str) -> list[str]:
    """The settings of a command, and their values: bash completes what follows the equal sign, zsh the whole word."""
    words = []
    for field in dataclasses.fields(schema):
        listed = {"env": list_envs(), "algo": ALGORITHM_NAMES}.get(field.name, field.metadata["choices"])
        words += [f"{field.name}=", *(value if shell == "bash" else f"{field.name}={value}" for value in listed)]
        if field.name == "algo":
            words += [f"algo.{key}=" for name in ALGORITHM_NAMES for key in hyperparameter_fields(name)]
    return words
