"""Settings: what is accepted, and one clear line for what is not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import haepo_jax
from haepo_jax.algorithms.declared import PRESETS
from haepo_jax.messages import short
from haepo_jax.runner.commands import plot, train
from haepo_jax.runner.config import ALGORITHM_NAMES, ConfigError, RunConfig, algorithm_class, hyperparameter_fields
from haepo_jax.runner.config.arguments import choices, compose, read_arguments, value_text
from haepo_jax.runner.config.values import from_dict
from haepo_jax.runner.run_dir import config_text


def composed(*arguments: str) -> RunConfig:
    return compose(read_arguments(arguments).overrides, RunConfig)


REFUSED = {
    # what is wrong: (arguments, what the message must say)
    "no environment": ([], "env= is missing"),
    "empty environment": (["env="], "env= is missing"),
    "the directory of a run": (["env=", "run_dir=a"], "; to resume the run in 'a', add resume=true"),
    "null environment": (["env=null"], "env=None must be a string"),
    "unknown environment": (["env=CartPol-v1"], "unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
    "number for environment": (["env=5"], "unknown environment '5'"),
    "list for environment": (["env=[a]"], "env=['a'] must be a string"),
    "unknown algorithm": (["algo=hapo"], "unknown algorithm 'hapo'; did you mean 'haepo'?"),
    "algorithm in capitals": (["algo=PPO"], "unknown algorithm 'PPO'; did you mean 'ppo'?"),
    "empty algorithm": (["algo="], "unknown algorithm ''; there are: haepo, "),
    "null algorithm": (["algo=null"], "unknown algorithm None"),
    "mapping for algorithm": (["algo={learning_rate:1}"], "unknown algorithm {'learning_rate': 1}"),
    "list of algorithms": (["algo=[haepo,ppo]"], "unknown algorithm ['haepo', 'ppo']; there are: "),
    "misspelt hyperparameter": (["algo.learning_rat=1"], "'algo.learning_rat'; did you mean 'algo.learning_rate'?"),
    "misspelt key": (["num_seed=2"], "unknown key 'num_seed'; did you mean 'num_seeds'?"),
    "hyperparameter without its prefix": (["learning_rate=1"], "did you mean 'algo.learning_rate'?"),
    "key with a prefix too many": (["algo.seed=1"], "did you mean 'seed'?"),
    "another algorithm's hyperparameter": (
        ["algo.credit=prefix"],
        "algo=haepo has no credit (algo=haepo_episodic has it)",
    ),
    "another library's name": (["algo.lr=1"], "unknown key 'algo.lr'; did you mean 'algo.learning_rate'?"),
    "another library's name without a prefix": (["gamma=1"], "unknown key 'gamma'; did you mean 'algo.discount'?"),
    "another library's name of a setting of the run": (["total_timesteps=1"], "did you mean 'total_steps'?"),
    "another library's name in the wrong place": (["algo.num_updates=1"], "did you mean 'total_steps'?"),
    "another library's name for what this algorithm lacks": (
        ["algo.clip_range=0.2"],
        "unknown key 'algo.clip_range': algo=haepo has no clip_eps (algo=ppo, algo=grpo have it)",
    ),
    "infinity for a directory": (
        ["run_dir=inf"],
        """run_dir=inf must be a string; for the word, quote it: 'run_dir="inf"'""",
    ),
    "boolean for one of several words": (
        ["algo=ppo", "algo.network=true"],
        "algo.network=True must be one of mlp, gru",
    ),
    "key like nothing": (["zzzzzz=1"], "unknown key 'zzzzzz' (see --help)"),
    "endless key": (["x" * 10_000 + "=1"], "unknown key"),
    "part of a value": (["algo.hidden_sizes.0=1"], "unknown key"),
    "steps in the wrong place": (["algo.total_steps=5"], "write total_steps="),
    "word for an integer": (["seed=abc"], "seed='abc' must be an integer"),
    "fraction for an integer": (["seed=1.5"], "seed=1.5 must be an integer"),
    "boolean for an integer": (["num_seeds=true"], "num_seeds=True must be an integer"),
    "null for an integer": (["seed=null"], "seed=None must be an integer"),
    "empty integer": (["seed="], "seed= is empty"),
    "nan for an integer": (["total_steps=nan"], "total_steps=nan must be an integer"),
    "inf for an integer": (["total_steps=inf"], "total_steps=inf must be an integer"),
    "word for a number": (["algo.learning_rate=fast"], "algo.learning_rate='fast' must be a number"),
    "wrong word for a temperature": (
        ["algo=haepo_episodic", "algo.temperature=warm"],
        "must be a number or a pair [start, end] or 'auto'",
    ),
    "nan for a number": (["algo.learning_rate=nan"], "algo.learning_rate=nan is out of range"),
    "inf for a number": (["algo.learning_rate=inf"], "out of range"),
    "overflowing number": (["algo.learning_rate=1e999"], "out of range"),
    "number beyond floating point": (["algo.learning_rate=" + "9" * 400], "out of range"),
    "number of 5000 digits": (["seed=" + "9" * 5000], "cannot read"),
    "word for a switch": (["tensorboard=maybe"], "tensorboard='maybe' must be true or false"),
    "negative learning rate": (["algo.learning_rate=-1"], "algo.learning_rate=-1 is out of range [0, inf)"),
    "no environments": (["algo.num_envs=0"], "algo.num_envs=0 is out of range"),
    "no seeds": (["num_seeds=0"], "num_seeds=0 is out of range"),
    "no steps": (["total_steps=0"], "total_steps=0 is out of range"),
    "negative seed": (["seed=-1"], "seed=-1 is out of range"),
    "seeds past the last": (["seed=2147483647", "num_seeds=2"], "past the largest seed"),
    "sizes that do not divide": (
        ["algo=haepo_episodic", "algo.num_envs=30"],
        "algo.num_envs=30 is not a multiple of group_size=8; the nearest",
    ),
    "minibatches that do not divide": (
        ["algo=haepo_episodic", "algo.num_minibatches=3"],
        "is not a multiple of num_minibatches * group_size=",
    ),
    "sizes of a history that do not divide": (
        ["algo.num_minibatches=3"],
        "num_envs * replay_batches=64 is not a multiple of num_minibatches * group_size=12; the nearest that are: 60 or 72",
    ),
    "options that do not fit": (["algo=haepo_episodic", "algo.score=likelihood"], "requires credit=trajectory"),
    "null for a choice": (
        ["algo=haepo_episodic", "algo.normalize=null"],
        "algo.normalize=None must be one of standardize, center, rank, none",
    ),
    "unknown choice": (
        ["algo=haepo_episodic", "algo.credit=prefx"],
        "must be one of prefix, trajectory; did you mean 'prefix'?",
    ),
    "three ends of a schedule": (["algo.learning_rate=[1,2,3]"], "must be a number or a pair [start, end]"),
    "schedule of words": (["algo.learning_rate=[a,b]"], "must be a pair [start, end] of numbers"),
    "schedule where there is none": (["algo.max_grad_norm=[1,2]"], "must be a number"),
    "negative end of a schedule": (["algo.learning_rate=[1,-2]"], "out of range"),
    "layer without a unit": (["algo.hidden_sizes=[0]"], "must be a list of positive integers"),
    "number for layers": (["algo.hidden_sizes=64"], "must be a list of positive integers"),
    "several environments": (["env=a,b"], "several values belong to"),
    "several algorithms": (["algo=haepo,ppo"], "several values belong to"),
    "no seed in a list": (["seeds=[]"], "seeds=[] must list at least one seed"),
    "seeds and another number of them": (
        ["seeds=[3,5]", "num_seeds=3"],
        "seeds=[3, 5] does not go with seed=0 and num_seeds=3",
    ),
    "seeds and another first one": (["seeds=[3,5]", "seed=2"], "seeds=[3, 5] does not go with seed=2"),
    "several seeds": (["seed=range(3)"], "several values belong to"),
    "a distribution": (["algo.learning_rate=tag(log,interval(1e-4,1e-2))"], "several values belong to"),
    "added key": (["+env=CartPole-v1"], "write key=value, without '+'"),
    "forced key": (["++env=CartPole-v1"], "write key=value, without '+'"),
    "deleted key": (["~env=CartPole-v1"], "write key=value, without '+', '~'"),
    "package": (["algo@other=ppo"], "write key=value, without"),
    "config path": (["algo/other=ppo"], "unknown key 'algo/other'"),
    "Hydra's own key": (["hydra.run.dir=x"], "unknown key 'hydra.run.dir'"),
    "no value": (["env"], "cannot read 'env': settings are written key=value"),
    "empty argument": ([""], "cannot read ''"),
    "no key": (["=5"], "unknown key ''"),
    "open bracket": (["algo.hidden_sizes=[64"], "cannot read 'algo.hidden_sizes=[64'"),
    "open quote": (["env='x"], "cannot read"),
    "two equal signs": (["run_dir=a=b"], "must be quoted"),
    "line break": (["env=a\nb"], "cannot read"),
    "quoted line break": (["env='a\nb'"], "unknown environment"),
    "deep nesting": (["env=" + "[" * 2000], "cannot read"),
    "deep nesting that closes": (["env=" + "[" * 300 + "]" * 300], ""),
    "unquoted unicode": (["env=환경"], "must be quoted"),
    "unicode key": (["größe=1"], "cannot read"),
    "unicode value": (["env='환경'"], "unknown environment '환경'"),
    "not UTF-8": (["env=\udcff"], "cannot read"),
    "endless run directory": (["run_dir=" + "x" * 5000], "File name too long"),
    "null byte": (["run_dir='a\0b'"], "cannot"),
    "escape sequence": (["env='\x1b[31mred'"], "unknown environment"),
    "reference to another setting": (["run_dir=out/${env}"], "write key=value, without"),
    "reference for a number": (["seed=${seed}"], "write key=value, without"),
    "broken reference": (["seed=${seed"], "cannot read"),
    "list for settings of the environment": (["env_kwargs=[1]"], "env_kwargs=[1] must be names and values"),
    "number for settings of the environment": (["env_kwargs=1"], "must be names and values"),
    "numbered settings of the environment": (["env_kwargs={1:2}"], "must be names and values"),
    "unknown option": (["--foo"], "unknown option '--foo'"),
    "several runs, as Hydra has them": (["--multirun", "seed=0,1"], "python -m haepo_jax.sweep tries several values"),
    "option for a setting": (["--seed=3"], "settings are written seed=value"),
    "half an option": (["--cfg"], "--cfg takes the word job"),
    "unknown kind of config": (["--cfg", "hydra"], "--cfg takes the word job, not 'hydra'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = REFUSED[case]
    if not any(a.startswith(("env=", "+", "~")) for a in arguments) and case != "no environment":
        arguments = ["env=CartPole-v1", *arguments]
    # Whatever gets past the check must still not train.
    status = train.main([*arguments, "dry_run=true"] if "--cfg" not in arguments else arguments)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.endswith("\n") and captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()
    assert expected in captured.err
    assert len(captured.err) < 600


def test_defaults_come_from_the_hyperparameters() -> None:
    for name in ALGORITHM_NAMES:
        config = composed("env=CartPole-v1", f"algo={name}")
        declared = algorithm_class(name)()
        changes = PRESETS.get(name, ("", {}))[1]
        for key, value in config.algo.hyperparameters.items():
            assert value == changes.get(key, getattr(declared, key)), (name, key)
        assert "total_steps" not in config.algo.hyperparameters
        assert config.total_steps == declared.total_steps


def test_values_are_read_as_their_type() -> None:
    config = composed(
        "env=gymnax/CartPole-v1", "seed=3", "total_steps=1e6", "num_seeds=1_0", "run_dir=2024", "wandb=true",
        "algo=haepo_episodic", "algo.learning_rate=1", "algo.entropy_coef=[1,0]", "algo.temperature=auto", "algo.hidden_sizes=[32,16]",
        "algo.normalize_observations=null", "env_kwargs.backend=spring", "env_kwargs.nested.sizes=[1,2.5,x]",
    )  # fmt: skip
    assert (config.env, config.seed, config.total_steps, config.num_seeds, config.run_dir) == (
        "CartPole-v1",
        3,
        10**6,
        10,
        "2024",
    )
    assert type(config.total_steps) is int and config.wandb is True
    values = config.algo.hyperparameters
    assert values["learning_rate"] == 1.0 and type(values["learning_rate"]) is float
    assert (
        values["entropy_coef"] == (1.0, 0.0) and values["temperature"] == "auto" and values["hidden_sizes"] == (32, 16)
    )
    assert config.env_kwargs == {"backend": "spring", "nested": {"sizes": [1, 2.5, "x"]}}


def test_the_last_of_equal_keys_wins() -> None:
    config = composed(
        "env=Pendulum-v1", "algo.learning_rate=1", "algo=ppo", "env=CartPole-v1", "algo=haepo", "algo.learning_rate=2"
    )
    assert (config.env, config.algo.name, config.algo.hyperparameters["learning_rate"]) == ("CartPole-v1", "haepo", 2.0)


def test_listed_seeds_stand_in_the_place_of_counted_ones() -> None:
    def seeds(*arguments: str, settings: dict[str, Any]) -> list[int]:
        return [*compose(read_arguments(["env=CartPole-v1", *arguments]).overrides, RunConfig, settings).seed_numbers]

    assert seeds("seeds=[3,5,8]", settings={"num_seeds": 10, "seed": 7}) == [3, 5, 8]
    assert seeds("seeds=[3,5,8]", "num_seeds=3", "seed=3", settings={}) == [3, 5, 8]


def test_mapping_for_the_environment() -> None:
    assert composed("env=CartPole-v1", "env_kwargs={gravity: 9.5}").env_kwargs == {"gravity": 9.5}


@pytest.mark.parametrize("name", ALGORITHM_NAMES)
def test_config_survives_yaml(name: str) -> None:
    config = composed("env=CartPole-v1", f"algo={name}", "algo.entropy_coef=[0.01,0]", "env_kwargs.gravity=3")
    assert from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict())), RunConfig) == config


def test_config_files_are_checked_too() -> None:
    values = composed("env=CartPole-v1").to_dict()
    for change, message in [
        ({"sed": 1}, "unknown key 'sed'; did you mean 'seed'?"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"algo": {"name": "haepo", "colour": 1}}, "unknown key 'algo.colour'"),
        ({"algo": "haepo"}, "algo must have a name"),
        ({"run_dir": 1 << 100_000}, "run_dir=0x1000"),
    ]:
        with pytest.raises(ConfigError, match="^" + message.replace("?", r"\?")):
            from_dict(values | change, RunConfig)


def test_other_commands_share_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["a", "b/c", "out=x.png"], ["out=x.png", "a", "b/c"]):
        given = read_arguments(arguments, positional="run_dir").overrides
        assert compose(given, plot.PlotConfig) == plot.PlotConfig(run_dir=("a", "b/c"), out="x.png")
    overrides = read_arguments(["run_dir=a,b/c", "out=x.png"]).overrides
    assert compose(overrides, plot.PlotConfig) == plot.PlotConfig(run_dir=("a", "b/c"), out="x.png")
    assert compose(read_arguments(["run_dir=a"]).overrides, plot.PlotConfig).run_dir == ("a",)
    assert choices(overrides[0]) == ["a", "b/c"]
    assert plot.main(["run_dirs=a"]) == 2
    assert "unknown key 'run_dirs'; did you mean 'run_dir'?" in capsys.readouterr().err
    assert plot.main(["algo=haepo"]) == 2


@pytest.mark.parametrize(
    "value",
    [
        None, True, 3, 0.1, 1e-5, "word", "runs/a-b.c", "", "null", "True", "1e3", "a b", "a,b", "it's", 'say "no"', "a\\",
        'a\\"b', "[x]", "k=v", "ü", [1, "x y", None], [[8, 4], []], {"a": [1, "x"], "b": {"c": None}},
        np.float32(0.5), [[np.int64(3), 0.0], np.bool_(True)],
    ],
)  # fmt: skip
def test_a_value_is_written_as_it_is_read(value: object) -> None:
    assert read_arguments([f"key={value_text(value)}"]).overrides[0].value() == value


def test_help_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ALGORITHM_NAMES:
        assert train.main(["--help", f"algo={name}"]) == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(RunConfig):
            assert f"  {field.name} " in text
        for key, field in hyperparameter_fields(name).items():
            assert f"  algo.{key} " in text and field.metadata["doc"] in text
    assert train.main(["--help", "algo=hapo"]) == 2
    assert "did you mean 'haepo'?" in capsys.readouterr().err


def test_cfg_job_prints_settings_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["env=CartPole-v1", "algo=haepo_paper", "algo.temperature=auto"]
    assert train.main([*arguments, "--cfg", "job"]) == 0
    assert from_dict(yaml.safe_load(capsys.readouterr().out), RunConfig) == composed(*arguments)


def test_a_run_is_made_again_from_the_config_it_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    arguments = ["env=CartPole-v1", "algo=haepo_paper", "algo.hidden_sizes=[8,4]", "env_kwargs.gravity=9.0"]
    file.write_text(config_text(composed(*arguments, "run_dir=there", "resume=auto", "shard=environments").to_dict()))
    assert train.main(["--config", str(file), "--cfg", "job"]) == 0
    made = from_dict(yaml.safe_load(capsys.readouterr().out), RunConfig)
    assert made == composed(*arguments, "shard=environments"), "run_dir and resume are those of the new run"


@pytest.mark.parametrize(
    ("text", "arguments", "same_as"),
    [
        ("env: CartPole-v1", [], ["env=CartPole-v1"]),
        ("total_steps: 1e4", ["env=CartPole-v1"], ["env=CartPole-v1", "total_steps=1e4"]),
        ("env: CartPole-v1\nalgo: ppo", [], ["env=CartPole-v1", "algo=ppo"]),
        (
            "env: CartPole-v1\nalgo: {learning_rate: 1e-3, hidden_sizes: [8]}",
            ["env=Acrobot-v1", "algo.learning_rate=[1e-3,0]"],
            ["env=Acrobot-v1", "algo.learning_rate=[1e-3,0]", "algo.hidden_sizes=[8]"],
        ),
        # Another algorithm's hyperparameters would mean nothing to it.
        (
            "env: CartPole-v1\nalgo: {name: haepo, group_size: 2}\nseed: 3",
            ["algo=ppo", "algo.num_envs=4"],
            ["env=CartPole-v1", "algo=ppo", "algo.num_envs=4", "seed=3"],
        ),
        (
            "env: CartPole-v1\nenv_kwargs: {gravity: 9, length: 2.0}",
            ["env_kwargs.gravity=8"],
            ["env=CartPole-v1", "env_kwargs.gravity=8", "env_kwargs.length=2.0"],
        ),
    ],
)
def test_a_file_of_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, arguments: list[str], same_as: list[str]
) -> None:
    (tmp_path / "my.yaml").write_text(text)
    assert train.main([f"--config={tmp_path}/my.yaml", *arguments, "--cfg", "job"]) == 0
    assert from_dict(yaml.safe_load(capsys.readouterr().out), RunConfig) == composed(*same_as)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, [], "--config 'my.yaml' cannot be read: No such file or directory"),
        ("", [], "--config 'my.yaml' holds no settings"),
        ("- env", [], "--config 'my.yaml' holds no settings"),
        ("env: [", [], "--config 'my.yaml' is not YAML: "),
        ("algo: ppo", [], "--config 'my.yaml': env= is missing"),
        ("num_sedes: 3", ["env=CartPole-v1"], "--config 'my.yaml': unknown key 'num_sedes'; did you mean 'num_seeds'?"),
        ("env: CartPol-v1", [], "--config 'my.yaml': unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        ("env: CartPole-v1\nalgo: {lerning_rate: 1}", [], "did you mean 'algo.learning_rate'?"),
        (
            "env: CartPole-v1\nalgo: {name: [1]}",
            [],
            "--config 'my.yaml': algo={'name': [1]} must be an algorithm's name",
        ),
        ("env: CartPole-v1\nalgo: 3", [], "--config 'my.yaml': algo=3 must be an algorithm's name, or its name and"),
        ("env: CartPole-v1\nnum_seeds: two", [], "--config 'my.yaml': num_seeds='two' must be an integer"),
        ("env: CartPole-v1", ["num_seeds=two"], "error: num_seeds='two' must be an integer"),
        ("env: CartPole-v1", ["num_seeds=1,2"], "several values belong to haepo_jax.compare or haepo_jax.sweep"),
        ("objects: {env: mine.Env}", [], "--config 'my.yaml' belongs to a run of custom objects"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("my.yaml").write_text(text)
    assert train.main(["--config", "my.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_and_nothing_are_no_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in ((["--config", str(tmp_path)], "Is a directory"), (["--config"], "needs the name")):
        assert train.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_list_envs(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--list-envs"]) == 0
    assert "CartPole-v1" in capsys.readouterr().out.splitlines()


def test_input_is_judged_without_jax(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    commands = [
        ["--help"],
        ["--list-envs"],
        ["env=CartPole-v1", "--cfg", "job"],
        ["env=CartPol-v1"],
        ["env=CartPole-v1", "algo=hapo"],
        ["env=CartPole-v1", "algo.learning_rate=-1"],
        ["env=CartPole-v1", "algo=grpo", "algo.num_envs=30"],
        ["env=CartPole-v1", "run_dir=file"],
        ["env=CartPole-v1", "run_dir=file/below"],
    ]
    script = (
        "import sys\nfrom haepo_jax.runner.commands import compare, evaluate\n"
        "from haepo_jax.runner.commands.train import main\n"
        "assert [command.main(['--help']) for command in (compare, evaluate)] == [0, 0]\n"
        "assert compare.main(['env=CartPole-v1', 'algo=haepo,hapo']) == evaluate.main(['nowhere']) == 2\n"
        f"statuses = [main(command) for command in {commands!r}]\n"
        "heavy = {'jax', 'matplotlib', 'scipy', 'gymnax', 'rich', 'tensorboardX'} & set(sys.modules)\n"
        "assert statuses == [0, 0, 0, 2, 2, 2, 2, 2, 2], statuses\nassert not heavy, heavy\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(haepo_jax.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_values_are_shown_by_their_beginning() -> None:
    """Without looking at more than is shown: a value may be nested a thousandfold, or be one list in itself."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    wide: list[object] = [1]
    for _ in range(60):
        wide = [wide] * 50
    endless: list[object] = []
    endless.append(endless)
    for value in (deep, wide, endless, "x" * 10**6, 1 << 100_000, [2] * 10**6, {"a": deep}):
        text = short(value)
        assert len(text) == 83 and text.endswith("...")
    for value in ([1, "a", {"b": (1,), 2: None}], {}, [], (), (1, 2), "a'b", b"x", 1.5, True, None, 10**30):
        assert short(value) == repr(value)
