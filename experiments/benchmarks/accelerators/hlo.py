"""Counts what a compiled program runs, from the text of its optimised HLO.

On a GPU each instruction of a scheduled computation that is not mere bookkeeping is a kernel (or a copy), and they run one
after another; a loop's body runs as often as its known trip count says. A conditional, and a loop whose trip count is not
known, make the host read a value from the device and wait.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

BOOKKEEPING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency", "domain",
}  # fmt: skip
"""Instructions that run nothing."""
HALVES = ("-done", "-update")
"""The second half of an asynchronous instruction, whose first half ends in -start."""
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
TRANSFERS = ("infeed", "outfeed", "send", "recv")
BYTES = {"pred": 1, "token": 0, "opaque": 0}
NO_ARITHMETIC = BOOKKEEPING | {
    "copy", "reshape", "broadcast", "transpose", "slice", "concatenate", "pad", "dynamic-slice", "dynamic-update-slice",
    "iota", "gather", "scatter", "convert", "select", "reverse", "dot", "convolution", "fusion", "custom-call", "sort",
}  # fmt: skip
MIN_GRAPH = 5
"""Kernels in a row from which XLA makes a command buffer (a CUDA graph): its default `xla_gpu_graph_min_graph_size`."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    attributes: str
    argument: str = ""  # of a parameter: its position

    @functools.cached_property
    def op_name(self) -> str:
        """What JAX called it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None

    @property
    def called(self) -> list[str]:
        """The computations that a conditional may run."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if listed:
            return [name.strip().lstrip("%") for name in listed[1].split(",")]
        return [name for side in ("true", "false") if (name := self.attribute(f"{side}_computation"))]

    @property
    def trip_count(self) -> int | None:
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.attributes)
        return int(found[1]) if found else None


Program = dict[str, list[Instruction]]


def parse(text: str) -> tuple[Program, str]:
    """The computations of an HLO module, and the name of the one it starts with."""
    program: Program = {}
    entry, current = "", None
    for line in text.splitlines():
        if line.endswith("{") and (line.startswith("%") or line.startswith("ENTRY")):
            name = re.split(r"[ (]", line.removeprefix("ENTRY").strip().lstrip("%"), maxsplit=1)[0]
            entry = name if line.startswith("ENTRY") else entry
            current = program.setdefault(name, [])
        elif current is not None and " = " in line:
            current.append(_instruction(line))
    return program, entry


def _instruction(line: str) -> Instruction:
    name, rest = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape, rest = _group(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, rest = rest.strip().split("(", 1)
    inside, attributes = _group("(" + rest)
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) if opcode != "constant" else ()
    return Instruction(name.lstrip("%"), opcode, shape, operands, attributes, inside[1:-1])


def _group(text: str) -> tuple[str, str]:
    """A text that begins with a parenthesis, cut after the one that closes it."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"unbalanced: {text[:80]}")


def arrays(shape: str) -> list[tuple[str, tuple[int, ...]]]:
    """Element type and dimensions of each array of a shape."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", re.sub(r"/\*.*?\*/|\{[^}]*\}", "", shape))
    return [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in found]


def size_in_bytes(shape: str) -> int:
    total = 0
    for kind, dims in arrays(shape):
        width = re.search(r"\d+", kind)
        total += math.prod(dims) * (BYTES[kind] if kind in BYTES else max(int(width[0]) // 8, 1) if width else 1)
    return total


@dataclasses.dataclass
class Cost:
    """Of one run of a computation, its loops included."""

    kernels: float = 0
    branch_kernels: float = 0  # of `kernels`, inside the larger branch of a conditional
    graph_kernels: float = 0  # of `kernels`, in a row of MIN_GRAPH or more, which XLA would record in a command buffer
    graphs: float = 0
    conditionals: float = 0
    unknown_loops: float = 0  # turns of loops without a known trip count; one turn is counted for each
    bytes: float = 0
    flops: float = 0
    collectives: float = 0
    sorts: float = 0
    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Cost, times: float = 1, branch: bool = False) -> None:
        for field in dataclasses.fields(self):
            if field.name == "kinds":
                self.kinds.update({kind: n * times for kind, n in other.kinds.items()})
            else:
                setattr(self, field.name, getattr(self, field.name) + times * getattr(other, field.name))
        if branch:
            self.branch_kernels += times * (other.kernels - other.branch_kernels)

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "kinds": dict(self.kinds.most_common())}


@dataclasses.dataclass
class Loop:
    """A while loop: what one turn of its body runs itself, and the loops inside it."""

    trips: int | None
    own: Cost
    loops: list[Loop]
    differentiates: bool  # its own instructions are part of a gradient

    def as_json(self) -> dict[str, Any]:
        return {
            "trips": self.trips, "differentiates": self.differentiates, "own": self.own.as_json(),
            "loops": [loop.as_json() for loop in self.loops],
        }  # fmt: skip

    @property
    def turn(self) -> Cost:
        """One turn, its inner loops included."""
        total = Cost()
        total.add(self.own)
        for loop in self.loops:
            total.add(loop.whole)
        return total

    @property
    def whole(self) -> Cost:
        total = Cost()
        total.add(self.turn, self.trips or 1)
        if self.trips is None:
            total.unknown_loops += 1
        return total


class Counter:
    """Costs of the computations of one program."""

    def __init__(self, text: str) -> None:
        self.program, self.entry = parse(text)

    def root(self) -> Loop:
        """The whole program as a loop of one turn."""
        return self.computation(self.entry, 1)

    def computation(self, name: str, trips: int | None = 1) -> Loop:
        instructions = self.program[name]
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        own, loops, in_a_row, differentiates = Cost(), [], 0, False

        def end_row() -> None:
            nonlocal in_a_row
            if in_a_row >= MIN_GRAPH:
                own.graph_kernels += in_a_row
                own.graphs += 1
            in_a_row = 0

        for instruction in instructions:
            opcode = instruction.opcode
            if opcode in BOOKKEEPING or opcode.endswith(HALVES):
                continue
            if opcode == "while":
                end_row()
                body = instruction.attribute("body")
                assert body is not None
                loops.append(self.computation(body, instruction.trip_count or self._counted(instruction)))
            elif opcode == "conditional":
                end_row()
                branches = [self.computation(branch) for branch in instruction.called]
                own.conditionals += 1
                largest = max(branches, key=lambda branch: branch.whole.kernels)
                own.add(largest.whole, branch=True)
                differentiates |= any(branch.differentiates for branch in branches)
            elif opcode == "call":
                inner = self.computation(instruction.attribute("to_apply") or "")
                own.add(inner.own)
                loops += inner.loops
                differentiates |= inner.differentiates
            else:
                in_a_row += 1
                own.add(self._kernel(instruction, shapes))
                differentiates |= "transpose(jvp" in instruction.op_name
                if opcode in TRANSFERS or opcode == "sort":
                    end_row()
        end_row()
        return Loop(trips, own, loops, differentiates)

    def _counted(self, loop: Instruction) -> int | None:
        """The trip count of a loop that does nothing but count from 0 to a constant, where XLA does not say it itself."""
        condition = self.program[loop.attribute("condition") or ""]
        for instruction in condition:
            if instruction.opcode == "fusion":
                condition = condition + self.program[instruction.attribute("calls") or ""]
        working = [i for i in condition if i.opcode not in BOOKKEEPING | {"fusion"}]
        limits = {i.argument for i in condition if i.opcode == "constant"}
        if len(working) == 1 and working[0].attribute("direction") == "LT" and len(limits) == 1:
            return int(limits.pop())
        return None

    def _kernel(self, instruction: Instruction, shapes: dict[str, str]) -> Cost:
        opcode = instruction.opcode
        inner = (
            self.program.get(instruction.attribute("calls") or "", []) if opcode.startswith(("fusion", "async")) else []
        )
        opcodes = {i.opcode for i in inner} | {opcode}
        kind = instruction.attribute("custom_call_target") or opcode
        if opcode == "custom-call":
            kind = (re.search(r'custom_call_target="([^"]*)"', instruction.attributes) or ["", "custom-call"])[1]
        elif opcode == "fusion":
            kind = f"fusion {instruction.attribute('kind')}"
        for part in ("sort", "dynamic-update-slice", "scatter", "reduce", "concatenate", "convolution", "dot"):
            if part in opcodes and opcode == "fusion":
                kind += f" {part}"
                break
        return Cost(
            kernels=1,
            bytes=self._bytes(instruction, inner, shapes),
            flops=self._flops(instruction, inner, shapes),
            collectives=float(opcode.startswith(COLLECTIVES)),
            sorts=float("sort" in opcodes),
            kinds=collections.Counter({kind: 1}),
        )

    def _bytes(self, instruction: Instruction, inner: list[Instruction], shapes: dict[str, str]) -> float:
        """Read and written; of an array that is only sliced, gathered from or updated in place, that part."""
        inside = {i.name: i.shape for i in inner}
        total = 0.0
        numbers = {int(i.argument): i for i in inner if i.opcode == "parameter"}
        for position, operand in enumerate(instruction.operands):
            whole = size_in_bytes(shapes.get(operand, ""))
            if position in numbers:
                users = _users(numbers[position].name, inner)
                if users and all(u.opcode in ("dynamic-slice", "gather", "slice") for u in users):
                    whole = min(whole, sum(size_in_bytes(u.shape) for u in users))
                elif users and all(u.opcode == "dynamic-update-slice" for u in users):
                    whole = 0
            total += whole
        updates = [i for i in inner if i.opcode == "dynamic-update-slice"]
        if updates:
            # XLA updates in place: the part is written, and nothing else of the array.
            written = sum(size_in_bytes(inside.get(i.operands[1], "")) for i in updates)
            total += min(written, size_in_bytes(instruction.shape))
        else:
            shape = instruction.shape
            if instruction.opcode == "custom-call" and len(arrays(shape)) > 1:
                shape = shape.rsplit("s8[", 1)[0]  # less its workspace
            total += size_in_bytes(shape)
        return total

    def _flops(self, instruction: Instruction, inner: list[Instruction], shapes: dict[str, str]) -> float:
        if instruction.opcode == "custom-call":
            if "matmul" in instruction.attributes or "gemm" in instruction.attributes:
                out = math.prod(arrays(instruction.shape)[0][1])
                left = arrays(shapes.get(instruction.operands[0], ""))
                contracted = re.search(r'"lhs_contracting_dimensions":\["(\d+)"', instruction.attributes)
                if left and contracted:
                    return 2.0 * out * left[0][1][int(contracted[1])]
            return 0.0
        total = 0.0
        inside = {i.name: i.shape for i in inner} | shapes
        for i in inner or [instruction]:
            size = sum(math.prod(dims) for _, dims in arrays(i.shape))
            if i.opcode == "dot":
                dims = arrays(inside.get(i.operands[0], ""))[0][1]
                contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
                axes = [int(n) for n in contracted[1].split(",") if n] if contracted else []
                total += 2.0 * size * math.prod(dims[axis] for axis in axes)
            elif i.opcode in ("reduce", "reduce-window"):
                total += sum(math.prod(dims) for _, dims in arrays(inside.get(i.operands[0], "")))
            elif i.opcode == "convolution":
                total += 2.0 * size * math.prod(arrays(inside.get(i.operands[1], "x[1]"))[0][1][:-1])
            elif i.opcode not in NO_ARITHMETIC:
                total += size
        return total


def _users(
    name: str, instructions: list[Instruction], through: tuple[str, ...] = ("bitcast", "reshape")
) -> list[Instruction]:
    """What uses an array, looking through what only renames it."""
    users = []
    for instruction in instructions:
        if name in instruction.operands:
            users += _users(instruction.name, instructions) if instruction.opcode in through else [instruction]
    return users


ROLES = ("environment step", "gradient step", "outside")


def by_role(root: Loop, num_steps: int | None) -> dict[str, dict[str, Any]]:
    """Costs of one environment step, of one gradient step, and of what an update runs outside of both, with the number of
    turns of each.

    A gradient step is a turn of an outermost loop whose own instructions differentiate. An environment step is a turn of
    any other loop of `num_steps` turns, or, where None, of a loop without a known trip count: what is computed by a loop
    over the same steps after the rollout counts to them.
    """
    totals = {role: Cost() for role in ROLES}
    turns: dict[str, float] = {"environment step": num_steps or 1, "gradient step": 0, "outside": 1}

    def visit(loop: Loop, times: float) -> None:
        totals["outside"].add(loop.own, times)
        for inner in loop.loops:
            if inner.differentiates:
                turns["gradient step"] += times * (inner.trips or 1)
                totals["gradient step"].add(inner.whole, times)
            elif inner.trips == num_steps:
                totals["environment step"].add(inner.whole, times)
            else:
                visit(inner, times * (inner.trips or 1))

    visit(root, 1)
    found = {}
    for role, total in totals.items():
        one = Cost()
        one.add(total, 1 / max(turns[role], 1))
        found[role] = {"turns": turns[role], **one.as_json()}
    return found


def loops_inside(root: Loop) -> list[int | None]:
    """Trip counts of the loops inside gradient steps."""

    def within(loop: Loop) -> list[int | None]:
        return [trips for inner in loop.loops for trips in [inner.trips, *within(inner)]]

    def visit(loop: Loop) -> list[int | None]:
        found: list[int | None] = []
        for inner in loop.loops:
            found += within(inner) if inner.differentiates else visit(inner)
        return found

    return visit(root)


def count(text: str, num_steps: int | None) -> dict[str, Any]:
    """Everything that is counted of a program's text."""
    root = Counter(text).root()
    return {
        "whole": root.whole.as_json(), "roles": by_role(root, num_steps), "loops": shape_of(root),
        "loops_in_gradient_step": loops_inside(root),
        "callbacks": len(re.findall(r"custom_call_target=\"[^\"]*(?:callback|CallbackLowering)[^\"]*\"", text)),
        "transfers": len(re.findall(r"= [^=]* (?:infeed|outfeed|send|recv)\(", text)),
        "wide": len(re.findall(r"\b(?:f64|s64|u64|c128)\[\d", text)),
    }  # fmt: skip


def shape_of(loop: Loop) -> list[Any]:
    """Trip counts and kernels of a turn of the nested loops."""
    return [{"trips": inner.trips, "kernels": inner.turn.kernels, "loops": shape_of(inner)} for inner in loop.loops]


if __name__ == "__main__":
    import sys

    print(json.dumps(count(Path(sys.argv[1]).read_text(), int(sys.argv[2]) or None), indent=1))
