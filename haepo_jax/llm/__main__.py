"""Fine-tunes a language model: `python -m haepo_jax.llm model=FOLDER data=prompts.jsonl reward=module:function ...`."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from haepo_jax.llm import NEEDS_TUNIX, has_tunix
from haepo_jax.llm.settings import LLMConfig, load_rewards, read_data
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import compose, peek, read_arguments, shell_command
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.config.values import from_dict
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.resume import allowed, existing_run
from haepo_jax.runner.run_dir import RunDir, check_run_dir, config_text, create_run_dir

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

HELP = """\
Fine-tunes a language model with HAEPO, GRPO, GSPO or DPO, on the rewards that your functions give to completions or on
pairs of a chosen and a rejected completion.

usage: python -m haepo_jax.llm model=<folder> data=<file.jsonl> reward=<module:function> run_dir=<folder> [key=value]

  python -m haepo_jax.llm model=SmolLM2-135M data=sums.jsonl reward=rewards:correct run_dir=runs/sums
  python -m haepo_jax.llm run_dir=runs/sums resume=true steps=200
  python -m haepo_jax.llm model=SmolLM2-135M pairs=preferences.jsonl algo=dpo run_dir=runs/preferences

A reward function takes a list of prompts, a list of completions and, by name, columns of the data. It returns a number
for each completion:

  def correct(prompts, completions, answer):
      return [float(completion.strip() == right) for completion, right in zip(completions, answer)]

options:
  --help        show this text
  --cfg job     print the complete settings as YAML and exit

settings (key, default, meaning):
{settings}

A run writes to its directory: model/, the fine-tuned folder, in the format of the original; completions.jsonl, every
prompt and completion with its reward; eval.jsonl, the same for the held-out prompts; metrics.jsonl, a row per step;
TensorBoard events; config.yaml; summary.json; and checkpoints, from which resume=true resumes an interrupted run.
Invalid settings, and rewards that are not finite numbers, exit with a one-line error (status 2).
"""

FREE = {"run_dir", "resume", "reward", "checkpoint_steps", "keep_checkpoints", "tensorboard", "dry_run", "eval_steps"}
"""Settings that a resumed run may change; steps may grow, too."""


@entry_point(lambda argv: help_text(HELP, LLMConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0; 1 if the run fails; 2 for invalid settings or rewards; 128 + the
    number of the signal that stopped it."""
    arguments = read_arguments(argv, ("--cfg",))
    config, directory = _compose(arguments.overrides)
    if arguments.show_config:
        print(config_text(dataclasses.asdict(config)), end="")
        return 0
    if directory is None:
        check_run_dir(config.run_dir)
    data = read_data(config.pairs, "pairs") if config.pairs else read_data(config.data)
    eval_data = read_data(config.eval_data, "eval_data") if config.eval_data else []
    judged = (eval_data, [] if config.pairs else data) if config.reward else ()
    rewards = [load_rewards(config.reward, prompts) for prompts in judged if prompts]  # each has the columns it takes
    if not has_tunix():
        raise ConfigError(NEEDS_TUNIX)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or each import reports that there is no PyTorch

    from haepo_jax.llm.run import FineTuning

    fine_tuning = FineTuning(config, data, eval_data, rewards[-1] if rewards else [])
    if config.dry_run:
        print("the settings are usable; dry_run=true stops here")
    else:
        fine_tuning.train(directory or create_run_dir(config.run_dir), shell_command("haepo_jax.llm", argv))
    return 0


def _compose(overrides: Sequence[Override]) -> tuple[LLMConfig, RunDir | None]:
    """The settings, and the directory of the run to resume, if any; raises ConfigError."""
    resume, run_dir = (peek(overrides, LLMConfig, key) for key in ("resume", "run_dir"))
    directory = existing_run(resume, run_dir or None)
    if directory is None:
        return compose(overrides, LLMConfig), None
    values = directory.read_settings()
    if "model" not in values:
        raise ConfigError(f"{str(directory.config)!r} holds no settings of a run of haepo_jax.llm")
    saved, config = from_dict(values, LLMConfig), compose(overrides, LLMConfig, values)
    config = dataclasses.replace(config, group_size=saved.group_size) if config.pairs else config  # always 2
    allowed(dataclasses.asdict(saved), dataclasses.asdict(config), directory, FREE, "steps")
    return config, directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
