"""Two tasks that SmolLM2-135M can almost do, with rewards that can be verified: data files, and reward functions."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ["Ada", "Bob", "Carla", "Dan", "Emma", "Felix", "Grace", "Henry", "Ines", "Jack", "Kim", "Leo", "Mia", "Noah"]
HELD_OUT = 64
MAX_NEW_TOKENS = {"sums": 5, "json": 14}
STEPS = {"sums": 24, "json": 8}
EVAL_STEPS = {"sums": 4, "json": 2}


def sums() -> Iterator[dict[str, Any]]:
    """A number below 100 and one below 10. The model can add them but hardly ever answers the question with a number: answering
    is learnt within 24 steps, while adding two numbers up to 20 was not."""
    for a, b in itertools.product(range(1, 100), range(1, 10)):
        yield {"prompt": f"Question: What is {a} + {b}?\nAnswer:", "answer": str(a + b)}


def records() -> Iterator[dict[str, Any]]:
    """A person's name and age as JSON with both keys, after an example with one. The model often stays with one, or copies."""
    for name, age in itertools.product(NAMES, range(20, 80, 3)):
        example = 'Zoe is 19.\nJSON of age: {"age": 19}\n'
        yield {"prompt": f"{example}{name} is {age}.\nJSON of name, age:", "answer": {"name": name, "age": age}}


TASKS = {"sums": sums, "json": records}


def with_pair(row: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """A row of `sums` with a right answer and one that is wrong by at most ten, in the form that the model answers in when it
    has learnt to."""
    right = int(row["answer"])
    wrong = generator.choice([n for n in range(max(0, right - 10), right + 11) if n != right])
    return {**row, "chosen": f" {right}\n\n", "rejected": f" {wrong}\n\n"}


def write(folder: Path) -> None:
    """`<task>.jsonl` and `<task>_held_out.jsonl`, which have no prompt in common, and of `sums` the former with preference
    pairs, `sums_pairs.jsonl`; always the same."""
    files: dict[str, list[dict[str, Any]]] = {}
    for task, rows in TASKS.items():
        shuffled = list(rows())
        random.Random(0).shuffle(shuffled)
        files |= {task: shuffled[HELD_OUT:], f"{task}_held_out": shuffled[:HELD_OUT]}
    generator = random.Random(0)
    files["sums_pairs"] = [with_pair(row, generator) for row in files["sums"]]
    for name, some in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def right_sum(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    """Whether the completion begins with the right number."""
    return [float(completion.split()[:1] == [right]) for completion, right in zip(completions, answer, strict=True)]


def right_json(prompts: list[str], completions: list[str], answer: list[dict[str, Any]]) -> list[float]:
    """0.2 for a first line that is a JSON object, the rest for the share of the keys that have the right value, and none
    for keys that were not asked for."""
    return [_judged(completion, right) for completion, right in zip(completions, answer, strict=True)]


def _judged(completion: str, right: dict[str, Any]) -> float:
    try:
        found = json.loads(completion.strip().split("\n")[0])
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    if not found.keys() <= right.keys():
        return 0.2
    return 0.2 + 0.8 * sum(found.get(key) == value for key, value in right.items()) / len(right)
