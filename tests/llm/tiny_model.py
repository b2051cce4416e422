"""Makes a model folder as one would download it: a tokenizer and a small model, both trained on English text.

The text is that of Python's own help topics, which comes with the interpreter.
"""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.flax
import tokenizers
import transformers
from flax import nnx

from haepo_jax.llm import folder as folders

VOCABULARY = 300
END, PAD = "<|end|>", "<|pad|>"


def text() -> str:
    topics: dict[str, str] = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def make_tokenizer(out: Path, vocabulary: int = VOCABULARY, pad: str = PAD, others: Sequence[str] = ()) -> Any:
    """Trains a byte-level tokenizer and writes it into the folder."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD, *others],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(text().splitlines(), trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=pad)
    tokenizer.save_pretrained(out)
    return tokenizer


def config_json(model_type: str = "qwen2", **changes: Any) -> dict[str, Any]:
    architecture = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[model_type]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": VOCABULARY + 4,  # as in real models: a few more rows than tokens
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "tie_word_embeddings": model_type != "llama",
        "torch_dtype": "float32",
    } | changes


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model under its Hugging Face name, with its shape there: (out, in) for a projection."""
    width, hidden, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "self_attn.q_proj.weight": (query, width),
            "self_attn.k_proj.weight": (key, width),
            "self_attn.v_proj.weight": (key, width),
            "self_attn.o_proj.weight": (width, query),
            "mlp.gate_proj.weight": (hidden, width),
            "mlp.up_proj.weight": (hidden, width),
            "mlp.down_proj.weight": (width, hidden),
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
        }
        if config["model_type"] == "qwen2":
            parts |= {f"self_attn.{name}_proj.bias": (size,) for name, size in (("q", query), ("k", key), ("v", key))}
        if config["model_type"] == "qwen3":
            parts |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in parts.items()}
    return shapes


def make_folder(
    out: Path, model_type: str = "qwen2", *, steps: int = 0, shards: int = 1, dtype: Any = np.float32, **changes: Any
) -> Path:
    """Writes a folder with random weights, trained for `steps` on the text."""
    out.mkdir(parents=True)
    config = config_json(model_type, **changes)
    (out / "config.json").write_text(json.dumps(config))
    make_tokenizer(out)
    rng = np.random.default_rng(0)
    tensors = {
        name: np.ones(shape, np.float32) if "norm" in name else 0.08 * rng.standard_normal(shape, np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    names = sorted(tensors)
    for shard in range(shards):
        part = {name: jnp.asarray(tensors[name], dtype) for name in names[shard::shards]}
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        safetensors.flax.save_file(part, out / file, metadata={"format": "pt"})
    if steps:
        folder = folders.read_folder(str(out))
        model = folders.load_model(folder, mesh())
        pretrain(model, folders.load_tokenizer(folder), steps)
        folders.save_model(model, folder, out)
    return out


def mesh() -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def logits(model: nnx.Module, tokens: jax.Array) -> jax.Array:
    """(B, T) -> (B, T, V)."""
    length = tokens.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (*tokens.shape, length))
    found: jax.Array = model(tokens, positions, None, mask)[0]
    return found


def pretrain(model: nnx.Module, tokenizer: Any, steps: int, batch: int = 16, length: int = 32) -> None:
    """Next-token training on lines of the text, each followed by the end token."""
    stream = np.array([i for line in text().splitlines()[:4000] for i in [*tokenizer.encode(line), 0]], np.int32)
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, tokens: jax.Array) -> jax.Array:
        def loss(model: nnx.Module) -> jax.Array:
            return optax.softmax_cross_entropy_with_integer_labels(logits(model, tokens[:, :-1]), tokens[:, 1:]).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    rng = np.random.default_rng(0)
    for _ in range(steps):
        starts = rng.integers(0, len(stream) - length - 1, batch)
        step(model, optimizer, jnp.asarray(stream[starts[:, None] + np.arange(length + 1)]))
