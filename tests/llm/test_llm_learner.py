"""HAEPO inside Tunix: the loss is the library's own, and what it is given is what the model computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="needs the extra llm")

import optax
from flax import nnx
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

import haepo_jax as hx
from haepo_jax.llm import HAEPOConfig, HAEPOLearner, Rollout, learner
from haepo_jax.llm import folder as folders
from tests.llm import tiny_model

GROUPS, SIZE, LENGTH = 3, 4, 6
SCORES = {  # ours, and what haepo_loss calls it when it is given plain sums
    "log_ratio": {"score": "log_ratio"},
    "likelihood": {"score": "likelihood"},
    "mean_likelihood": {"score": "mean_likelihood"},
}


@pytest.fixture
def batch() -> dict[str, Any]:
    """Completions of 1 to 6 tokens; what stands beside them must not matter."""
    rng = np.random.default_rng(0)
    shape = (GROUPS * SIZE, LENGTH)
    mask = np.arange(LENGTH) < rng.integers(1, LENGTH + 1, GROUPS * SIZE)[:, None]
    logs = [np.where(mask, -rng.exponential(1.0, shape), np.nan) for _ in range(3)]
    return {
        "log_probs": logs[0],
        "old_log_probs": logs[0] + 0.3 * rng.standard_normal(shape),
        "reference_log_probs": logs[2],
        "mask": mask,
        "rewards": rng.standard_normal(GROUPS * SIZE),
        "entropies": rng.exponential(1.0, shape),
    }


def grouped(x: Any) -> jax.Array:
    return jnp.asarray(x, jnp.float32).reshape(GROUPS, SIZE, -1)


@pytest.mark.parametrize("normalize", ["standardize", "center"])
@pytest.mark.parametrize("score", SCORES)
def test_loss_and_gradient_are_those_of_haepo_loss(batch: dict[str, Any], score: str, normalize: str) -> None:
    config = HAEPOConfig(num_generations=SIZE, score=score, normalize=normalize, beta=0.1, entropy_coef=0.2)
    live = grouped(batch["mask"]) > 0
    clean = {key: jnp.where(live, grouped(batch[key]), 0.0) for key in batch if "log_probs" in key}
    tokens = live.sum((-1, -2))

    def plain(log_probs: jax.Array) -> tuple[jax.Array, Any]:
        log_probs = jnp.where(live, grouped(log_probs), 0.0)
        d = clean["reference_log_probs"] - log_probs
        return hx.haepo_loss(
            log_probs.sum(-1),
            jnp.asarray(batch["rewards"]).reshape(GROUPS, SIZE),
            **SCORES[score],
            normalize=normalize,
            behaviour_log_likelihood=clean["old_log_probs"].sum(-1),
            lengths=live.sum(-1),
            entropy_coef=0.2,
            kl_coef=0.1,
            policy_entropy=jnp.where(live, grouped(batch["entropies"]), 0.0).sum((-1, -2)) / tokens,
            policy_kl=jnp.where(live, jnp.exp(d) - d - 1, 0.0).sum((-1, -2)) / tokens,
        )

    def ours(log_probs: jax.Array) -> tuple[jax.Array, Any]:
        values = {key: jnp.asarray(value) for key, value in batch.items()} | {"log_probs": log_probs}
        arrays = [values.pop(key) for key in ("log_probs", "mask", "rewards")]
        return learner.loss_of_log_probs(*arrays, config, **values)

    log_probs = jnp.asarray(batch["log_probs"], jnp.float32)
    (wanted, _), slope = jax.value_and_grad(plain, has_aux=True)(log_probs)
    (found, metrics), gradient = jax.value_and_grad(ours, has_aux=True)(log_probs)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    assert jnp.all(gradient[~batch["mask"]] == 0) and jnp.any(gradient != 0)
    assert 0 < metrics["ess"] <= 1


def test_mean_log_ratio_is_the_ratio_over_the_length(batch: dict[str, Any]) -> None:
    config = HAEPOConfig(num_generations=SIZE, score="mean_log_ratio", beta=0.0)
    log_ratio = np.where(batch["mask"], batch["log_probs"] - batch["old_log_probs"], 0).sum(-1)
    scores = (log_ratio / batch["mask"].sum(-1)).reshape(GROUPS, SIZE)
    rewards = batch["rewards"].reshape(GROUPS, SIZE)
    rewards = (rewards - rewards.mean(-1, keepdims=True)) / rewards.std(-1, keepdims=True)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    values = {key: jnp.asarray(value) for key, value in batch.items()} | {"reference_log_probs": None}
    loss, _ = learner.loss_of_log_probs(config=config, **values)
    np.testing.assert_allclose(loss, -(weights * rewards).sum(-1).mean(), rtol=1e-5)


def test_the_first_update_is_reinforce_with_a_group_baseline(batch: dict[str, Any]) -> None:
    config = HAEPOConfig(num_generations=SIZE, normalize="center", beta=0.0)

    def loss(log_probs: jax.Array) -> jax.Array:
        values = {key: jnp.asarray(value) for key, value in batch.items()} | {"log_probs": log_probs}
        values |= {"old_log_probs": None, "reference_log_probs": None}
        return learner.loss_of_log_probs(config=config, **values)[0]

    rewards = batch["rewards"].reshape(GROUPS, SIZE)
    advantages = (rewards - rewards.mean(-1, keepdims=True)).reshape(-1, 1) / (GROUPS * SIZE)
    gradient = jax.grad(loss)(jnp.asarray(batch["log_probs"]))
    np.testing.assert_allclose(gradient, -advantages * batch["mask"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("key", "value"), [("score", "ratio"), ("normalize", "std"), ("num_generations", 1)])
def test_options_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        HAEPOConfig(**{key: value})


def test_the_end_token_is_part_of_a_completion() -> None:
    tokens = np.array([5, 6])
    assert learner.with_end(tokens, 9, 4).tolist() == [5, 6, 9]
    assert learner.with_end(tokens, 9, 2).tolist() == [5, 6], "it ran into the limit"
    assert learner.with_end(np.array([5, 9]), 9, 4).tolist() == [5, 9], "another sampler keeps it"
    assert learner.with_end(tokens[:0], 9, 4).tolist() == [9], "ended at once"


PROMPTS = ["The import statement", "A class", "When a function is"]


def cluster(path: Path, *, temperature: float = 1.0, pad: str | None = None, **options: Any) -> RLCluster:
    """What a script for Tunix's GRPO builds."""
    mesh = tiny_model.mesh()
    folder = folders.read_folder(str(path))
    tokenizer = folders.load_tokenizer(folder)
    if pad is not None:
        tokenizer.pad_token = pad
    training = {"actor_optimizer": optax.sgd(0.1), "eval_every_n_steps": 100, "max_steps": 2} | options.pop("train", {})
    return RLCluster(
        actor=folders.load_model(folder, mesh),
        reference=folders.load_model(folder, mesh),
        tokenizer=tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            training_config=RLTrainingConfig(**training),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=8, temperature=temperature, max_prompt_length=16, kv_cache_size=32
            ),
            **options,
        ),
    )


def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(completion.count("e")) for completion in completions]


@pytest.mark.parametrize(
    ("config", "learner_class"), [(GRPOConfig, GRPOLearner), (HAEPOConfig, HAEPOLearner)], ids=["grpo", "haepo"]
)
def test_a_grpo_script_changes_two_names(model_folder: Path, config: type[Any], learner_class: type[Any]) -> None:
    rl_cluster = cluster(model_folder)
    before = nnx.to_pure_dict(nnx.state(rl_cluster.actor_trainer.model))
    grpo = learner_class(
        rl_cluster=rl_cluster,
        algo_config=config(num_generations=4, num_iterations=1, beta=0.04, epsilon=0.2),
        reward_fns=[reward],
    )
    grpo.train([{"prompts": np.array(PROMPTS)}] * 2)
    after = nnx.to_pure_dict(nnx.state(rl_cluster.actor_trainer.model))
    assert rl_cluster.actor_trainer.train_steps == 2
    moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), before, after)
    assert max(jax.tree.leaves(moved)) > 1e-4


def sampled(rl_cluster: RLCluster, **options: Any) -> tuple[HAEPOLearner, Any]:
    """The learner and one batch of it: the completions of every prompt."""
    haepo = HAEPOLearner(rl_cluster, HAEPOConfig(num_generations=4, **options), [reward])
    haepo._rollout_micro_batch_size = haepo._compute_logps_micro_batch_size = 2
    return haepo, haepo._generate_and_compute_advantage({"prompts": np.repeat(PROMPTS, 4)})


def log_probs_of(example: Any, temperature: float) -> Callable[[nnx.Module], jax.Array]:
    """(B, T) of a model, of the completions' tokens without Tunix's functions: every row from its start, padded at its
    end, where a causal model does not look."""
    prompts, completions = np.asarray(example.prompt_ids), np.asarray(example.completion_ids)
    starts = np.asarray(example.prompt_mask).sum(-1)
    rows = [
        np.pad(np.concatenate([prompt[-n:], completion]), (0, len(prompt) - n))
        for prompt, completion, n in zip(prompts, completions, starts, strict=True)
    ]
    tokens = np.stack(rows)
    places = starts[:, None] - 1 + np.arange(completions.shape[1])

    def of(model: nnx.Module) -> jax.Array:
        logs = jax.nn.log_softmax(tiny_model.logits(model, tokens)[:, :-1] / temperature)
        chosen = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.where(example.completion_mask, jnp.take_along_axis(chosen, places, axis=-1), 0.0)

    return of


@pytest.mark.parametrize("pad", [tiny_model.PAD, tiny_model.END])
def test_what_the_loss_is_given_is_what_the_model_computes(model_folder: Path, pad: str) -> None:
    """Raw rewards in whole groups, end tokens that count even where they pad, old log-probabilities at the sampling
    temperature; and the gradient of every weight is that of `haepo_loss` on log-probabilities computed apart."""
    haepo, example = sampled(cluster(model_folder, temperature=0.7, pad=pad), num_iterations=2, beta=0.0)
    model = haepo.rl_cluster.actor_trainer.model
    tokenizer = haepo.rl_cluster.tokenizer
    lengths = np.asarray(example.completion_mask.sum(-1))
    ends = [int(ids[n - 1]) == tokenizer.eos_id() for ids, n in zip(example.completion_ids, lengths, strict=True)]
    assert any(ends) and all(end or n == 8 for end, n in zip(ends, lengths, strict=True))
    texts = [
        tokenizer.decode(np.asarray(ids[: n - end]).tolist())
        for ids, n, end in zip(example.completion_ids, lengths, ends, strict=True)
    ]
    np.testing.assert_array_equal(example.advantages, reward([], texts))
    apart = log_probs_of(example, 0.7)
    old = jnp.where(example.completion_mask, example.old_per_token_logps, 0.0)
    np.testing.assert_allclose(old, apart(model), atol=1e-4)

    def wanted_loss(model: nnx.Module) -> jax.Array:
        sums = apart(model).sum(-1).reshape(3, 4)
        rewards = example.advantages.reshape(3, 4)
        return hx.haepo_loss(sums, rewards, score="log_ratio", behaviour_log_likelihood=sums)[0]

    def found_loss(model: nnx.Module) -> jax.Array:
        return learner.policy_loss(model, example, haepo.algo_config, tokenizer.pad_id(), tokenizer.eos_id())[0]

    wanted, slope = nnx.jit(nnx.value_and_grad(wanted_loss))(model)
    found, gradient = nnx.jit(nnx.value_and_grad(found_loss))(model)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_rollout_samples_afresh_and_as_often_as_it_is_told(model_folder: Path) -> None:
    rl_cluster = cluster(model_folder, rollout_engine=Rollout)
    first, second = (rl_cluster.generate(PROMPTS).text for _ in range(2))
    assert first != second
    rl_cluster.rollout.calls = 1
    assert rl_cluster.generate(PROMPTS).text == second


def test_packed_sequences_are_refused(model_folder: Path) -> None:
    with pytest.raises(ValueError, match="whole groups"):
        HAEPOLearner(cluster(model_folder, train={"max_seq_token_per_tpu": 64}), HAEPOConfig(), [reward])
