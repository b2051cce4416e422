"""Tables of what was compiled and of what was measured: `python experiments/benchmarks/accelerators/report.py`.

They are made of `accelerators.json` and of `h100.json`, which holds what `lent.py` measured, and go into
`docs/accelerators.md`, below their marks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
RESULTS = REPOSITORY / "experiments" / "benchmarks" / "results" / "accelerators.json"
MEASURED = RESULTS.parent / "h100.json"
DOCUMENT = REPOSITORY / "docs" / "accelerators.md"
sys.path.insert(0, str(REPOSITORY / "experiments"))

from tables import fill_in, markdown  # noqa: E402

ASSUMED = {"kernel": 3.5, "kernel_in_graph": 1.5, "host": 12.0, "bandwidth": 2.4e12, "flops": 3.0e13}
"""What the estimate takes for granted of an H100: microseconds between one small kernel and the next, started by the host
and inside a CUDA graph; microseconds for the host to read a value and continue; bytes and float32 operations a second that
are reached, about 70% and 45% of the most that the card has."""


def estimated_microseconds(cost: dict[str, Any]) -> float:
    """Time of a count: what starting kernels takes or what they compute and move, whichever is longer, and the waiting."""
    outside = cost["kernels"] - cost["graph_kernels"]
    starting = ASSUMED["kernel"] * outside + ASSUMED["kernel_in_graph"] * cost["graph_kernels"]
    working = 1e6 * (cost["bytes"] / ASSUMED["bandwidth"] + cost["flops"] / ASSUMED["flops"])
    return max(starting, working) + ASSUMED["host"] * (cost["conditionals"] + cost["unknown_loops"])


def number(x: float) -> str:
    return f"{x:,.0f}"


def gpu_table(cases: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in cases.items():
        if "error" in found:
            rows.append([name, found["error"], *[""] * 9])
            continue
        whole, roles = found["whole"], found["roles"]
        each = [number(roles[role]["kernels"]) for role in ("environment step", "gradient step", "outside")]
        waits = number(whole["conditionals"] + whole["unknown_loops"])
        rows.append(
            [name, number(whole["kernels"]), *each, waits, f"{whole['graph_kernels'] / whole['kernels']:.0%}",
             f"{whole['bytes'] / 1e6:,.0f}", f"{whole['flops'] / 1e9:,.2f}", f"{found['memory']['temp'] / 1e6:,.0f}",
             f"{estimated_microseconds(whole) / 1e3:,.1f}"]
        )  # fmt: skip
    head = ["program", "kernels", "an environment step", "a gradient step", "outside", "host waits", "in graphs", "MB moved",
            "GFLOP", "temporary MB", "ms, estimated"]  # fmt: skip
    return markdown(head, rows)


def tpu_table(cases: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, found in cases.items():
        if "error" in found:
            rows.append([name, found["error"], *[""] * 5])
            continue
        whole, roles = found["whole"], found["roles"]
        each = [number(roles[role]["kernels"]) for role in ("environment step", "gradient step")]
        collectives = number(whole["collectives"])
        rows.append([name, number(whole["kernels"]), *each, str(count_loops(found["loops"])), collectives,
                     f"{found['memory']['temp'] / 1e6:,.1f}"])  # fmt: skip
    head = ["program", "operations", "an environment step", "a gradient step", "loops", "collectives", "temporary MB"]
    return markdown(head, rows)


def train_table(cases: dict[str, dict[str, Any]]) -> str:
    """Whether the whole of a training compiles, and in how many seconds."""
    targets = ("h100", "tpu", "tpu4")
    programs = list(dict.fromkeys(name.rsplit("/train/", 1)[0] for name in cases))
    rows = []
    for program in programs:
        row = [program]
        for target in targets:
            found = cases.get(f"{program}/train/{target}")
            row.append("not tried" if found is None else found.get("error") or f"{found['compile_seconds']:.0f} s")
        rows.append(row)
    return markdown(["program", "H100", "TPU v5e", "4 x TPU v5e, sharded"], rows)


def measured_table(rows: list[dict[str, Any]]) -> str:
    """Updates on a GPU; estimates are of the commit that was measured, so they are stored beside the measurements."""
    cells = [
        [f"{'rejax ' if row['side'] == 'rejax' else ''}{row['algo']}", number(row["size"]),
         number(row.get("configurations", 1)), f"{1e3 * row['seconds']:.1f}",
         f"{1e3 * row['estimated_seconds']:.1f}" if "estimated_seconds" in row else "",
         f"{row['steps_per_second'] / 1e6:,.2f}", number(row["peak_bytes"] / 1e6)]
        for row in rows
        if "seconds" in row
    ]  # fmt: skip
    head = ["program", "environments", "configurations", "ms, measured", "ms, estimated", "million steps/s", "peak MB"]
    return markdown(head, cells)


def count_loops(loops: list[Any]) -> int:
    return sum(1 + count_loops(loop["loops"]) for loop in loops)


def tables(found: dict[str, Any], measured: dict[str, Any]) -> dict[str, str]:
    """Each table as Markdown, by the name of its mark, from the two files."""
    cases = found["cases"]
    steps = {name: case for name, case in cases.items() if case["case"]["program"] == "train_step"}
    return {
        "h100": gpu_table(
            {name.removesuffix("/h100"): case for name, case in steps.items() if case["case"]["target"] == "h100"}
        ),
        "tpu": tpu_table({name: case for name, case in steps.items() if case["case"]["target"] != "h100"}),
        "train": train_table({name: case for name, case in cases.items() if case["case"]["program"] == "train"}),
        "measured": measured_table(measured["rows"]),
    }


if __name__ == "__main__":
    for name, table in tables(json.loads(RESULTS.read_text()), json.loads(MEASURED.read_text())).items():
        fill_in(DOCUMENT, name, table)
