"""The learner: its loss is the library's own, and what it is given is what the model computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="needs the extra llm")

from flax import nnx

import haepo_jax as hx
from haepo_jax import llm
from haepo_jax.llm import Learner, LearnerConfig, learner
from haepo_jax.llm.learner import Batch
from tests.llm import tiny_model

GROUPS, SIZE, LENGTH = 3, 4, 6
SCORES = {  # ours, and what haepo_loss calls it when it is given plain sums
    "log_ratio": {"score": "log_ratio"},
    "likelihood": {"score": "likelihood"},
    "mean_likelihood": {"score": "mean_likelihood"},
}


@pytest.fixture
def parts() -> dict[str, Any]:
    """Completions of 1 to 6 tokens; what stands beside them must not matter."""
    rng = np.random.default_rng(0)
    shape = (GROUPS * SIZE, LENGTH)
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, GROUPS * SIZE)[:, None]
    logs = [np.where(mask, -rng.exponential(1.0, shape), np.nan) for _ in range(3)]
    return {
        "log_probs": logs[0],
        "behaviour": logs[0] + 0.3 * rng.standard_normal(shape),
        "reference": logs[2],
        "mask": mask,
        "rewards": rng.standard_normal(GROUPS * SIZE),
        "entropies": rng.exponential(1.0, shape),
    }


def loss_of(parts: dict[str, Any], log_probs: Any, fresh: bool = False, **settings: Any) -> tuple[jax.Array, Any]:
    config = LearnerConfig(group_size=SIZE, **settings)
    arrays = {key: jnp.asarray(parts[key]) for key in ("mask", "rewards", "behaviour", "reference")}
    if not config.kl_coef:
        arrays["reference"] = None
    ids = jnp.zeros(log_probs.shape, jnp.int32)
    batch = Batch(ids, ids, fresh=jnp.full(len(ids), fresh), **arrays)
    return learner.batch_loss(config, batch, log_probs, jnp.asarray(parts["entropies"]))


def grouped(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32).reshape(GROUPS, SIZE, -1)


@pytest.mark.parametrize("normalize", ["standardize", "center"])
@pytest.mark.parametrize("score", SCORES)
def test_loss_and_gradient_are_those_of_haepo_loss(parts: dict[str, Any], score: str, normalize: str) -> None:
    live = grouped(parts["mask"]) > 0
    clean = {key: jnp.where(live, grouped(parts[key]), 0.0) for key in ("behaviour", "reference", "log_probs")}
    tokens = live.sum((-1, -2))
    still = jnp.minimum(jnp.exp(clean["log_probs"] - clean["behaviour"]), 1)

    def plain(log_probs: jax.Array) -> tuple[jax.Array, Any]:
        log_probs = jnp.where(live, grouped(log_probs), 0.0)
        d = clean["reference"] - log_probs
        return hx.haepo_loss(
            log_probs.sum(-1),
            jnp.asarray(parts["rewards"]).reshape(GROUPS, SIZE),
            **SCORES[score],
            normalize=normalize,
            behaviour_log_likelihood=clean["behaviour"].sum(-1),
            lengths=live.sum(-1),
            entropy_coef=0.2,
            kl_coef=0.1,
            policy_entropy=jnp.where(live, grouped(parts["entropies"]), 0.0).sum((-1, -2)) / tokens,
            policy_kl=jnp.where(live, still * (jnp.exp(d) - d - 1), 0.0).sum((-1, -2)) / tokens,
        )

    def ours(log_probs: jax.Array) -> tuple[jax.Array, Any]:
        return loss_of(parts, log_probs, score=score, normalize=normalize, kl_coef=0.1, entropy_coef=0.2)

    log_probs = jnp.asarray(parts["log_probs"], jnp.float32)
    (wanted, _), slope = jax.jit(jax.value_and_grad(plain, has_aux=True))(log_probs)
    (found, metrics), gradient = jax.jit(jax.value_and_grad(ours, has_aux=True))(log_probs)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    assert jnp.all(gradient[~parts["mask"]] == 0) and jnp.any(gradient != 0)
    assert 0 < metrics["ess"] <= 1


def test_mean_log_ratio_is_the_ratio_over_the_length(parts: dict[str, Any]) -> None:
    log_ratio = np.where(parts["mask"], parts["log_probs"] - parts["behaviour"], 0).sum(-1)
    scores = (log_ratio / parts["mask"].sum(-1)).reshape(GROUPS, SIZE)
    rewards = parts["rewards"].reshape(GROUPS, SIZE)
    rewards = (rewards - rewards.mean(-1, keepdims=True)) / rewards.std(-1, keepdims=True)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    loss, _ = loss_of(parts, jnp.asarray(parts["log_probs"]), score="mean_log_ratio", kl_coef=0.0)
    np.testing.assert_allclose(loss, -(weights * rewards).sum(-1).mean(), rtol=1e-5)


def test_kept_completions_weigh_by_how_much_likelier_they_have_become(parts: dict[str, Any]) -> None:
    """Whose log-probability has risen since it was sampled weighs more, within its group alone."""
    start = jnp.asarray(parts["log_probs"])
    parts |= {"behaviour": parts["log_probs"]}
    moved = start.at[1].add(0.5)
    one, other = (loss_of(parts, x, kl_coef=0.0)[1] for x in (start, moved))
    rise = 0.5 * parts["mask"][1].sum()
    first = np.exp([0, rise, 0, 0]) / np.exp([0, rise, 0, 0]).sum()
    assert one["max_weight"] == pytest.approx(1 / SIZE)
    assert other["max_weight"] == pytest.approx((first.max() + 2 / SIZE) / GROUPS, rel=1e-5)


@pytest.mark.parametrize("algo", ["haepo", "grpo"])
def test_tokens_that_the_policy_has_left_do_not_rule_the_penalty(parts: dict[str, Any], algo: str) -> None:
    """With a log-probability that fell by 20 the unweighted estimate, and its gradient, would be of the size of exp(20)."""
    parts |= {"behaviour": parts["log_probs"], "reference": parts["log_probs"]}
    left = jnp.asarray(parts["log_probs"]).at[1, 0].add(-20.0)

    def of(log_probs: jax.Array, kl_coef: float) -> tuple[jax.Array, Any]:
        return loss_of(parts, log_probs, algo=algo, kl_coef=kl_coef)

    slopes = [jax.grad(of, has_aux=True)(left, kl_coef) for kl_coef in (0.0, 1.0)]
    assert (
        0.5 / parts["mask"].sum() < slopes[1][1]["kl"] < 1
    )  # exp(-20) k3 is about 1 at this token, averaged over others
    assert 0 < float(jnp.abs(slopes[1][0] - slopes[0][0])[1, 0]) <= 1


def test_the_first_update_is_reinforce_with_a_group_baseline(parts: dict[str, Any]) -> None:
    def loss(log_probs: jax.Array) -> jax.Array:
        return loss_of(parts, log_probs, fresh=True, normalize="center", kl_coef=0.0)[0]

    rewards = parts["rewards"].reshape(GROUPS, SIZE)
    advantages = (rewards - rewards.mean(-1, keepdims=True)).reshape(-1, 1) / (GROUPS * SIZE)
    gradient = jax.grad(loss)(jnp.asarray(parts["log_probs"]))
    np.testing.assert_allclose(gradient, -advantages * parts["mask"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("algo", ["grpo", "gspo"])
def test_grpo_and_gspo_are_the_published_forms(parts: dict[str, Any], algo: str) -> None:
    rewards = parts["rewards"].reshape(GROUPS, SIZE)
    advantages = (rewards - rewards.mean(-1, keepdims=True)) / rewards.std(-1, keepdims=True)
    lengths = parts["mask"].sum(-1, keepdims=True)
    clean = {key: np.where(parts["mask"], parts[key], 0.0) for key in ("log_probs", "behaviour", "reference")}
    log_ratio = clean["log_probs"] - clean["behaviour"]
    if algo == "gspo":  # of the whole completion, the same at every token
        log_ratio = np.broadcast_to(log_ratio.sum(-1, keepdims=True) / lengths, log_ratio.shape)
    ratio, gain = np.exp(log_ratio), advantages.reshape(-1, 1)
    d = clean["reference"] - clean["log_probs"]
    still = np.minimum(np.exp(clean["log_probs"] - clean["behaviour"]), 1)
    loss = -np.minimum(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain) + 0.1 * still * (np.exp(d) - d - 1)
    wanted = (np.where(parts["mask"], loss, 0.0) / lengths).sum(-1).mean()
    found, metrics = loss_of(parts, jnp.asarray(parts["log_probs"]), algo=algo, kl_coef=0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert metrics["loss"] == found
    assert metrics["clip_fraction"] > 0


def test_dpo_prefers_the_better_of_every_pair_of_a_group(parts: dict[str, Any]) -> None:
    """Equation 7 of arXiv 2305.18290, the pairs one by one; equal rewards make no pair."""
    parts |= {"rewards": np.array([2.0, 0, 1, 0] * GROUPS)}
    clean = {key: np.where(parts["mask"], parts[key], 0.0) for key in ("log_probs", "behaviour", "reference")}
    gain = 0.3 * (clean["log_probs"] - clean["reference"]).sum(-1).reshape(GROUPS, SIZE)
    pairs = [(0, 1), (0, 2), (0, 3), (2, 1), (2, 3)]
    wanted = np.mean([np.log1p(np.exp(gain[:, lost] - gain[:, won])) for won, lost in pairs])
    found, metrics = loss_of(parts, jnp.asarray(parts["log_probs"]), algo="dpo", beta=0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    d = clean["reference"] - clean["log_probs"]
    still = np.minimum(np.exp(clean["log_probs"] - clean["behaviour"]), 1)
    k3 = np.where(parts["mask"], still * (np.exp(d) - d - 1), 0).reshape(GROUPS, -1).sum(-1)
    assert metrics["kl"] == pytest.approx((k3 / parts["mask"].reshape(GROUPS, -1).sum(-1)).mean(), rel=1e-5)
    assert metrics["pairs"] == 5 * GROUPS


@pytest.mark.parametrize("share", [1, 2, 4])
def test_completions_that_share_a_prompt_do_not_see_each_other(model_folder: Path, share: int) -> None:
    """The log-probabilities, and their gradient, are those of sequences of their own."""
    subject = make(model_folder, kl_coef=0.0)
    batch = batch_of(subject)

    def shared(model: nnx.Module) -> jax.Array:
        found = learner.token_log_probs(
            model,
            batch.prompt_ids,
            batch.completion_ids,
            temperature=0.7,
            pad_id=subject._ids["pad_id"],
            share=share,
        )
        return jnp.where(batch.mask, found[0], 0.0)

    np.testing.assert_allclose(shared(subject.model), apart(subject.model, batch, 0.7), atol=1e-5)
    weights = jax.random.normal(jax.random.key(1), batch.mask.shape)
    found, wanted = (
        jax.tree.leaves(nnx.grad(lambda model, of=of: jnp.sum(weights * of(model)))(subject.model))
        for of in (shared, lambda model: apart(model, batch, 0.7))
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(other).max()))


def test_how_many_completions_share_a_prompt() -> None:
    """Long prompts are shared by the whole group, where attention needs no more memory; long completions by none."""

    def share(prompt: int, completion: int, rows: int = 32, devices: int = 1) -> int:
        config = LearnerConfig(group_size=8, max_new_tokens=completion)
        return learner.completions_per_prompt(config, prompt, rows, devices)

    assert (share(500, 50), share(72, 28), share(100, 500)) == (8, 4, 1)
    assert (500 + 8 * 50) ** 2 / 8 <= (500 + 50) ** 2 and (72 + 8 * 28) ** 2 / 8 > (72 + 28) ** 2
    assert share(500, 50, devices=4) == 8 and share(500, 50, devices=8) == 4 and share(500, 50, devices=32) == 1
    assert share(500, 50, rows=8, devices=3) == 8  # replicated anyway


PROMPTS = ["The import statement", "A class", "When a function is"]


def make(path: Path, dtype: str = "float32", **settings: Any) -> Learner:
    folder = llm.read_folder(str(path), dtype)
    config = LearnerConfig(**{"prompts_per_step": 3, "group_size": 4, "max_new_tokens": 8, **settings})
    return Learner(config, folder, llm.load_tokenizer(folder), prompt_length=16)


def letters(completions: learner.Completions) -> np.ndarray[Any, Any]:
    return np.array([float(text.count("e")) for text in completions.texts])


def batch_of(subject: Learner, seed: int = 0) -> Batch:
    completions = subject.sample(np.repeat(PROMPTS, 4).tolist(), jax.random.key(seed))
    return subject.batch(completions, letters(completions))


def apart(model: nnx.Module, batch: Batch, temperature: float) -> jax.Array:
    """(B, T), of the completions' tokens without Tunix's functions: every row from its start, padded at its end, where a
    causal model does not look."""
    prompts, completions = np.asarray(batch.prompt_ids), np.asarray(batch.completion_ids)
    starts = (prompts != 1).sum(-1)  # tiny_model.PAD
    rows = [
        np.pad(np.concatenate([prompt[-n:], completion]), (0, len(prompt) - n))
        for prompt, completion, n in zip(prompts, completions, starts, strict=True)
    ]
    tokens = np.stack(rows)
    places = starts[:, None] - 1 + np.arange(completions.shape[1])
    logs = jax.nn.log_softmax(tiny_model.logits(model, tokens)[:, :-1] / temperature)
    chosen = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.where(batch.mask, jnp.take_along_axis(chosen, places, axis=-1), 0.0)


def test_what_the_loss_is_given_is_what_the_model_computes(model_folder: Path) -> None:
    """End tokens count, log-probabilities are at the sampling temperature, and an update is one step of Adam on the
    gradient of the loss on log-probabilities computed apart, whether at once or in micro-batches."""
    settings: dict[str, Any] = {"sampling_temperature": 0.7, "learning_rate": 1e-3, "kl_coef": 0.1}
    subject = make(model_folder, **settings)
    batch = batch_of(subject)
    tokenizer = subject.sampler.tokenizer
    lengths = np.asarray(batch.mask.sum(-1))
    ends = [int(ids[n - 1]) == tokenizer.eos_id() for ids, n in zip(batch.completion_ids, lengths, strict=True)]
    assert any(ends) and all(end or n == 8 for end, n in zip(ends, lengths, strict=True))
    model = subject.model
    np.testing.assert_allclose(jnp.where(batch.mask, batch.reference, 0), apart(model, batch, 0.7), atol=1e-4)

    def loss(model: nnx.Module) -> jax.Array:
        log_probs = apart(model, batch, 0.7)
        found = learner.batch_loss(subject.config, batch, log_probs, jnp.zeros_like(log_probs))[0]
        return found

    grads = nnx.jit(nnx.grad(loss))(model)
    before = jax.tree.map(lambda x: x, nnx.state(model, nnx.Param))
    (known,), metrics = subject.learn([batch])
    assert not known.fresh.any()
    np.testing.assert_allclose(
        jnp.where(batch.mask, known.behaviour, 0), jnp.where(batch.mask, batch.reference, 0), atol=1e-6
    )
    norm = float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(grads))))
    assert float(metrics[0]["grad_norm"]) == pytest.approx(norm, rel=1e-3)
    parts = make(model_folder, micro_batch=1, **settings)
    parts.learn([batch])
    states = (before, grads, nnx.state(subject.model, nnx.Param), nnx.state(parts.model, nnx.Param))
    for old, slope, new, other in zip(*map(jax.tree.leaves, states), strict=True):
        sure = jnp.abs(slope) > 1e-4  # elsewhere Adam's first step is the sign of a rounding error
        np.testing.assert_allclose((new - old)[sure], -1e-3 * jnp.sign(slope)[sure], rtol=0.05)
        np.testing.assert_allclose((other - old)[sure], (new - old)[sure], rtol=0.05)


@pytest.mark.parametrize("algo", ["haepo", "grpo"])
def test_equal_rewards_change_nothing(model_folder: Path, algo: str) -> None:
    """Not even with a KL penalty, whose gradient at the initial model is nothing but rounding errors; but an entropy bonus does."""
    for entropy_coef in (0.0, 0.01):
        subject = make(model_folder, algo=algo, kl_coef=0.1, learning_rate=1e-2, entropy_coef=entropy_coef)
        batch = batch_of(subject)
        by_prompt = np.repeat(np.arange(3.0), 4)  # what differs between prompts teaches nothing either
        same = batch._replace(rewards=jax.device_put(by_prompt.astype(np.float32), batch.rewards.sharding))
        for some, still in ((same, not entropy_coef), (batch, False), (same, not entropy_coef)):
            before = jax.device_get(subject.state)
            (known,), (metrics,) = subject.learn([some])
            after = jax.device_get(subject.state)
            pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
            assert all((x == y).all() for x, y in pairs) is still
            assert (float(metrics["grad_norm"]) == 0) is still
            assert not known.fresh.any() and float(jnp.abs(known.behaviour).max()) > 0


@pytest.mark.parametrize(("algo", "settings"), [("dpo", {}), ("grpo", {"entropy_coef": 0.1})])
def test_micro_batches_change_nothing(model_folder: Path, algo: str, settings: dict[str, Any]) -> None:
    """Though DPO averages over the groups with different rewards, and completions differ in length."""
    subjects = [make(model_folder, algo=algo, micro_batch=micro_batch, **settings) for micro_batch in (None, 1)]
    batch = batch_of(subjects[0])
    tied = np.asarray(batch.rewards).copy()
    tied[:4] = 1.0
    batch = batch._replace(rewards=jax.device_put(tied, batch.rewards.sharding))
    found = [jax.device_get(subject.learn([batch])[1][0]) for subject in subjects]
    # At the initial model the margins of DPO, and so its accuracy, are rounding errors.
    whole, parts = ({name: float(x) for name, x in metrics.items() if name != "accuracy"} for metrics in found)
    assert whole["grad_norm"] > 0 and parts == pytest.approx(whole, rel=2e-3, abs=1e-6)


def test_given_completions_are_those_that_were_sampled(model_folder: Path) -> None:
    subject = make(model_folder)
    texts = np.repeat(PROMPTS, 4).tolist()
    sampled = subject.sample(texts, jax.random.key(0))
    given = subject.given(texts, sampled.texts)
    np.testing.assert_array_equal(given.prompt_ids, sampled.prompt_ids)
    encode = subject.sampler.tokenizer.encode
    same = [  # a text may have other tokens than it was sampled in
        encode(text) == ids[mask][ids[mask] != subject.sampler.tokenizer.eos_id()].tolist()
        for text, ids, mask in zip(sampled.texts, sampled.completion_ids, sampled.mask, strict=True)
    ]
    assert sum(same) > 3
    np.testing.assert_array_equal(given.completion_ids[same], sampled.completion_ids[same])
    np.testing.assert_array_equal(given.mask[same], sampled.mask[same])


@pytest.mark.parametrize("algo", ["dpo", "haepo"])
def test_pairs_are_learned_with_the_initial_model_as_their_policy(model_folder: Path, algo: str) -> None:
    """Of a pair, HAEPO's objective is the tanh of half the difference of the log-ratios, DPO's the log-sigmoid of `beta` times it."""
    folder = llm.read_folder(str(model_folder))
    config = LearnerConfig(
        algo=algo, prompts_per_step=3, group_size=2, max_new_tokens=8, kl_coef=0, learning_rate=3e-3, beta=1.0, num_iterations=9
    )  # fmt: skip
    subject = Learner(config, folder, llm.load_tokenizer(folder), prompt_length=16, offline=True)
    completions = subject.given(np.repeat(PROMPTS, 2).tolist(), [" is a", " the"] * 3)
    batch = subject.batch(completions, np.tile([1.0, 0.0], 3))
    (kept,), metrics = subject.learn([batch])
    np.testing.assert_array_equal(kept.behaviour, batch.reference)
    assert not kept.fresh.any()
    objectives = [float(update["objective"]) for update in metrics]
    assert objectives[0] == pytest.approx(0 if algo == "haepo" else -np.log(2), abs=1e-5)
    assert objectives == sorted(objectives) and objectives[-1] > objectives[0] + 0.2
    ratios = jnp.where(batch.mask, apart(subject.model, batch, 1.0) - batch.reference, 0).sum(-1).reshape(3, 2)
    gap = ratios[:, 0] - ratios[:, 1]
    wanted = jnp.tanh(gap / 2) if algo == "haepo" else jax.nn.log_sigmoid(gap)
    (_, (last, *_)) = subject.learn([kept])
    assert float(last["objective"]) == pytest.approx(float(wanted.mean()), rel=1e-3)


def test_small_steps_are_not_lost_in_bfloat16(model_folder: Path) -> None:
    subject = make(model_folder, dtype="bfloat16", learning_rate=1e-6)
    before, batch = jax.device_get(subject.state.params), batch_of(subject)
    subject.learn([batch])
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(subject.state.params)), strict=True)
    moved = np.concatenate([(x != y).ravel() for x, y in pairs])
    assert moved.mean() > 0.5, "half of a tiny embedding is of tokens that no completion has"
    assert {x.dtype for x in jax.tree.leaves(nnx.state(subject.model, nnx.Param))} == {jnp.dtype("bfloat16")}


def test_sampling_sees_the_updates_and_greedy_completions_are_one(model_folder: Path) -> None:
    subject = make(model_folder, learning_rate=1e-2)
    prompts = np.repeat(PROMPTS, 4).tolist()
    first, again, other = (subject.sample(prompts, jax.random.key(seed)) for seed in (0, 0, 1))
    assert first.texts == again.texts != other.texts
    greedy = subject.sample(PROMPTS[:2], None)
    assert len(greedy.texts) == 2 and subject.sample(prompts, None).texts[::4][:2] == greedy.texts
    subject.learn([batch_of(subject)])
    assert subject.sample(prompts, jax.random.key(0)).texts != first.texts


def test_nothing_is_compiled_after_the_second_step(model_folder: Path) -> None:
    """With a second batch kept, evaluation, and prompts and completions of other lengths."""
    subject = make(model_folder, num_iterations=2, learning_rate=1e-3)
    kept: list[Batch] = []
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    counts = []
    for step in range(4):
        prompts = np.repeat([prompt[: 12 + 3 * step] for prompt in PROMPTS], 4).tolist()
        completions = subject.sample(prompts, jax.random.key(step))
        subject.sample(prompts[: 1 + step], None)
        kept, metrics = subject.learn([*kept, subject.batch(completions, letters(completions))][-2:])
        assert len(metrics) == 2 * len(kept)
        counts.append(len(compiled))
    jax.monitoring.clear_event_listeners()
    assert counts[0] > 0 and counts[1] == counts[3], counts
    assert subject._update._cache_size() == 1, "one program for fresh batches and kept ones"
    assert [bool(batch.fresh.any()) for batch in kept] == [False, False]


@pytest.mark.slow
def test_two_devices_compute_what_one_does(model_folder: Path) -> None:
    code = (
        "import jax, numpy as np, sys; from pathlib import Path; from tests.llm import test_llm_learner as t\n"
        "subject = t.make(Path(sys.argv[1]), num_iterations=2, learning_rate=1e-3, prompts_per_step=4)\n"
        "texts = np.repeat(t.PROMPTS[:2] * 2, 4).tolist()\n"
        "found = subject.sample(texts, jax.random.key(0))\n"
        "_, metrics = subject.learn([subject.batch(found, t.letters(found))])\n"
        "print(*[float(x['loss']) for x in metrics], float(metrics[-1]['grad_norm']), subject._update._cache_size())"
    )
    lines = []
    for count in (1, 2):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(model_folder)],
            env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        )  # fmt: skip
        lines.append([float(word) for word in done.stdout.split("\n")[-2].split()])
    np.testing.assert_allclose(*lines, rtol=1e-3, atol=1e-5)
    assert lines[0][-1] == 1


def test_the_version_of_tunix_that_this_was_tried_with() -> None:
    """Its models' modules and `Sampler` are public, but what they are called is not promised: see `folder.NAMES`."""
    from importlib import metadata

    assert metadata.version("google-tunix") == "0.1.7"
