"""Completion of settings, algorithms and environments in bash and zsh: `python -m haepo_jax completion bash`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from haepo_jax.envs import list_envs
from haepo_jax.messages import short
from haepo_jax.runner.commands import COMMANDS
from haepo_jax.runner.commands.board import BoardConfig
from haepo_jax.runner.commands.compare import CompareConfig
from haepo_jax.runner.commands.evaluate import EvaluateConfig
from haepo_jax.runner.commands.plot import PlotConfig
from haepo_jax.runner.commands.render import RenderConfig
from haepo_jax.runner.config import ALGORITHM_NAMES, ConfigError, RunConfig, hyperparameter_fields
from haepo_jax.runner.sweeps.plan import SweepConfig

SCRIPT = """\
# Completion for haepo_jax in {shell}. Load it in the current shell with
#   source <(python -m haepo_jax completion {shell})
{prelude}_haepo_jax() {{
  local line="${{COMP_LINE:0:$COMP_POINT}}" word choices choice command prefix=
  word="${{line##* }}"
  # The command is the end of the program's name, as in haepo-train, or the word behind haepo.
  command="${{line%% *}}"
  command="${{command#haepo}}"
  command="${{command#-}}"
  [[ -z "$command" && "${{line#* }}" == *" "* ]] && line="${{line#* }}" && command="${{line%% *}}"
  case "$command:$word" in
    :*) choices="{commands}" ;;
{cases}
    *=*) COMPREPLY=(); return ;;
{settings}
    *) choices= ;;
  esac
  if [[ "$word" == *=* ]]; then
    {whole_word}
    word="${{word#*=}}"
  fi
  COMPREPLY=()
  for choice in $(echo "$choices"); do
    [[ "$choice" == "$word"* ]] && COMPREPLY+=("$prefix$choice")
  done
}}
complete -o default -o nospace -F _haepo_jax {programs}
"""


def completion(argv: Sequence[str]) -> str:
    """The script for the shell that is named; raises ConfigError."""
    shell, *rest = argv or [""]
    if shell not in ("bash", "zsh") or rest:
        raise ConfigError(f"completion takes the name of a shell, bash or zsh, not {short(' '.join(argv))}")
    schemas: dict[str, list[type]] = {
        "train": [RunConfig], "compare": [CompareConfig, RunConfig], "sweep": [SweepConfig],
        "evaluate": [EvaluateConfig], "render": [RenderConfig], "plot": [PlotConfig], "board": [BoardConfig],
    }  # fmt: skip
    hyperparameters = dict.fromkeys(f"algo.{key}" for name in ALGORITHM_NAMES for key in hyperparameter_fields(name))
    values: dict[str, Sequence[str]] = {"env": list_envs(), "algo": ALGORITHM_NAMES}
    lines = []
    for command, settings in schemas.items():
        fields = {field.name: field.metadata for schema in settings for field in dataclasses.fields(schema)}
        keys = [f"{key}=" for key in (*fields, *(hyperparameters if "algo" in fields else ()))]
        lines.append(f'    {command}:*) choices="{" ".join([*keys, "--help"])}" ;;')
        for key, meta in fields.items():
            if listed := meta["choices"] or {bool: ("true", "false")}.get(meta["kind"]):
                values.setdefault(key, listed)
    cases = "\n".join(f'    *:{key}=*) choices="{" ".join(words)}" ;;' for key, words in values.items())
    return SCRIPT.format(
        shell=shell,
        prelude="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        # bash completes what follows the equal sign, zsh the whole word.
        whole_word='prefix="${word%%=*}="' if shell == "zsh" else ":",
        commands=" ".join(COMMANDS),
        cases=cases,
        settings="\n".join(lines),
        programs=" ".join(["haepo", *(f"haepo-{command}" for command in COMMANDS)]),
    )
