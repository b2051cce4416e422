"""Compiles for an H100 and for TPU v5e on a machine that has neither, and keeps what was counted.

    python experiments/benchmarks/accelerators/run.py --python VENV/bin/python --parts base tpu

The plugins come from `requirements.txt`, about a gigabyte, in a virtual environment that nothing else needs; rejax has
another (`--rejax-python`). Each case is a process of its own, one after the other. What is there already is not compiled
again, unless with `--again`. `report.py` makes tables of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
RESULTS = REPOSITORY / "experiments" / "benchmarks" / "results" / "accelerators.json"

sys.path.insert(0, str(HERE))

from cases import all_cases  # noqa: E402


def answer(python: str, case: dict[str, Any], limit: float) -> dict[str, Any]:
    """What `worker.py` found, or why it found nothing."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("JAX_") and key != "PYTHONPATH"}
    code = {} if case["side"] == "rejax" else {"PYTHONPATH": os.environ.get("HAEPO_JAX_CODE", str(REPOSITORY))}
    command = [python, str(HERE / "worker.py"), json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=kept | code)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": said[-1][:300] if said else f"exit status {done.returncode}"}
    return dict(json.loads(lines[-1]))


def main() -> None:
    parts = all_cases()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter with the plugins and this package's needs"
    )
    parser.add_argument("--rejax-python", help="interpreter with rejax and the plugins; without it rejax is left out")
    parser.add_argument("--parts", nargs="+", choices=parts, default=["base", "tpu"])
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names begin so")
    parser.add_argument("--again", action="store_true", help="compile what is there already, too")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one case")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = json.loads(options.output.read_text()) if options.output.exists() else {"cases": {}}
    commit = subprocess.run(
        ["git", "-C", REPOSITORY, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    for part in options.parts:
        for name, case in parts[part].items():
            if options.only and not name.startswith(tuple(options.only)):
                continue
            if name in found["cases"] and not options.again:
                continue
            python = options.rejax_python if case["side"] == "rejax" else options.python
            if python is None:
                continue
            begin = time.perf_counter()
            result = answer(python, case, options.limit)
            found["cases"][name] = {"part": part, "case": case, "commit": commit.stdout.strip(), **result}
            options.output.write_text(
                json.dumps(found, indent=None, separators=(",", ":")).replace('},"', '},\n"') + "\n"
            )
            kernels = result.get("whole", {}).get("kernels", result.get("error"))
            print(f"{name}: {kernels} ({time.perf_counter() - begin:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
