"""What a sweep is asked for: Hydra's sweep language, and the one-line errors where it cannot be used."""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from haepo_jax.runner.commands import sweep as command_line
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.sweeps.plan import SweepPlan, read_sweep
from haepo_jax.runner.sweeps.space import Choice, Interval


def plan_of(*arguments: str) -> SweepPlan:
    return read_sweep(read_arguments(["env=CartPole-v1", *arguments]).overrides)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("algo.entropy_coef=choice(0,0.001,0.01)", Choice("algo.entropy_coef", (0.0, 0.001, 0.01))),
        ("algo.entropy_coef=0,0.1", Choice("algo.entropy_coef", (0.0, 0.1))),
        ("env_kwargs.size=null,0.01", Choice("env_kwargs.size", (None, 0.01))),
        ("algo.entropy_coef=0,0.0,1", Choice("algo.entropy_coef", (0.0, 1.0))),
        ("algo.max_grad_norm=range(1,3,0.5)", Choice("algo.max_grad_norm", (1.0, 1.5, 2.0, 2.5))),
        ("algo.entropy_coef=range(0.1,0.45,0.1)", Choice("algo.entropy_coef", (0.1, 0.2, 0.3, 0.4))),
        ("algo.learning_rate=interval(0.1,0.2)", Interval("algo.learning_rate", 0.1, 0.2)),
        ("algo.learning_rate=tag(log,interval(1e-4,1e-2))", Interval("algo.learning_rate", 1e-4, 1e-2, log=True)),
        ("algo.num_epochs=interval(2,4)", Interval("algo.num_epochs", 2, 4, integer=True)),
        ("algo.num_epochs=shuffle(2,4)", Choice("algo.num_epochs", (2, 4))),
        ("algo.hidden_sizes=[64,64],[32]", Choice("algo.hidden_sizes", ((64, 64), (32,)))),
        ("algo=haepo_episodic algo.temperature=auto,1", Choice("algo.temperature", ("auto", 1.0))),
        ("algo.learning_rate=[1e-3,0],1e-3", Choice("algo.learning_rate", ((1e-3, 0.0), 1e-3))),
        ("env_kwargs.gravity=interval(9,10)", Interval("env_kwargs.gravity", 9.0, 10.0)),
        ("env_kwargs.length=int(interval(5,9))", Interval("env_kwargs.length", 5, 9, integer=True)),
    ],
)
def test_a_key_and_its_values(argument: str, expected: Choice | Interval) -> None:
    assert plan_of(*argument.split()).dimensions == (expected,)


ERRORS = {
    "algo.learning_rate=interval(1e-2,1e-4)": "from its lower end to a higher one",
    "algo.learning_rate=interval(1,1)": "from its lower end to a higher one",
    "algo.learning_rate=interval(-1,1)": "algo.learning_rate=-1.0 is out of range [0, inf)",
    "algo.temperature=interval(0,1)": "algo.temperature=0.0 is out of range (0, inf)",
    "algo.kl_coef=interval(0,inf)": "must be finite",
    "algo.learning_rate=tag(log,interval(0,1))": "needs a lower end above 0",
    "algo.learning_rate=tag(log,choice(1,2))": "needs an interval",
    "algo.learning_rate=tag(normal,interval(1,2))": "unknown tag 'normal'",
    "algo.learning_rate=1e-3,fast": "algo.learning_rate='fast' must be a number",
    "algo.learning_rate=1e-3,-1": "algo.learning_rate=-1 is out of range",
    "algo.learning_rate=range(0,1,0)": "a range is of finite numbers, and its step is not 0",
    "algo.learning_rate=range(1,0)": "has no values",
    "algo.learning_rate=range(0,1,1e-9)": "more than 10,000 values",
    "algo.learning_rate=range(nan)": "a range is of finite numbers",
    "algo.learning_rate=range(" + "9" * 400 + ")": "a range is of finite numbers",
    "env_kwargs.gravity=choice(choice(1,2),3)": "a list of values holds no other list of values",
    "env_kwargs.gravity=interval(-1e300,1e300)": "gravity does not fit in 32 bits, got -1e+300",
    "algo.kl_coef=0,1 env_kwargs.gravty=1": "CartPole-v1 has no setting 'gravty'; did you mean 'gravity'?",
    "algo.learning_rate=glob(*)": "write choice(...), range(...) or interval(...)",
    "algo.activation=interval(0,1)": "algo.activation is not a number: list its values, as in algo.activation=a,b",
    "algo.hidden_sizes=interval(8,64)": "hidden_sizes is not a number",
    "algo=grpo algo.shared_start=interval(0,1)": "algo.shared_start is not a number",
    "algo.activation=tanh,relo": "did you mean 'relu'?",
    "algo.num_epochs=interval(1,2.5)": "must be integers",
    "algo.learning_rat=1,2": "unknown key 'algo.learning_rat'; did you mean 'algo.learning_rate'?",
    "learning_rate=1,2": "did you mean 'algo.learning_rate'?",
    "algo.clip_eps=1,2": "algo=haepo has no clip_eps",
    "algo=haepo,ppo": "algo cannot be swept, only algo.<key> and env_kwargs.<name>",
    "algo=pppo algo.learning_rate=1,2": "unknown algorithm 'pppo'; did you mean 'ppo'?",
    "num_seeds=1,2": "num_seeds cannot be swept",
    "seed=1,2": "seed cannot be swept",
    "search=grid,random": "search cannot be swept",
    "algo=grpo algo.num_minibatches=2 algo.num_envs=16,24": "is not a multiple of num_minibatches * group_size=16",
    "algo=grpo algo.num_envs=interval(32,64)": "is not a multiple of group_size=8",
    "tensorboard=true": "unknown key 'tensorboard'",
    "algo.kl_coef=0.5": "nothing is swept",
    "algo.learning_rate=choice(null,0.01)": "cannot read 'algo.learning_rate=choice(null,0.01)'",
    "algo.kl_coef=0,1 seed=2147483646 num_seeds=4": "goes past the largest seed",
    "algo.kl_coef=1,2 algo.kl_coef=1": "given twice",
    "algo.kl_coef=interval(0,1) search=grid": "search=grid cannot list the values of algo.kl_coef",
    "algo.kl_coef=interval(0,1) search=cmaes": "at least two keys with an interval",
    "env=CartPole-v1,Acrobot-v1": "env cannot be swept",
    "env=Acrobat-v1 algo.kl_coef=0,1": "did you mean 'Acrobot-v1'",
    "algo.kl_coef=interval(0,1) halving=1": "halving=1 is out of range",
    "algo.kl_coef=interval(0,1) final_eval_episodes=0": "final_eval_episodes=0 is out of range",
    "algo.kl_coef=interval(0,1) distributed=true": "unknown key 'distributed'",
    "algo.kl_coef=interval(0,1) pbt=true": "unknown key 'pbt'",
    "+algo.kl_coef=1,2": "cannot use",
}


@pytest.mark.parametrize("line", ERRORS)
def test_what_cannot_be_used_is_told_in_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = line.split() if line.startswith("env=") else ["env=CartPole-v1", *line.split()]
    assert command_line.main([*arguments, "dry_run=true"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert output.err.startswith("error: ") and ERRORS[line] in output.err


def test_neither_jax_nor_optuna_is_loaded_for_it() -> None:
    script = (
        "import sys; from haepo_jax.runner.commands.sweep import main;"
        "status = main(['env=CartPole-v1', 'algo.kl_coef=interval(2,1)']);"
        "assert status == 2 and not {'jax', 'optuna', 'matplotlib'} & sys.modules.keys()"
    )
    root = Path(command_line.__file__).parents[3]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root, capture_output=True, timeout=60)


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "new"
    assert command_line.main(["env=CartPole-v1", "algo.kl_coef=0,1,2", f"run_dir={directory}", "dry_run=true"]) == 0
    assert "3 configurations, grid search" in capsys.readouterr().out and not directory.exists()


def test_only_what_is_trained_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of these goes with the default of the other, num_minibatches=16 or score=log_ratio."""
    for line in ("algo.num_envs=12 algo.num_minibatches=6,12", "algo=haepo_episodic algo.credit=trajectory,prefix"):
        assert command_line.main(["env=CartPole-v1", *line.split(), "dry_run=true"]) == 0
    assert "2 configurations" in capsys.readouterr().out
    assert command_line.main(["env=CartPole-v1", "algo.num_envs=12", "algo.kl_coef=0,1", "dry_run=true"]) == 2
    assert "is not a multiple of num_minibatches" in capsys.readouterr().err


def test_a_sweep_that_is_refused_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    space = ["env=CartPole-v1", "algo.kl_coef=0,1"]
    for arguments, message in [
        ([*space, "env_kwargs.gravty=1", f"run_dir={tmp_path}/new"], "has no setting 'gravty'"),
        ([*space, f"run_dir={tmp_path}/file/below"], f"{str(tmp_path / 'file')!r} is not a directory"),
    ]:
        assert command_line.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--help", "algo=ppo"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("halving", "batch_size", "algo.clip_eps", "tag(log,interval(...))"))


def test_grid_has_every_combination() -> None:
    plan = plan_of("algo.learning_rate=1e-3,3e-3", "algo.num_epochs=2,4", "algo.kl_coef=0,1")
    assert plan.search == "grid" and plan.num_configs == 8
    grid = [plan.planned(index) for index in range(8)]
    assert [values["algo.num_epochs"] for values in grid] == [2] * 4 + [4] * 4, "what is compiled in comes first"
    assert len({tuple(values.items()) for values in grid}) == 8


def test_a_drawn_configuration_depends_on_its_index_alone() -> None:
    arguments = ("algo.learning_rate=tag(log,interval(1e-4,1e-2))", "algo.num_epochs=interval(1,3)", "algo.kl_coef=0,1")
    plan, longer = plan_of(*arguments, "num_configs=8"), plan_of(*arguments, "num_configs=4000", "num_seeds=3")
    assert [plan.planned(i) for i in (5, 2)] == [longer.planned(i) for i in (5, 2)]
    drawn = [longer.planned(index) for index in range(4000)]
    exponents = np.log10([values["algo.learning_rate"] for values in drawn])
    assert exponents.min() >= -4 and exponents.max() <= -2 and exponents.mean() == pytest.approx(-3, abs=0.05)
    for key, choices in (("algo.num_epochs", 3), ("algo.kl_coef", 2)):
        _, counts = np.unique([values[key] for values in drawn], return_counts=True)
        assert len(counts) == choices and np.all(np.abs(counts - 4000 / choices) < 5 * math.sqrt(4000 / choices))


def test_the_command_of_a_trial_makes_its_settings() -> None:
    from haepo_jax.runner.config import RunConfig
    from haepo_jax.runner.config.arguments import compose

    plan = plan_of(
        "algo=ppo", "algo.clip_eps=0.1", "algo.hidden_sizes=[8,8],[16]", "algo.learning_rate=interval(1e-4,1e-2)",
        "env_kwargs.gravity=interval(9,10)", "num_seeds=2", "num_configs=6", "batch_size=3",
    )  # fmt: skip
    for index in range(3):
        values = plan.planned(index)
        command = shlex.split(plan.command(values))
        assert command[:3] == ["python", "-m", "haepo_jax.train"]
        assert compose(read_arguments(command[3:]).overrides, RunConfig) == plan.run_config(values)


def test_identity_leaves_out_what_may_change_between_two_workers() -> None:
    base = plan_of("algo.kl_coef=interval(0,1)", "num_configs=8")
    other = plan_of("algo.kl_coef=interval(0,1)", "num_configs=9", "batch_size=2", "run_dir=x")
    assert base.identity() == other.identity()
    for setting in ("algo.num_epochs=2", "seed=1", "total_steps=10", "halving=3", "search=tpe"):
        assert base.identity() != plan_of("algo.kl_coef=interval(0,1)", setting).identity()
    with pytest.raises(ConfigError):
        plan_of("algo.kl_coef=interval(0,1)", "search=best")
