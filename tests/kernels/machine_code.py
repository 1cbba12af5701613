"""What a kernel's machine code does on its hot path: instructions, widths of loads and stores, barriers, MUFU and more.

The code is read as ``cuobjdump -sass`` prints it, block by block. Loops are found from the jumps alone; how often each
runs is declared (``launches.hot``), because machine code does not say. Of two sides of a branch the hot one is, in this
order: the one with more declared loops; the one with fewer instructions declared cold; the one that moves more bytes of
global memory; the one that moves them in fewer accesses; the longer one. A call is cold, and not followed: it leads to
a slow path, such as a division's.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", re.MULTILINE)
_TARGET = re.compile(r"\b0x([0-9a-f]+)\s*$")
_LAST = ("BRA", "EXIT", "RET", "BRX", "JMP", "JMX", "KILL")
# Multiply-adds of one mma instruction, by its shape.
_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "16832": 16 * 8 * 32}


class Facts(NamedTuple):
    """Of one warp on the hot path, each instruction as often as it runs."""

    instructions: float
    loads: float  # of global memory, and bytes a thread of each
    load_width: float
    stores: float
    store_width: float
    shared: float  # LDS and STS, and the cycles of a multiprocessor that they take: one for every four bytes a thread
    shared_cycles: float
    mufu: float
    fp32: float
    mma: float
    multiply_adds: float  # of the mma instructions, with 16-bit factors; TF32 ones count twice
    barriers: float
    # Runs of code that read global memory: what follows each of them waits for it. An atomic operation there whose
    # answer is wanted, and a fence, wait alone.
    waits: float
    local: float  # loads and stores of local memory: spilled registers
    cold: float  # instructions declared cold that no path avoids


_Trips = dict[int, tuple[int | None, float]]


class Instruction(NamedTuple):
    address: int
    conditional: bool
    opcode: str
    operands: str


class Block(NamedTuple):
    instructions: list[Instruction]
    followers: list[int]  # addresses of blocks; empty: the end of the kernel


def disassemble(cubin: Path, symbol: str | None = None) -> str:
    """The text of ``cuobjdump -sass``, of one kernel or of all. Triton brings the tool with it."""
    from triton.backends import nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    chosen = [] if symbol is None else ["-fun", symbol]
    return subprocess.run([str(tool), "-sass", *chosen, str(cubin)], capture_output=True, text=True, check=True).stdout


def facts_of(
    text: str,
    loops: Mapping[str, float | Sequence[float]] | None = None,
    trips: float | Sequence[float | None] = (),
    cold: str = "",
) -> Facts:
    """Facts of the hot path of one kernel.

    Args:
        text: its disassembly.
        loops: for an expression, how often what it finds in ``opcode operands`` runs between entering a loop that holds
            it and leaving that loop: whatever the compiler unrolls, the loop runs as often as that takes. Of several
            expressions the first one that finds something counts. One number: of neighbouring innermost loops the
            longest does all of it. Several: of the innermost loops that it is found in, by address. A loop that holds
            none runs once.
        trips: instead, how often each loop runs, by address; the others, and where it is None, once. A number: of each.
        cold: an expression for instructions off the usual path.

    Raises:
        ValueError: the text holds no instruction, a declared expression finds none on the hot path, or there are fewer
            loops than ``trips``.
    """
    blocks = _blocks(text)
    if not blocks:
        raise ValueError("no instruction in the disassembly")
    patterns = [re.compile(item) for item in loops or {}]
    path = _hot_path(blocks, patterns, _trips_of(blocks, patterns, list((loops or {}).values()), trips), cold)
    for number, pattern in enumerate(patterns):
        if not path[f"loop {number}"]:
            raise ValueError(f"no instruction on the hot path matches {pattern.pattern!r}")
    path["cold"] += path["cold inside"]
    return Facts(
        load_width=path["load bytes"] / path["loads"] if path["loads"] else 0.0,
        store_width=path["store bytes"] / path["stores"] if path["stores"] else 0.0,
        **{name: path[name] for name in Facts._fields if not name.endswith("_width")},
    )


def average(parts: Sequence[tuple[float, Facts]]) -> Facts:
    """Of (share, facts): the shares add up to 1."""
    sums = {
        name: sum(share * getattr(facts, name) for share, facts in parts)
        for name in Facts._fields
        if not name.endswith("_width")
    }
    for kind in ("load", "store"):
        moved = sum(share * getattr(facts, f"{kind}s") * getattr(facts, f"{kind}_width") for share, facts in parts)
        sums[f"{kind}_width"] = moved / sums[f"{kind}s"] if sums[f"{kind}s"] else 0.0
    return Facts(**sums)


def _blocks(text: str) -> dict[int, Block]:
    """The basic blocks that are reached, by address."""
    code = [Instruction(int(a, 16), bool(p), o, r) for a, p, o, r in _INSTRUCTION.findall(text)]
    if not code:
        return {}
    place = {item.address: number for number, item in enumerate(code)}
    heads = {code[0].address}
    for number, item in enumerate(code):
        if _ends_block(item):
            heads |= {item.address for item in code[number + 1 : number + 2]}
            heads |= {target for target in _targets(item) if target in place}
    blocks, starts = {}, sorted(place[head] for head in heads)
    for start, end in zip(starts, [*starts[1:], len(code)], strict=True):
        last = code[end - 1]
        followers = _targets(last)
        if (not _ends_block(last) or _may_fall_through(last)) and end < len(code):
            followers.append(code[end].address)
        blocks[code[start].address] = Block(code[start:end], [item for item in followers if item in place])
    reached, waiting = set(), [code[0].address]
    while waiting:
        address = waiting.pop()
        if address not in reached:
            reached.add(address)
            waiting += blocks[address].followers
    blocks = {address: block for address, block in blocks.items() if address in reached}
    # What a call leads to returns, and does not end the kernel.
    while dead := {address for address, block in blocks.items() if not block.followers and not _exits(block)}:
        blocks = {
            address: Block(block.instructions, [item for item in block.followers if item not in dead])
            for address, block in blocks.items()
            if address not in dead
        }
    return blocks


def _exits(block: Block) -> bool:
    return block.instructions[-1].opcode.split(".")[0] == "EXIT"


def _ends_block(item: Instruction) -> bool:
    """A conditional call is how ptxas for sm_80 writes some jumps out of a loop."""
    name = item.opcode.split(".")[0]
    return name in _LAST or (name == "CALL" and item.conditional)


def _targets(item: Instruction) -> list[int]:
    jumps = item.opcode.split(".")[0] in ("BRA", "JMP", "CALL") and _ends_block(item)
    found = _TARGET.search(item.operands) if jumps else None
    return [int(found[1], 16)] if found else []


def _may_fall_through(item: Instruction) -> bool:
    """A predicate before the instruction or among its operands, or a branch that only diverging lanes take."""
    return item.conditional or bool(re.match(r"!?U?P\d", item.operands)) or ".DIV" in item.opcode


# What an instruction counts as.


def _width(opcode: str) -> int:
    """Bytes a thread moves."""
    found = re.search(r"\.(?:[US](8|16)|(64|128))\b", opcode)
    return int(found[1] or found[2]) // 8 if found else 4


def _counts(item: Instruction, patterns: Sequence[re.Pattern[str]], cold: str) -> Counter[str]:
    counts: Counter[str] = Counter({"instructions": 1})
    name = item.opcode.split(".")[0]
    if name in ("LDG", "STG"):
        kind = "load" if name == "LDG" else "store"
        counts[f"{kind}s"] += 1
        counts[f"{kind} bytes"] += _width(item.opcode)
    elif name in ("LDS", "STS", "LDSM"):
        counts["shared"] += 1
        counts["shared_cycles"] += 4 if name == "LDSM" else max(1, _width(item.opcode) // 4)
    elif name in ("LDL", "STL"):
        counts["local"] += 1
    elif name == "MUFU":
        counts["mufu"] += 1
    elif name in ("FFMA", "FMUL", "FADD"):
        counts["fp32"] += 1
    elif name == "BAR":
        counts["barriers"] += 1
    elif name in ("ATOM", "ATOMG", "MEMBAR"):
        counts["waits"] += 1
    elif name in ("HMMA", "WGMMA", "HGMMA"):
        shape = next((size for mark, size in _SHAPES.items() if f".{mark}" in item.opcode), _SHAPES["16816"])
        counts["mma"] += 1
        counts["multiply_adds"] += shape * (2 if "TF32" in item.opcode else 1)
    text = f"{item.opcode} {item.operands}"
    for number, pattern in enumerate(patterns):
        counts[f"loop {number}"] += bool(pattern.search(text))
    counts["cold"] += (name == "CALL" and not item.conditional) or bool(cold and re.search(cold, text))
    return counts


def _counts_of(block: Block, patterns: Sequence[re.Pattern[str]], cold: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for item in block.instructions:
        total.update(_counts(item, patterns, cold))
    total["waits"] += bool(total["loads"])
    return total


# Loops, innermost first, each of which becomes one node of what surrounds it.


def _dominators(blocks: Mapping[int, Block], entry: int) -> dict[int, set[int]]:
    before: dict[int, list[int]] = {address: [] for address in blocks}
    for address, block in blocks.items():
        for follower in block.followers:
            before[follower].append(address)
    found = {address: set(blocks) for address in blocks}
    found[entry] = {entry}
    changed = True
    while changed:
        changed = False
        for address in blocks:
            if address == entry:
                continue
            new = set.intersection(*(found[item] for item in before[address])) | {address}
            changed |= new != found[address]
            found[address] = new
    return found


def _loops(blocks: Mapping[int, Block], entry: int) -> list[tuple[int, set[int]]]:
    """Head and blocks of every natural loop, the smallest first."""
    dominators = _dominators(blocks, entry)
    bodies: dict[int, set[int]] = {}
    for address, block in blocks.items():
        for head in block.followers:
            if head in dominators[address]:
                body = bodies.setdefault(head, {head})
                waiting = [address]
                while waiting:
                    inner = waiting.pop()
                    if inner not in body:
                        body.add(inner)
                        waiting += [item for item, other in blocks.items() if inner in other.followers]
    return sorted(bodies.items(), key=lambda item: len(item[1]))


def _trips_of(
    blocks: Mapping[int, Block],
    patterns: Sequence[re.Pattern[str]],
    declared: Sequence[float | Sequence[float]],
    trips: float | Sequence[float | None],
) -> _Trips:
    """For each loop with something declared, by its head: number and count of an expression, or None and its trips."""
    bodies = dict(_loops(blocks, min(blocks)))
    if isinstance(trips, int | float):
        return {head: (None, trips) for head in bodies}
    if trips:
        if len(bodies) < len(trips):
            raise ValueError(f"{len(trips)} loops are declared, the machine code has {len(bodies)}")
        declared_trips = zip(sorted(bodies), trips, strict=False)
        return {head: (None, count) for head, count in declared_trips if count is not None}
    found: _Trips = {}
    met: Counter[int] = Counter()
    longest: dict[tuple[int | None, int], tuple[int, int]] = {}  # instructions and head
    for head in sorted(bodies):
        inner = not any(other != head and other in bodies[head] for other in bodies)
        around = [other for other in bodies if other != head and head in bodies[other]]
        code = [f"{item.opcode} {item.operands}" for address in bodies[head] for item in blocks[address].instructions]
        for number, (pattern, counts) in enumerate(zip(patterns, declared, strict=True)):
            if any(pattern.search(text) for text in code):
                if isinstance(counts, int | float):
                    found[head] = (number, counts)
                    if inner:  # beside it an unrolled loop has one for what is left
                        place = (min(around, key=lambda other: len(bodies[other]), default=None), number)
                        size, other = longest.get(place, (0, head))
                        longest[place] = max((size, other), (len(code), head), key=lambda item: item[0])
                        if other != head:
                            del found[other if longest[place][1] == head else head]
                elif inner:
                    found[head] = (number, counts[min(met[number], len(counts) - 1)])
                    met[number] += 1
                break
    return found


def _hot_path(blocks: dict[int, Block], patterns: Sequence[re.Pattern[str]], trips: _Trips, cold: str) -> Counter[str]:
    entry = min(blocks)
    nodes = {address: _counts_of(block, patterns, cold) for address, block in blocks.items()}
    edges = {address: set(block.followers) for address, block in blocks.items()}
    holder = {address: address for address in blocks}  # the node that a block is part of by now
    for head, body in _loops(blocks, entry):
        inside = {holder[address] for address in body}
        path = _best(nodes, {node: edges[node] & inside for node in inside}, head, head)
        number, count = trips.get(head, (None, 1.0))
        once = 1.0 if number is None else path[f"loop {number}"]
        times = max(1.0, count / once) if once else 1.0
        nodes[head] = Counter({key: value * times for key, value in path.items()})
        nodes[head]["declared loops"] = path["declared loops"] + (head in trips)
        if head in trips:  # no reason to avoid the loop itself
            nodes[head]["cold inside"] += nodes[head].pop("cold", 0)
        edges[head] = set().union(*(edges[node] for node in inside)) - inside
        for address, node in holder.items():
            if node in inside:
                holder[address] = head
        edges = {node: {holder[item] for item in edges[node]} - {node} for node in set(holder.values())}
    return _best(nodes, edges, entry, None)


def _rank(counts: Mapping[str, float]) -> tuple[float, ...]:
    moved = counts["load bytes"] + counts["store bytes"]
    return (
        counts["declared loops"],
        -counts["cold"],
        moved,
        -counts["loads"] - counts["stores"],
        counts["instructions"],
    )


def _best(
    nodes: Mapping[int, Counter[str]], edges: Mapping[int, set[int]], entry: int, back_to: int | None
) -> Counter[str]:
    """Counts of the best path from ``entry`` to an end of the kernel, or once around the loop of ``back_to``."""
    order: list[int] = []
    seen = {entry}
    stack = [(entry, iter(sorted(edges[entry])))]
    while stack:
        node, rest = stack[-1]
        follower = next((item for item in rest if item not in seen), None)
        if follower is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(follower)
            stack.append((follower, iter(sorted(edges[follower]))))
    best: dict[int, Counter[str]] = {}
    for node in order:  # what follows a node comes before it
        choices = [best[item] for item in edges[node] if item in best and item != back_to]
        if not edges[node] if back_to is None else back_to in edges[node]:
            choices.append(Counter())
        if choices:
            best[node] = nodes[node] + max(choices, key=_rank)
    return best.get(entry, nodes[entry])
