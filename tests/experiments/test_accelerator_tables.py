"""The count of what a compiled program runs, and the tables made of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

PROGRAM = """HloModule jit_f, is_scheduled=true

%fused_add (p0: f32[8], p1: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %p1 = f32[8]{0} parameter(1)
  ROOT %sum = f32[8]{0} add(%p0, %p1)
}

%fused_slice (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0.1 = f32[100,8]{1,0} parameter(0)
  %p1.1 = s32[] parameter(1)
  ROOT %part = f32[1,8]{1,0} dynamic-slice(%p0.1, %p1.1, %p1.1), dynamic_slice_sizes={1,8}
}

%one (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%a)
}

%none (b: f32[8]) -> f32[8] {
  ROOT %b = f32[8]{0} parameter(0)
}

%gradient (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], /*index=1*/f32[8]{0}) parameter(0)
  %g = f32[8]{0} get-tuple-element(%s), index=1
  ROOT %f.1 = f32[8]{0} fusion(%g, %g), kind=kLoop, calls=%fused_add, metadata={op_name="jit(f)/transpose(jvp(net))/add"}
}

%steps (t: (s32[], f32[8], f32[100,8])) -> (s32[], f32[8], f32[100,8]) {
  %t = (s32[], f32[8]{0}, f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[8]{0} get-tuple-element(%t), index=1
  %rows = f32[100,8]{1,0} get-tuple-element(%t), index=2
  %row = f32[1,8]{1,0} fusion(%rows, %i), kind=kLoop, calls=%fused_slice
  %c = f32[8]{0} conditional(%i, %x, %x), true_computation=%one, false_computation=%none
  ROOT %out = (s32[], f32[8]{0}, f32[100,8]{1,0}) tuple(%i, %c, %rows)
}

%ends (u: (s32[], f32[8])) -> pred[] {
  %u = (s32[], f32[8]{0}) parameter(0)
  %j = s32[] get-tuple-element(%u), index=0
  %limit = s32[] constant(7)
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %w.1 = (s32[], f32[8]{0}, f32[100,8]{1,0}) while(%x.1), condition=%ends, body=%steps, backend_config={"known_trip_count":{"n":"32"}}
  %w.2 = (s32[], f32[8]{0}) while(%x.1), condition=%ends, body=%gradient
  ROOT %f.2 = f32[8]{0} fusion(%x.1, %x.1), kind=kLoop, calls=%fused_add
}
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "benchmarks" / "accelerators"))
    return importlib.import_module


def test_a_program_is_counted_by_its_loops(module: Any) -> None:
    found = module("hlo").count(PROGRAM, 32)
    roles = {name: (role["turns"], role["kernels"], role["conditionals"]) for name, role in found["roles"].items()}
    # An environment step slices a row and may copy; a gradient step adds, seven times, which its condition says.
    assert roles == {"environment step": (32, 2, 1), "gradient step": (7, 1, 0), "outside": (1, 1, 0)}
    whole = found["whole"]
    assert (whole["kernels"], whole["branch_kernels"], whole["conditionals"]) == (32 * 2 + 7 + 1, 32, 32)
    # A slice reads and writes 32 bytes and an index of 4, a copy 64; a sum reads two times 32 and writes 32.
    assert whole["bytes"] == 32 * (32 + 32 + 4 + 64) + 8 * 96
    assert whole["flops"] == 8 * 8


def test_the_page_holds_the_tables_of_what_was_compiled(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = module("report")
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    tables, text = importlib.import_module("tables"), report.DOCUMENT.read_text()
    for name, table in report.tables(
        *(json.loads(file.read_text()) for file in (report.RESULTS, report.MEASURED))
    ).items():
        assert f"<!-- table: {name} -->\n{table}\n" in text
        assert tables.filled_in(text, name, table) == text


def test_every_case_has_a_name_of_its_own_and_settings_that_exist(module: Any) -> None:
    import haepo_jax as hx

    cases = [case for part in module("cases").all_cases().values() for case in part.items()]
    assert len({name for name, _ in cases}) == len(cases)
    for _, case in cases:
        if case["side"] == "haepo_jax" and case["env"] == "CartPole-v1":
            getattr(hx, case["algo"])(case["env"], **case["settings"])
