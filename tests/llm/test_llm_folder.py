"""Model folders: what is loaded is what is written, and what does not fit is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="needs the extra llm")

import optax
import safetensors.flax
from flax import nnx

from haepo_jax.llm import folder as folders
from haepo_jax.runner.config import ConfigError
from tests.llm import tiny_model

TOKENS = jnp.array([[5, 40, 100, 7, 220, 31, 0, 9]])


def tensors_of(path: Path) -> dict[str, jax.Array]:
    return {
        name: tensor for file in path.glob("*.safetensors") for name, tensor in safetensors.flax.load_file(file).items()
    }


def load(path: Path) -> tuple[folders.ModelFolder, nnx.Module]:
    folder = folders.read_folder(str(path))
    return folder, folders.load_model(folder, tiny_model.mesh())


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("qwen2", {}), ("qwen3", {"dtype": jnp.bfloat16}), ("llama", {"shards": 2}), ("llama", {"head_dim": 16})],
)
def test_a_folder_survives_loading_and_saving(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    source = tiny_model.make_folder(tmp_path / "in", model_type, **options)
    folder, model = load(source)
    folders.save_model(model, folder, tmp_path / "out")
    before, after = tensors_of(source), tensors_of(tmp_path / "out")
    assert {file.name for file in source.iterdir()} == {file.name for file in (tmp_path / "out").iterdir()}
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        np.testing.assert_array_equal(tensor, after[name])
    again = load(tmp_path / "out")[1]
    np.testing.assert_array_equal(tiny_model.logits(model, TOKENS), tiny_model.logits(again, TOKENS))


def test_weights_are_written_where_hugging_face_has_them(tmp_path: Path) -> None:
    """A projection is (out, in) there, heads outermost among its outputs."""
    folder, model = load(tiny_model.make_folder(tmp_path / "in"))
    layer: Any = model.layers[1]
    layer.attn.k_proj.w[...] = layer.attn.k_proj.w[...].at[3, 1, 5].set(7.0)
    layer.attn.o_proj.w[...] = layer.attn.o_proj.w[...].at[2, 6, 11].set(8.0)
    layer.mlp.down_proj.kernel[...] = layer.mlp.down_proj.kernel[...].at[50, 4].set(9.0)
    folders.save_model(model, folder, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert after["model.layers.1.self_attn.k_proj.weight"][1 * 8 + 5, 3] == 7.0
    assert after["model.layers.1.self_attn.o_proj.weight"][11, 2 * 8 + 6] == 8.0
    assert after["model.layers.1.mlp.down_proj.weight"][4, 50] == 9.0


def test_a_llama_is_a_qwen_2_without_biases(tmp_path: Path) -> None:
    """Whose rotary base is the folder's, whose biases are 0, are not trained, and are not written."""
    shared = {"tie_word_embeddings": False, "rope_theta": 1e5}
    llama, qwen2 = (tiny_model.make_folder(tmp_path / name, name, **shared) for name in ("llama", "qwen2"))
    tensors = tensors_of(qwen2)
    biases = {name: jnp.zeros_like(tensor) for name, tensor in tensors.items() if name.endswith(".bias")}
    assert len(biases) == 6
    safetensors.flax.save_file(tensors_of(llama) | biases, qwen2 / "model.safetensors")
    folder, model = load(llama)
    np.testing.assert_array_equal(tiny_model.logits(model, TOKENS), tiny_model.logits(load(qwen2)[1], TOKENS))
    (tmp_path / "other").mkdir()
    other = tiny_model.make_folder(tmp_path / "other" / "llama", "llama", tie_word_embeddings=False, rope_theta=1e4)
    assert abs(tiny_model.logits(model, TOKENS) - tiny_model.logits(load(other)[1], TOKENS)).max() > 1e-4
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    grads = nnx.jit(nnx.grad(lambda model: tiny_model.logits(model, TOKENS).std()))(model)
    optimizer.update(model, grads)
    attention: Any = model.layers[0].attn  # type: ignore[attr-defined]
    assert not any(jnp.any(bias[...]) for bias in (attention.q_bias, attention.k_bias, attention.v_bias))
    assert not any("bias" in path for path, _ in nnx.to_flat_state(grads))
    folders.save_model(model, folder, tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert after.keys() == tensors_of(llama).keys() and not any("bias" in name for name in after)
    moved = (
        after["model.layers.0.self_attn.q_proj.weight"] - tensors_of(llama)["model.layers.0.self_attn.q_proj.weight"]
    )
    assert jnp.max(jnp.abs(moved)) > 0.05


def test_lora_is_added_to_the_weights(tmp_path: Path, model_folder: Path) -> None:
    from haepo_jax.llm.learner import with_lora

    folder, model = load(model_folder)
    adapted: Any = with_lora(model, 3, 0)
    np.testing.assert_allclose(tiny_model.logits(adapted, TOKENS), tiny_model.logits(model, TOKENS), atol=1e-5)
    key = jax.random.key(0)
    for _, variable in nnx.to_flat_state(nnx.state(adapted, nnx.LoRAParam)):
        variable[...] = 0.1 * jax.random.normal(key, variable.shape)
    wanted = tiny_model.logits(adapted, TOKENS)
    assert jnp.max(jnp.abs(wanted - tiny_model.logits(model, TOKENS))) > 0.1
    folders.save_model(adapted, folder, tmp_path / "out")
    np.testing.assert_allclose(tiny_model.logits(load(tmp_path / "out")[1], TOKENS), wanted, atol=1e-4)


def test_mixed_dtypes_are_read_right(tmp_path: Path) -> None:
    """A file may hold tensors of several."""
    source = tiny_model.make_folder(tmp_path / "in")
    tensors = tensors_of(source)
    wanted = tiny_model.logits(load(source)[1], TOKENS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(jnp.bfloat16)
    safetensors.flax.save_file(tensors, source / "model.safetensors")
    np.testing.assert_array_equal(tiny_model.logits(load(source)[1], TOKENS), wanted)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2", {"rope_theta": 5e5, "tie_word_embeddings": False}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 3e4}, "rms_norm_eps": 1e-2}),
        ("qwen3", {"head_dim": 16, "rms_norm_eps": 1e-2}),
        ("llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-2, "rope_theta": 1e5}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 16, "rope_theta": 1e4}),
    ],
)
def test_transformers_computes_the_same(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="transformers computes with PyTorch")
    import transformers

    folder, model = load(tiny_model.make_folder(tmp_path / "in", model_type, **changes))
    folders.save_model(model, folder, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        found = theirs(torch.tensor(np.asarray(TOKENS))).logits.numpy()
    np.testing.assert_allclose(tiny_model.logits(model, TOKENS), found, atol=1e-5)


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(values | changes))

    return edit


def drop(name: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        tensors = tensors_of(path)
        del tensors[name]
        safetensors.flax.save_file(tensors, path / "model.safetensors")

    return edit


def truncate(path: Path) -> None:
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: shutil.rmtree(path), "is not a directory"),
        (lambda path: (path / "config.json").unlink(), "has no readable config.json: No such file"),
        (lambda path: (path / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda path: (path / "model.safetensors").unlink(), "has no weights: there is no *.safetensors in it"),
        (truncate, "model.safetensors cannot be read"),
        (edit_config(model_type="bert"), "has model_type='bert'; there are: qwen2, qwen3, llama"),
        (edit_config(hidden_act="gelu"), "has hidden_act='gelu', but Tunix computes qwen2 with hidden_act=silu"),
        (edit_config(hidden_size="wide"), "has hidden_size='wide', which must be a positive number"),
        (edit_config(intermediate_size=65), "mlp.down_proj.weight has shape (32, 64), which is not what config.json"),
        (edit_config(num_hidden_layers=3), "the weights lack 12 tensors of the model, first layers.2."),
        (drop("model.layers.0.mlp.up_proj.weight"), "lack 1 tensors of the model, first layers.0.mlp.up_proj.kernel"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    path = tiny_model.make_folder(tmp_path / "model")
    damage(path)
    with pytest.raises(ConfigError) as raised:
        folders.read_folder(str(path))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_tokenizer_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = tiny_model.make_folder(tmp_path / "model")
    folder = folders.read_folder(str(path))
    tiny_model.make_tokenizer(path, vocabulary=400)
    with pytest.raises(ConfigError, match=r"does not fit: its tokens go up to \d+, but the model has 304"):
        folders.load_tokenizer(folder)
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="its tokenizer cannot be read"):
        folders.load_tokenizer(folder)
    (path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        folders.load_tokenizer(folder)


@pytest.mark.parametrize(
    ("changes", "pad"),
    [
        ({"unk_token": "<|pad|>"}, "<|pad|>"),  # as in SmolLM2, which pads with its end
        ({"bos_token": "<|begin|>", "pad_token": None}, "<|pad|>"),  # as in Llama 3
        ({"bos_token": "<|begin|>", "pad_token": "<|begin|>"}, "<|pad|>"),
        ({"pad_token": "<|begin|>", "chat_template": "<|begin|>"}, "<|pad|>"),
        ({"bos_token": "<|begin|>", "chat_template": "<|pad|>"}, tiny_model.END),
    ],
)
def test_no_token_of_the_prompts_is_taken_for_padding(tmp_path: Path, changes: dict[str, Any], pad: str) -> None:
    path = tiny_model.make_folder(tmp_path / "model", "llama")
    tokenizer = tiny_model.make_tokenizer(path, pad=tiny_model.END, others=["<|begin|>"])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(path)
    assert folders.load_tokenizer(folders.read_folder(str(path))).pad_token == pad


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        (
            "qwen3",
            {"rope_theta": 500000.0},
            "has rope_theta=500000.0, but Tunix computes qwen3 with rope_theta=1000000",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "has rope_type='llama3', but Tunix computes",
        ),
        (
            "llama",
            {"attention_bias": True},
            "has attention_bias=True, but Tunix computes llama with attention_bias=False",
        ),
    ],
)
def test_what_tunix_would_compute_otherwise_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
) -> None:
    path = tiny_model.make_folder(tmp_path / "model", model_type, **changes)
    with pytest.raises(ConfigError, match=message):
        folders.read_folder(str(path))
