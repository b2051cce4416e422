"""`python -m haepo_jax` lists the commands, and `python -m haepo_jax train ...` runs one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from haepo_jax.messages import did_you_mean, short
from haepo_jax.runner.commands import ALL, COMMANDS
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.entry import entry_point

HELP = """\
Functional reinforcement learning around HAEPO, in JAX.

usage: python -m haepo_jax <command> [key=value ...]

commands:
{commands}
  llm         fine-tune a language model
  completion  print a shell completion script: bash or zsh

All but completion also run as python -m haepo_jax.<command>, and <command> --help lists their settings. To train a policy:

  python -m haepo_jax train env=CartPole-v1

To complete the settings of haepo and haepo-<command> in this shell (bash or zsh):

  source <(haepo completion bash)
"""


def _help() -> str:
    return HELP.format(commands="\n".join(f"  {name:<10}  {doc}" for name, doc in COMMANDS.items()))


@entry_point(lambda argv: _help())
def _list(argv: list[str]) -> int:
    if argv and argv[0] == "completion":
        from haepo_jax.runner.commands.completion import completion

        print(completion(argv[1:]), end="")
    elif argv:
        raise ConfigError(
            f"unknown command {short(argv[0])}{did_you_mean(argv[0], ALL)}; available commands: {', '.join(ALL)}"
        )
    else:
        print(_help(), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command given by the first argument, with the remaining ones; returns its exit status."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv), ""]
    if name in COMMANDS or name == "llm":
        home = "haepo_jax.llm.__main__" if name == "llm" else f"haepo_jax.runner.commands.{name}"
        status: int = importlib.import_module(home).main(rest[:-1])
        return status
    return _list(argv)


if __name__ == "__main__":
    sys.exit(main())
