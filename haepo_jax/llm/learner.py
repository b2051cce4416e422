"""What a fine-tuning run computes: completions, their log-probabilities, updates. No disk, no clock."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.rl import algo_core, common

from haepo_jax.llm.folder import ModelFolder, load_model
from haepo_jax.llm.settings import LearnerConfig
from haepo_jax.losses import dpo_loss, grpo_loss, haepo_loss
from haepo_jax.losses.numerics import k3

LORA_MODULES = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

Array = Any  # jax's or NumPy's


class Batch(NamedTuple):
    """Completions of a batch of prompts, those of one prompt adjacent. B completions of at most T tokens.

    Attributes:
      prompt_ids: (B, P), padded at the left.
      completion_ids: (B, T), padded at the right.
      mask: (B, T), whether the token belongs to the completion, its end token included.
      rewards: (B,).
      behaviour: (B, T), log-probabilities of the tokens under the policy that sampled them; unknown while `fresh`.
      reference: (B, T), those under the initial model; None where the loss does not need them.
      fresh: (B,), whether the current policy is still the one that sampled.
    """

    prompt_ids: Array
    completion_ids: Array
    mask: Array
    rewards: Array
    behaviour: Array
    reference: Array | None
    fresh: Array


class State(NamedTuple):
    """What training changes: the trained parameters, and the optimiser's state."""

    params: Any
    opt_state: Any


class Completions(NamedTuple):
    """What was sampled: the texts, and the first three arrays of `Batch`."""

    texts: list[str]
    prompt_ids: Array
    completion_ids: Array
    mask: Array


class Learner:
    """Samples completions and learns from them.

    Args:
      config: the settings.
      folder: the model's.
      tokenizer: that belongs to it.
      prompt_length: tokens of the longest prompt. All batches have one shape, so each program is compiled once.
      offline: whether completions are given, not sampled. The initial model then stands in for the policy they come from.
    """

    def __init__(
        self, config: LearnerConfig, folder: ModelFolder, tokenizer: Any, prompt_length: int, offline: bool = False
    ) -> None:
        self.config, self._prompt_length, self._offline = config, prompt_length, offline
        # Every device along the axis that weights and batches are sharded over.
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1), ("fsdp", "tp"))
        with self.mesh:
            base = load_model(folder, self.mesh)
            self.model = base if config.lora_rank is None else with_lora(base, config.lora_rank, config.seed)
        size = prompt_length + config.max_new_tokens
        cache = CacheConfig(size, folder.config.num_layers, folder.config.num_kv_heads, folder.config.head_dim)
        self.sampler = Sampler(self.model, tokenizer, cache)
        self._ids = {"pad_id": self.sampler.tokenizer.pad_id(), "eos_id": self.sampler.tokenizer.eos_id()}
        # In variables of their own, because the sampler's model is given new arrays after every step.
        trained = nnx.Param if config.lora_rank is None else nnx.LoRAParam
        graph, params, *rest = nnx.split(self.model, trained, ...)
        params, self._rest = _copied((params, rest))
        # In float32, whatever the model's dtype: a small step of the optimiser would be lost in bfloat16.
        self._dtypes = jax.tree.map(lambda x: x.dtype, params)
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
        needed = config.kl_coef or config.algo == "dpo" or offline
        reference: Any = _copied(nnx.split(base)) if needed else (None, None)
        reference_graph, self._reference = reference
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        optimizer = optax.chain(clip, optax.adam(config.learning_rate))
        # Everything stays where it is put here, so that no program is compiled for another layout.
        whole = NamedSharding(self.mesh, PartitionSpec())
        self._place = NamedSharding(self.mesh, PartitionSpec("fsdp" if self.rows % self.mesh.size == 0 else None))
        state = State(params, optimizer.init(params))
        layout = jax.tree.map(lambda x: x.sharding if isinstance(x.sharding, NamedSharding) else whole, state)
        self.state: State = jax.device_put(state, layout)
        of_tokens = functools.partial(
            token_log_probs, temperature=config.sampling_temperature, pad_id=self._ids["pad_id"],
            share=completions_per_prompt(config, prompt_length, self.rows, self.mesh.size),
        )  # fmt: skip
        self._update = make_update(graph, self._dtypes, optimizer, config, of_tokens, (layout, self._place, whole))

        @jax.jit
        def reference_log_probs(state: Any, *tokens: jax.Array) -> jax.Array:
            def log_probs(some: list[jax.Array]) -> jax.Array:
                return of_tokens(nnx.merge(reference_graph, state), *some)[0]

            split = [x.reshape(-1, min(self.rows, len(x)), x.shape[1]) for x in tokens]
            return jax.lax.map(log_probs, split).reshape(tokens[1].shape)

        self._reference_log_probs = reference_log_probs

    @property
    def rows(self) -> int:
        """Completions that are computed at a time."""
        return (self.config.micro_batch or self.config.prompts_per_step) * self.config.group_size

    def sample(self, prompts: Sequence[str], key: jax.Array | None) -> Completions:
        """A completion of each prompt: sampled, or the greedy one where `key` is None."""
        parts = []
        for start in range(0, len(prompts), self.rows):
            part = list(prompts[start : start + self.rows])
            count = len(part)
            output = self.sampler(
                part + [part[-1]] * (self.rows - count), max_generation_steps=self.config.max_new_tokens,
                max_prompt_length=self._prompt_length, temperature=self.config.sampling_temperature,
                top_p=None if key is None else 1.0,  # None is greedy
                seed=None if key is None else jax.random.fold_in(key, start),
            )  # fmt: skip
            tokens = self._padded(output.tokens[:count])
            parts.append((output.text[:count], output.padded_prompt_tokens[:count], *tokens))
        texts, *arrays = zip(*parts, strict=True)
        return Completions([text for some in texts for text in some], *map(np.concatenate, arrays))

    def given(self, prompts: Sequence[str], texts: list[str]) -> Completions:
        """Completions that are not sampled, one of each prompt, as `sample` returns those that are."""
        pad, length, ids = self._ids["pad_id"], self._prompt_length, map(self.sampler.tokenize, prompts)
        padded = [np.pad(row, (length - len(row), 0), constant_values=pad) for row in ids]
        tokens = [self.sampler.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return Completions(texts, np.array(padded, np.int32), *self._padded(tokens))

    def _padded(self, rows: Sequence[Any]) -> tuple[Array, Array]:
        """The tokens (B, T) and the mask of a `Batch`."""
        ids, limit = self._ids, self.config.max_new_tokens
        # The sampler cuts the end token off; a completion of `limit` tokens had none.
        tokens = [np.append(row, ids["eos_id"])[:limit] for row in rows]
        padded = [np.pad(row, (0, limit - len(row)), constant_values=ids["pad_id"]) for row in tokens]
        # By length, not by `!= pad`: where the tokenizer pads with its end token, the end counts.
        mask = np.arange(limit) < np.array([len(row) for row in tokens])[:, None]
        return np.array(padded, np.int32), mask

    def batch(self, completions: Completions, rewards: np.ndarray[Any, Any]) -> Batch:
        """What an update takes. The reference's log-probabilities are computed, once, where the loss needs them; those of
        the policy that sampled are left to the first update, which computes them anyway."""
        _, prompt_ids, completion_ids, mask = completions
        reference = None
        if self._reference is not None:
            with self.mesh:
                ids = jax.device_put((prompt_ids, completion_ids), self._place)
                reference = self._reference_log_probs(self._reference, *ids)
        fresh = np.full(len(mask), not self._offline)
        behaviour = reference if self._offline else np.zeros(mask.shape, np.float32)  # not known yet
        batch = Batch(prompt_ids, completion_ids, mask, rewards.astype(np.float32), behaviour, reference, fresh)
        return jax.device_put(batch, self._place)

    def blank(self) -> Batch:
        """A batch of the shapes of every batch."""
        count = self.config.prompts_per_step * self.config.group_size
        prompts, completions = (
            np.zeros((count, n), np.int32) for n in (self._prompt_length, self.config.max_new_tokens)
        )
        return self.batch(Completions([], prompts, completions, completions > 0), np.zeros(count))

    def learn(self, batches: list[Batch]) -> tuple[list[Batch], list[dict[str, jax.Array]]]:
        """`num_iterations` epochs over the batches, from the newest, which is the last, to the oldest. Returns the batches,
        now with the newest one's behaviour log-probabilities, and the metrics of each update."""
        batches = list(batches)
        metrics: list[dict[str, jax.Array]] = []
        with self.mesh:
            for _ in range(self.config.num_iterations):
                for place in reversed(range(len(batches))):
                    self.state, log_probs, found = self._update(*self.state, self._rest, batches[place])
                    if not metrics and not self._offline:
                        known = jax.device_put(np.zeros(len(log_probs), bool), self._place)
                        batches[place] = batches[place]._replace(behaviour=log_probs, fresh=known)
                    metrics.append(found)
        self.restore(self.state)
        return batches, metrics

    def restore(self, state: State) -> None:
        """Replaces the state, by a checkpoint's for instance."""
        self.state = state
        nnx.update(self.model, _copied(in_dtypes(state.params, self._dtypes)))


def in_dtypes(params: Any, dtypes: Any) -> Any:
    """The parameters as the model computes with them."""
    return jax.tree.map(lambda x, dtype: x.astype(dtype), params, dtypes)


def make_update(
    graph: Any,
    dtypes: Any,
    optimizer: optax.GradientTransformation,
    config: LearnerConfig,
    of_tokens: Callable[..., Any],
    layout: Any,
) -> Callable[[Any, Any, Any, Batch], tuple[State, jax.Array, dict[str, jax.Array]]]:
    """A compiled function of the parameters, the optimiser's state, the parameters that are not trained and a batch. With
    `of_tokens`, which is `token_log_probs`, it computes the new state, the tokens' log-probabilities before the update, (B, T),
    and metrics, sharded as `layout` says. The model computes with the parameters in `dtypes`. Gradients are accumulated over
    micro-batches; groups stay whole. With equal rewards in every group and no entropy bonus the state stays as it is: only a
    KL penalty has a gradient then, which Adam would scale to a whole step, even of rounding errors."""
    parts = config.prompts_per_step // (config.micro_batch or config.prompts_per_step)

    def loss_of(params: Any, rest: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, dict[str, jax.Array]]]:
        model = nnx.merge(graph, in_dtypes(params, dtypes), *rest)
        log_probs, logits = of_tokens(model, batch.prompt_ids, batch.completion_ids)
        entropies = algo_core.compute_entropy_from_logits(logits)
        loss, metrics = batch_loss(config, batch, log_probs, entropies)
        return loss, (jax.lax.stop_gradient(log_probs), metrics)

    @functools.partial(jax.jit, donate_argnames="opt_state", out_shardings=layout)
    def update(params: Any, opt_state: Any, rest: Any, batch: Batch) -> tuple[State, jax.Array, dict[str, jax.Array]]:
        def accumulate(total: Any, given: tuple[Batch, jax.Array]) -> tuple[Any, Any]:
            part, share = given
            grads, found = jax.grad(loss_of, has_aux=True)(params, rest, part)
            return jax.tree.map(lambda x, y: x + share * y, total, grads), found

        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        differs = jnp.ptp(batch.rewards.reshape(parts, -1, config.group_size), axis=2) > 0
        # The loss is a mean over groups; that of DPO over those with different rewards.
        counted = jnp.sum(differs, axis=1) if config.algo == "dpo" else jnp.ones(parts)
        shares = counted / jnp.maximum(jnp.sum(counted), 1)
        zeros = jax.tree.map(jnp.zeros_like, params)
        grads, (log_probs, metrics) = jax.lax.scan(accumulate, zeros, (split, shares))
        changes, new = optimizer.update(grads, opt_state, params)
        has_signal = differs.any() | bool(config.entropy_coef)
        weights = {"pairs": 1.0, "kl": 1 / parts, "entropy": 1 / parts}
        metrics = {name: jnp.sum(values * weights.get(name, shares)) for name, values in metrics.items()}
        metrics["grad_norm"] = jnp.where(has_signal, optax.tree.norm(grads), 0.0)
        updated = State(optax.apply_updates(params, changes), new)
        state = jax.tree.map(functools.partial(jnp.where, has_signal), updated, State(params, opt_state))
        return state, log_probs.reshape(batch.mask.shape), metrics

    return update


def batch_loss(
    config: LearnerConfig, batch: Batch, log_probs: jax.Array, entropies: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of `config.algo`, the mean over groups, and its metrics. The KL penalty, which DPO does without, is in all of
    them the k3 estimate of KL(current || reference) from tokens of the current policy. A kept batch has tokens of an older one,
    whose estimates have the importance weights min(1, current / behaviour): unweighted, those that the current policy has
    left would have by far the largest.

    Args:
      config: the settings.
      batch: the completions; while it is fresh, the behaviour policy is the current one.
      log_probs: (B, T), of the tokens under the policy being optimised.
      entropies: (B, T), of the tokens' distributions.
    """
    # Selected before anything is computed, so that what stands beside a completion reaches no gradient.
    log_probs = jnp.where(batch.mask, log_probs, 0.0)
    behaviour = jnp.where(batch.mask & ~batch.fresh[:, None], batch.behaviour, jax.lax.stop_gradient(log_probs))
    reference = log_probs if batch.reference is None else jnp.where(batch.mask, batch.reference, 0.0)
    drift = jax.lax.stop_gradient(jnp.exp(jnp.minimum(log_probs - behaviour, 0.0))) * k3(reference - log_probs)
    entropies = jnp.where(batch.mask, entropies if config.entropy_coef else jax.lax.stop_gradient(entropies), 0.0)
    rewards = batch.rewards.reshape(-1, config.group_size)

    def total(x: jax.Array) -> jax.Array:  # (groups, members)
        return jnp.sum(jnp.where(batch.mask, x, 0.0), axis=-1).reshape(rewards.shape)

    lengths = total(jnp.ones_like(log_probs))

    def mean(x: jax.Array) -> jax.Array:  # over a group's tokens
        return jnp.sum(total(x), axis=-1) / jnp.maximum(jnp.sum(lengths, axis=-1), 1)

    if config.algo in ("grpo", "gspo"):

        def time_first(x: jax.Array) -> jax.Array:  # (T, groups, members)
            return jnp.moveaxis(x.reshape(*rewards.shape, -1), -1, 0)

        loss, metrics = grpo_loss(
            time_first(log_probs), time_first(behaviour), rewards, time_first(batch.mask),
            ratio="trajectory" if config.algo == "gspo" else "step", clip_eps=config.clip_eps,
            entropy_coef=config.entropy_coef, policy_entropy=jnp.mean(mean(entropies)),
        )  # fmt: skip
        kl = jnp.mean(total(drift) / jnp.maximum(lengths, 1))
        loss += config.kl_coef * kl
        return loss, metrics | jax.lax.stop_gradient({"loss": loss, "kl": kl})

    # Subtracted token by token: the difference of two long sums would lose digits.
    if config.algo == "dpo":
        loss, metrics = dpo_loss(
            total(log_probs - reference), rewards, reference_log_likelihood=jnp.zeros_like(rewards), beta=config.beta,
            entropy_coef=config.entropy_coef, policy_entropy=mean(entropies),
        )  # fmt: skip
        return loss, metrics | jax.lax.stop_gradient({"kl": jnp.mean(mean(drift))})
    return haepo_loss(
        total(log_probs - behaviour if config.score.endswith("log_ratio") else log_probs), rewards, lengths=lengths,
        score="mean_likelihood" if config.score.startswith("mean") else "likelihood",  # of the ratios, too
        temperature=config.temperature, normalize=config.normalize, kl_coef=config.kl_coef,
        entropy_coef=config.entropy_coef, policy_entropy=mean(entropies), policy_kl=mean(drift),
    )  # fmt: skip


def completions_per_prompt(config: LearnerConfig, prompt_length: int, rows: int, devices: int) -> int:
    """How many of a group's completions share one copy of their prompt in `token_log_probs`: as many as leave every device
    its part of the rows and need no more memory for attention, which is quadratic in the length, than sequences of their own."""

    def attention(share: int) -> float:
        return (prompt_length + share * config.max_new_tokens) ** 2 / share

    shares = [n for n in range(1, config.group_size + 1) if config.group_size % n == 0]
    return max(n for n in shares if attention(n) <= attention(1) and (rows % devices or rows // n % devices == 0))


def token_log_probs(
    model: Any, prompt_ids: jax.Array, completion_ids: jax.Array, *, temperature: float, pad_id: int, share: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the completions' tokens, (B, T), and the logits, (B, T, V), at the temperature of the sampling.

    `share` adjacent completions have the same prompt. They are one sequence: the prompt once, then the completions, each at
    the positions after the prompt, of which a token sees the prompt and its own completion's earlier tokens. Logits are
    computed for the completions only.
    """
    sequences, length = len(prompt_ids) // share, completion_ids.shape[1]
    prompts = prompt_ids[::share]
    ids = jnp.concat([prompts, completion_ids.reshape(sequences, -1)], axis=1)
    real = prompts != pad_id
    known = jnp.pad(real, ((0, 0), (0, share * length)), constant_values=True)
    after = jnp.sum(real, axis=1, keepdims=True) + jnp.tile(jnp.arange(length), share)
    positions = jnp.concat([jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0), after], axis=1)
    order = jnp.arange(ids.shape[1])
    member = jnp.maximum(order - prompts.shape[1], -1) // length  # -1: of the prompt
    sees = (order[:, None] >= order) & ((member == -1) | (member[:, None] == member))
    model(ids, positions, None, known[:, None] & sees, output_hidden_states=True)  # its own logits are not used
    sown: Any = nnx.pop(model, nnx.Intermediate)
    (hidden,) = sown["all_hidden_states"].get_value()
    # A completion's first token is predicted where the prompt ends, the others where the one before them stands.
    ends, own = jnp.split(hidden[:, prompts.shape[1] - 1 :], [1], axis=1)
    own = own.reshape(sequences, share, length, -1)
    ends = jnp.broadcast_to(ends[:, None], (sequences, share, 1, own.shape[-1]))
    hidden = jnp.concat([ends, own[:, :, :-1]], axis=2).reshape(*completion_ids.shape, -1)
    logits = model.embedder.decode(hidden) if model.config.use_tied_embedding else model.lm_head(hidden)
    logits = logits.astype(jnp.float32) / temperature
    return common.selective_log_softmax(logits, completion_ids), logits


def with_lora(model: nnx.Module, rank: int, seed: int) -> nnx.Module:
    """A module that shares the model's weights and adds low-rank ones, which start at 0, to every projection."""
    import qwix

    provider = qwix.LoraProvider(module_path=LORA_MODULES, rank=rank, alpha=rank)  # of scale alpha / rank
    inputs = model.get_model_input()  # type: ignore[attr-defined]
    return qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(seed), **inputs)


def _copied(tree: Any) -> Any:
    """The same arrays in new variables."""
    return jax.tree.map(lambda x: x, tree)
