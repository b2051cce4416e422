"""`haepo_jax.train` from Python: the same run as the command line's, for anybody's algorithm."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import haepo_jax as hx
from haepo_jax.runner.checkpoints import CheckpointError
from haepo_jax.runner.commands import evaluate, train
from haepo_jax.runner.config import ConfigError, CustomConfig, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.describe import describe
from haepo_jax.runner.observers import Observer, Row
from haepo_jax.runner.run_dir import RunDir
from tests.runner.counting_algorithm import Counting
from tests.runner.surviving import compile_once, rows
from tests.toy_envs import Drift

SMALL: dict[str, Any] = {
    "num_envs": 4,
    "num_steps": 8,
    "num_minibatches": 2,
    "num_epochs": 1,
    "hidden_sizes": (8,),
    "log_points": 4,
    "eval_episodes": 2,
    "total_steps": 256,
}


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An algorithm that compiles in milliseconds is taken for one."""
    for module in ("scripting", "loading"):
        monkeypatch.setattr(f"haepo_jax.runner.{module}.Algorithm", Counting)
    monkeypatch.setattr("haepo_jax.runner.loop.SLICE_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the run."""
    monkeypatch.setattr("haepo_jax.runner.loggers.write_curve", lambda directory, summary: None)


def same(one: Any, other: Any) -> bool:
    def data(x: jax.Array) -> Any:
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.all(jax.tree.map(lambda x, y: (np.asarray(data(x)) == np.asarray(data(y))).all(), one, other))


@pytest.mark.usefixtures("counting")
def test_the_result_is_arrays(capsys: pytest.CaptureFixture[str]) -> None:
    result = hx.train(Counting(total_steps=202), seeds=range(3, 5))
    assert result.seeds == [3, 4] == result.summary["seeds"]
    # Points 41, 81, 122, 162, 202; updates of 13 and 14 steps.
    assert result.metrics["env_steps"].tolist() == [[52, 91, 130, 169, 208], [42, 84, 126, 168, 210]]
    assert result.metrics["loss"].tolist() == [[4, 7, 10, 13, 16], [3, 6, 9, 12, 15]]
    assert result.metrics["update"].dtype == result.metrics["env_steps"].dtype == np.int64
    assert result.state.update.tolist() == [16, 15]
    out = capsys.readouterr().out
    assert out.startswith("training Counting on ") and "2 seeds" in out and "results in" not in out


@pytest.mark.usefixtures("counting")
def test_one_seed_is_an_axis_too(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    result = hx.train(
        Counting(total_steps=20), progress=False, callbacks=[lambda row, state: seen.append(state.update.shape)]
    )
    assert result.state.update.shape == (1,) == result.state.key.shape and set(seen) == {(1,)}
    assert np.isnan(result.metrics["episode_return"][0, 0]) and result.metrics["episode_return"][0, 1] == 1
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("counting")
def test_a_callback_ends_a_run_in_good_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[Any] = []

    def enough(row: Row, state: Any) -> Any:
        kept.append(state)
        return np.bool_(row.mean("eval_return") > 100)

    run = tmp_path / "run"
    result = hx.train(Counting(total_steps=202), seeds=2, run_dir=run, callbacks=[enough])
    assert result.metrics["env_steps"].tolist() == [[50, 90, 130], [44, 88, 132]]
    saved = RunDir(run).read_summary()
    assert saved.pop("command")
    assert result.summary["ended_early"] and result.summary == saved
    assert "a callback ended the run at 131 of 202 steps" in capsys.readouterr().out
    assert [state.env_steps.to_int().tolist() for state in kept] == [[50, 44], [90, 88], [130, 132]]

    # It has ended: the same call gives the same, from the files.
    again = hx.train(Counting(total_steps=202), seeds=2, run_dir=run, callbacks=[enough], resume=True)
    assert len(kept) == 3 and same(again.state, result.state)
    err = capsys.readouterr().err
    assert "has ended early, by a callback, at 131 steps" in err and "its result is returned" in err
    assert all(np.array_equal(again.metrics[name], result.metrics[name], equal_nan=True) for name in result.metrics)
    # So does one that was killed between its last checkpoint and its summary.
    (run / "summary.json").unlink()
    killed = hx.train(Counting(total_steps=202), seeds=2, run_dir=run, callbacks=[enough], resume=True)
    assert len(kept) == 3 and same(killed.state, result.state) and killed.summary["ended_early"]
    # More steps take it further.
    longer = hx.train(Counting(total_steps=300), seeds=2, run_dir=run, resume=True)
    assert longer.state.env_steps.to_int().tolist() == [300, 308] and not longer.summary["ended_early"]
    assert longer.metrics["env_steps"][:, :3].tolist() == result.metrics["env_steps"].tolist()


@pytest.mark.usefixtures("counting")
def test_a_callback_that_means_something_else() -> None:
    for answer in (1, math.nan, "yes"):
        with pytest.raises(TypeError, match="a callback returns True to end the run, or False or None, not"):
            hx.train(Counting(total_steps=50), callbacks=[lambda row, state, answer=answer: answer])
    with pytest.raises(KeyError, match="there is no metric 'eval_retrun'; did you mean 'eval_return'"):
        hx.train(Counting(total_steps=50), callbacks=[lambda row, state: row.mean("eval_retrun") > 1])
    ended = hx.train(Counting(total_steps=202), callbacks=[lambda row, state: jnp.bool_(True)])
    assert ended.summary["ended_early"]


@pytest.mark.usefixtures("counting")
def test_seeds_by_number(tmp_path: Path) -> None:
    listed = hx.train(Counting(total_steps=50), seeds=[3, 5, 8], run_dir=tmp_path / "run")
    assert listed.seeds == listed.summary["seeds"] == [3, 5, 8]
    for index, seed in enumerate(listed.seeds):
        alone = hx.train(Counting(total_steps=50), seeds=[seed], progress=False)
        assert alone.metrics["env_steps"][0].max() == listed.metrics["env_steps"][index].max()
    assert hx.train(Counting(total_steps=50), seeds=np.int64(2), progress=False).seeds == [0, 1]  # type: ignore[arg-type]
    config = RunDir(tmp_path / "run").read_config(custom=True)
    assert (config.seed, config.num_seeds, config.seed_numbers) == (3, 3, [3, 5, 8])
    again = hx.train(Counting(total_steps=50), seeds=[3, 5, 8], run_dir=tmp_path / "run", resume=True)
    assert same(again.state, listed.state)
    with pytest.raises(ConfigError, match="seeds="):
        hx.train(Counting(total_steps=50), seeds=[3, 5, 9], run_dir=tmp_path / "run", resume=True)


@pytest.mark.usefixtures("counting")
def test_a_resumed_run_is_the_same_one_at_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    class Wandb:
        summary: dict[str, Any] = {}

        def init(self, **keywords: Any) -> Any:
            begun.append(keywords)
            return self

        def log(self, *_: Any, **__: Any) -> None: ...

        def finish(self) -> None: ...

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: find("json" if name == "wandb" else name, *rest)
    )
    monkeypatch.setitem(sys.modules, "wandb", Wandb())  # type: ignore[arg-type]
    for total in (50, 100):
        hx.train(Counting(total_steps=total), run_dir=tmp_path / "run", resume="auto", wandb=True, progress=False)
    hx.train(Counting(total_steps=50), run_dir=tmp_path / "other", wandb=True, progress=False)
    ids = [keywords["id"] for keywords in begun]
    assert ids[0] == ids[1] != ids[2] and {keywords["resume"] for keywords in begun} == {"allow"}


@pytest.mark.usefixtures("counting")
def test_the_last_row_is_no_early_end() -> None:
    assert not hx.train(Counting(total_steps=10), callbacks=[lambda row, state: True]).summary["ended_early"]


@pytest.mark.usefixtures("counting")
def test_ctrl_c_ends_after_a_checkpoint_and_resume_continues(tmp_path: Path) -> None:
    def interrupt(row: Row, state: Any) -> None:
        if row.index == 1:
            signal.raise_signal(signal.SIGINT)

    algo = Counting(total_steps=202)
    whole = hx.train(algo, seeds=2, run_dir=tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted at \d+ steps; to resume: the same call with run_dir="):
        hx.train(algo, seeds=2, run_dir=tmp_path / "broken", callbacks=[interrupt])
    assert signal.getsignal(signal.SIGINT) is before
    ended = hx.train(algo, seeds=2, run_dir=tmp_path / "broken", resume=True)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole") and same(ended.state, whole.state)
    for name in {*whole.metrics} - {"wall_seconds"}:
        assert np.array_equal(whole.metrics[name], ended.metrics[name], equal_nan=True), name


@pytest.mark.usefixtures("counting")
def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    class Impatient(Observer):
        def on_row(self, row: Row, state: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        hx.train(Counting(total_steps=20), run_dir=tmp_path / "run", callbacks=[Impatient()])


@pytest.mark.usefixtures("counting")
def test_without_a_display_a_warning_says_that_a_run_diverged() -> None:
    with pytest.warns(
        UserWarning, match="seed 0 diverged: not finite in update 4: the loss, the gradients; it stayed as"
    ):
        hx.train(Counting(total_steps=100, sick=(0,)), progress=False)


@pytest.mark.usefixtures("counting")
def test_the_table_has_a_row_for_each_seed_and_row(monkeypatch: pytest.MonkeyPatch) -> None:
    result = hx.train(Counting(total_steps=50), seeds=2, progress=False)

    class Pandas:
        DataFrame = dict

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert repr(result).startswith("TrainResult(Counting on ") and len(repr(result)) < 120
    table: Any = result.to_pandas()
    assert table["seed"].tolist() == [0] * 5 + [1] * 5 and table["row"].tolist() == [*range(5)] * 2
    assert table["env_steps"].tolist() == result.metrics["env_steps"].ravel().tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds=0 must be how many, or different numbers"),
        ({"seeds": [1, 3, 1]}, r"seeds=\[1, 3, 1\] must be how many, or different numbers"),
        ({"seeds": "12"}, "seeds='12' must be how many"),
        ({"seeds": [1, 2**33]}, r"seeds=\[1, 8589934592\] must be a list of integers \[0, 2.14748e\+09\]"),
        ({"seeds": [0.5, 1.7]}, r"seeds=\[0.5, 1.7\] must be how many"),
        ({"seeds": True}, "seeds=True must be how many"),
        ({"seeds": range(-1, 2)}, "must be how many"),
        ({"seeds": "four"}, "seeds='four' must be how many"),
        ({"seeds": [2**31 - 1, 2**31]}, "must be a list of integers"),
        ({"resume": True}, "resume=True needs run_dir="),
        ({"wandb": True}, "wandb=True needs run_dir="),
        ({"checkpoint_minutes": 1.0}, "checkpoint_minutes=1.0 needs run_dir="),
        ({"resume": "yes"}, "resume='yes' must be one of false, true, auto"),
        ({"callbacks": [3]}, "callbacks: 3 is neither a function"),
        ({"callbacks": print}, r"callbacks=<built-in function print> must be a list, such as \[callback\]"),
        ({"final_eval_episode": 3}, "train has no setting 'final_eval_episode'; did you mean 'final_eval_episodes'"),
        ({"num_seeds": 3}, "train has no setting 'num_seeds'; did you mean 'seeds'"),
        ({"keep_checkpoints": 0}, r"keep_checkpoints=0 is out of range"),
        ({"algo": "ppo"}, r"train takes an algorithm, such as hx.HAEPO\('CartPole-v1'\), not 'ppo'"),
    ],
)
def test_what_cannot_be_used_is_one_line(counting: None, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        hx.train(**({"algo": Counting(total_steps=10)} | change))
    assert "\n" not in str(refusal.value)


def test_a_resumed_run_keeps_its_schedule(tmp_path: Path) -> None:
    """As far as the schedule's name tells."""
    small: dict[str, Any] = {"total_steps": 64, "eval_episodes": 0, "hidden_sizes": (4,), "num_epochs": 1}
    cosine, exponential = optax.cosine_decay_schedule(1e-3, 1), optax.exponential_decay(1e-3, 1, 0.1)
    hx.train(hx.PPO("CartPole-v1", learning_rate=cosine, **small), run_dir=tmp_path / "run", progress=False)
    with pytest.raises(
        ConfigError, match="objects.learning_rate=.*schedule.exponential.*, but the run in .*schedule.cosine"
    ):
        changed = hx.PPO("CartPole-v1", learning_rate=exponential, **small)
        hx.train(changed, run_dir=tmp_path / "run", resume=True, progress=False)


def test_a_resumed_run_keeps_its_environment(tmp_path: Path) -> None:
    tiny: dict[str, Any] = {"eval_episodes": 0, "hidden_sizes": (4,), "num_epochs": 1, "log_points": 1}

    def made(env: Any, steps: int) -> hx.PPO:
        return hx.PPO(env, total_steps=steps, **tiny)

    strong, weak = (hx.make_env("CartPole-v1", force_mag=force) for force in (20.0, 5.0))
    for name, env, other, message in (
        ("named", strong, weak, "env_kwargs.force_mag=5.0, but the run in .* has env_kwargs.force_mag=20.0"),
        ("own", Drift(horizon=5), Drift(horizon=5, broken="reset"), "objects.env=.*Drift .*, but the run in"),
    ):
        hx.train(made(env, 256), run_dir=tmp_path / name, progress=False, final_eval_episodes=0)
        with pytest.raises(ConfigError, match=message):
            hx.train(made(other, 512), run_dir=tmp_path / name, resume=True, progress=False)
    resumed = hx.train(made(Drift(horizon=5), 512), run_dir=tmp_path / "own", resume=True, progress=False)
    assert resumed.summary["updates"] == 2
    # With its settings, a library's environment is one that the command line builds, too.
    algo, policy = hx.load(tmp_path / "named")
    assert algo.env.params.force_mag == 20.0
    with pytest.raises(ConfigError, match="algorithm has activation='relu', but the run in .* has activation='tanh'"):
        hx.load(tmp_path / "named", algorithm=made(strong, 256).replace(activation="relu"))
    assert hx.train(made(strong, 256), init_from=tmp_path / "named", progress=False).summary["updates"] == 1


def test_a_result_has_the_policy_of_each_seed(tmp_path: Path) -> None:
    algo = hx.PPO("CartPole-v1", total_steps=64, eval_episodes=0, hidden_sizes=(4,), num_epochs=1)
    result = hx.train(algo, seeds=(3, 5), run_dir=tmp_path / "run", progress=False)
    _, observations = jax.vmap(algo.env.reset)(jax.random.split(jax.random.key(0), 32))
    acts = {}
    for seed in (None, 3, 5):
        loaded = hx.load(tmp_path / "run", seed=seed)[1]
        acts[seed], again = (jax.vmap(policy)(observations) for policy in (result.policy(seed), loaded))
        np.testing.assert_array_equal(acts[seed], again)
    np.testing.assert_array_equal(acts[None], acts[3])
    first, second = (jax.tree.leaves(result.policy(seed).state.params)[0] for seed in (3, 5))
    assert not np.array_equal(first, second)
    for wrong in (np.zeros(3), np.zeros((5, 4)), [0.0] * 4):
        with pytest.raises(TypeError, match=r"an observation of CartPole-v1 has the shape \(4,\), not \("):
            result.policy(3)(wrong)
    with pytest.raises(ConfigError, match=r"seed=4 is not in this run, which has seeds=\[3, 5\]"):
        result.policy(4)


def test_a_run_of_named_parts_is_that_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_once(monkeypatch)
    algo = hx.PPO("haepo/bandit", **SMALL)
    result = hx.train(algo, seeds=range(2, 4), run_dir=tmp_path / "script", final_eval_episodes=4)
    settings = [f"algo.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in SMALL.items() if k != "total_steps"]
    arguments = ["env=haepo/bandit", "algo=ppo", "seed=2", "num_seeds=2", "final_eval_episodes=4", "total_steps=256"]
    command = [*arguments, *(text.replace(" ", "") for text in settings), f"run_dir={tmp_path}/script"]
    assert RunDir(tmp_path / "script").read_config() == compose(read_arguments(command).overrides, RunConfig)
    # So the command line may go on with it.
    assert train.main([f"run_dir={tmp_path}/script", "resume=true"]) == 0
    assert "has ended" in capsys.readouterr().out
    assert train.main([*command[:-1], f"run_dir={tmp_path}/line"]) == 0
    assert rows(tmp_path / "line") == rows(tmp_path / "script")
    _, policy = hx.load(tmp_path / "line", seed=3)
    assert same(policy.state, jax.tree.map(lambda x: x[1], result.state))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted(hx.PPO):
    """PPO with a setting and a metric of its own."""

    shift: float = 1.5

    def update(self, state: Any) -> Any:
        new, metrics = super().update(state)
        return new, metrics | {"shifted": state.update.astype(jnp.float32) + self.shift}


def tensorboard_events(run: Path) -> list[list[Any]]:
    """The events of each file in a run's directory."""
    from tensorboardX.proto.event_pb2 import Event

    found: list[list[Any]] = []
    for file in sorted(run.glob("events.*")):
        data, at = file.read_bytes(), 0
        found.append([])
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found[-1].append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


@pytest.mark.parametrize(
    ("name", "env_kwargs"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"gravity": 9.0}),
        ("DeepSea-bsuite", {"size": 6}),
        ("haepo/addition", {"digits": 1}),
        ("brax/inverted_pendulum", {"episode_length": 50, "backend": "positional"}),
    ],
)
def test_an_environment_made_by_name_is_told_by_its_settings(name: str, env_kwargs: dict[str, Any]) -> None:
    settings = {"seed": 0, "num_seeds": 1, "run_dir": None, "resume": "false"}
    found = describe(hx.PPO(hx.make_env(name, **env_kwargs)), settings)
    assert isinstance(found, RunConfig) and (found.env, found.env_kwargs) == (name, env_kwargs)
    changed = hx.make_env("CartPole-v1", gravity=9.0)
    changed = changed.replace(params=changed.params.replace(length=2.0))  # type: ignore[attr-defined]
    found = describe(hx.PPO(changed), settings)
    assert found.env_kwargs == {"gravity": 9.0, "length": 2.0} and not isinstance(found, CustomConfig)


def test_own_objects_are_logged_described_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_once(monkeypatch)
    algo = Shifted(Drift(), **SMALL)
    keywords: dict[str, Any] = {"seeds": 2, "final_eval_episodes": 2}
    whole = hx.train(algo, run_dir=tmp_path / "whole", **keywords)

    def interrupt(row: Row, state: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        hx.train(algo, run_dir=tmp_path / "broken", callbacks=[interrupt], **keywords)
    broken = hx.train(algo, run_dir=tmp_path / "broken", resume=True, **keywords)
    assert same(whole.state, broken.state)
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")

    # The metric reaches every logger.
    updates = whole.metrics["update"]
    assert whole.metrics["shifted"].tolist() == (updates - 1 + 1.5).tolist()
    assert [row["seeds"]["shifted"] for row in rows(tmp_path / "whole")] == (updates.T + 0.5).tolist()
    (events,) = tensorboard_events(tmp_path / "whole")
    tags = {value.tag for event in events for value in event.summary.value}
    assert {"train/shifted", "eval/return", "time/wall_seconds"} <= tags
    # Of what a resumed run logs again, TensorBoard is told to forget the first account.
    before, after = tensorboard_events(tmp_path / "broken")
    start = after[1].step
    assert after[1].session_log.status == after[1].session_log.START
    steps = [[event.step for event in file[2:]] for file in (before, after)]
    assert min(steps[1]) >= start
    assert [*(step for step in steps[0] if step < start), *steps[1]] == [event.step for event in events[2:]]

    # What they are is said; that nothing here can build them, too.
    config = RunDir(tmp_path / "whole").read_config(custom=True)
    assert config.algo.name == "Shifted" and config.algo.hyperparameters["shift"] == 1.5 and config.env == "toy/drift"
    objects = config.to_dict()["objects"]
    assert objects["algorithm"].startswith(f"{__name__}.Shifted (contents ") and objects["env"].startswith(
        "tests.toy_envs.Drift "
    )
    capsys.readouterr()
    assert evaluate.main([f"run_dir={tmp_path}/whole"]) == 2
    error = capsys.readouterr().err
    assert "is a run of custom objects" in error and "hx.load(run_dir, algorithm=" in error and error.count("\n") == 1
    _, policy = hx.load(tmp_path / "whole", algorithm=algo, seed=1)
    assert same(policy.state, jax.tree.map(lambda x: x[1], whole.state))
    assert algo.evaluate(policy.state, episodes=3)["return"].shape == (3,)
    for other, message in [
        (
            Shifted(Drift(), **SMALL | {"hidden_sizes": (4,)}),
            r"algorithm has hidden_sizes=\(4,\), but the run in .* has hidden_sizes=",
        ),
        ("ppo", "algorithm='ppo' is not an algorithm"),
    ]:
        with pytest.raises((ConfigError, CheckpointError), match=message):
            hx.load(tmp_path / "whole", algorithm=other)  # type: ignore[arg-type]
    # A policy starts another training, by its object or, for the same algorithm, by the run's name.
    for start in (policy, str(tmp_path / "whole")):
        begun = hx.train(algo, init_from=start, final_eval_episodes=0, progress=False)
        assert begun.summary["updates"] > 0
    with pytest.raises(ConfigError, match="init_from=.*the initial policy has a different network"):
        hx.train(Shifted(Drift(), **SMALL | {"hidden_sizes": (4,)}), init_from=policy)
    assert train.main([f"run_dir={tmp_path}/whole", "resume=true"]) == 2
    file = tmp_path / "whole" / "config.yaml"
    text = file.read_text()
    for old, new, message in (
        ("total_steps: 256", "total_steps: many", "total_steps='many' must be an integer"),
        ("objects:\n", "objects: []\nmore:\n", "algo must have a name, and objects"),
    ):
        file.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=message):
            hx.train(algo, run_dir=tmp_path / "whole", resume=True, **keywords)
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"algo.shift=2\.5, but the run in .* has algo.shift=1\.5"):
        hx.train(algo.replace(shift=2.5), run_dir=tmp_path / "whole", resume=True, **keywords)


def test_own_everything_as_the_site_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last block of its page, a script by itself."""
    monkeypatch.chdir(tmp_path)
    script = (Path(__file__).parents[2] / "docs" / "training.md").read_text().rpartition("```python\n")[2]
    names: dict[str, Any] = {"__name__": "own_everything"}
    exec(compile(script.partition("```")[0], "own_everything", "exec", dont_inherit=True), names)
    result = names["result"]
    assert result.summary["ended_early"] and result.metrics["eval_return"][:, -1].mean() > 0.95
    assert (result.metrics["eval_return"][:, :-1].mean(axis=0) <= 0.95).all()
    assert (result.metrics["weight_norm"] > 0).all()
    saved = RunDir(Path("runs/own")).read_config(custom=True).to_dict()["objects"]
    assert {name: kind.partition(" ")[0].rpartition(".")[2] for name, kind in saved.items()} == {
        "algorithm": "Mine", "env": "Recall", "policy": "Cell"
    }  # fmt: skip
    assert json.loads(Path("runs/own/summary.json").read_text())["algo"] == "Mine"
