"""All candidates of one operation and case, measured in turn on the same inputs."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import machine, probes, table
from benchmarks.harness.candidates import (
    Candidate,
    Settings,
    compiled,
    eager_forms,
    fastest,
    gradients,
    other_packages,
    ours,
    time_limit,
    why_not,
)
from benchmarks.harness.cases import Case
from benchmarks.harness.gpu_clock import GpuClock
from benchmarks.harness.operation import Inputs, Operation
from gflv2.engine.memory import saved_bytes

MODES = ("forward", "backward", "both")
_SHORTEST = 5e-3  # seconds of a sample: faster calls are repeated
_MOST_ROUNDS = 100

Times = dict[str, float]  # seconds of one call in each mode, and "host"


class Contest:
    """One operation and case.

    Args:
        full: with torch.compile, other packages and the reference; else (the curves) this project's backends and the
            fastest eager form only.
        notes: is told what cannot take part, and why.
    """

    def __init__(
        self,
        operation: Operation,
        case: Case,
        device: torch.device,
        settings: Settings,
        *,
        full: bool = True,
        notes: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.operation, self.case, self.device, self.settings = operation, case, device, settings
        self.full = full
        self.sets = [operation.inputs(case, device, seed) for seed in range(settings.sets)]
        self.gpu_clock = GpuClock()
        self.samples: dict[str, list[Times]] = {}
        self.candidates = self._gather(notes)
        warm = {candidate.name: self._sample(candidate, 0, 1)["both"] for candidate in self.candidates}
        self.repeats = {name: max(1, min(100, round(_SHORTEST / max(took, 1e-9)))) for name, took in warm.items()}
        one_round = sum(took * self.repeats[name] for name, took in warm.items())
        wanted = int(settings.seconds / max(one_round, 1e-9))
        # A multiple of the number of runs, and at least one round each.
        self.rounds = max(1, min(_MOST_ROUNDS, wanted) // settings.runs) * settings.runs
        self._done = 0

    # 1. Who takes part.

    def _gather(self, notes: Callable[[str], None]) -> list[Candidate]:
        operation, inputs, full = self.operation, self.sets[0], self.full
        custom = getattr(operation, "candidates", None)
        if custom is not None:
            return self._warm(custom(self.case, self.device, self.settings), notes)
        forms = eager_forms(operation)
        able = fastest(operation, forms, inputs, calls=3 if full else 1, notes=notes)
        if not able:
            raise MemoryError(f"{operation.name}: there is no memory for any form in plain PyTorch")
        best = able[0]
        eager = [best]
        if full and forms[0] is not best and forms[0] in able:
            eager.append(forms[0])
        candidates = [*ours(operation, inputs), *eager]
        if full and operation.compiles and self.settings.compile != "none":
            candidates += compiled(operation, best, self.settings)
        if full and self.settings.peers:
            candidates += other_packages(operation, self.case, notes)
        return self._warm(candidates, notes)

    def _warm(self, candidates: list[Candidate], notes: Callable[[str], None]) -> list[Candidate]:
        """Call each on every set of inputs; who fails or is compiled for too long drops out, unless it is ours."""
        kept = []
        for candidate in candidates:
            start = time.perf_counter()
            try:
                if candidate.kind == "compile":
                    torch._dynamo.reset()
                    with time_limit(self.settings.compile_seconds):
                        self._sample(candidate, 0, 1)
                for index in range(len(self.sets)):
                    self._sample(candidate, index, 1)
            except Exception as error:
                if candidate.kind not in ("compile", "peer"):
                    raise
                notes(why_not(self.operation, candidate, error))
                continue
            if candidate.kind == "compile":
                notes(f"{self.operation.name}: {candidate.name}: compiled in {time.perf_counter() - start:.0f} s")
            kept.append(candidate)
        return kept

    # 2. Time.

    def round(self) -> None:
        """One sample of each candidate. Who comes first changes, and all see the same inputs in the same order."""
        first = self._done % len(self.candidates)
        for candidate in [*self.candidates[first:], *self.candidates[:first]]:
            sample = self._sample(candidate, self._done, self.repeats[candidate.name])
            self.samples.setdefault(candidate.name, []).append(sample)
        self._done += 1

    def seconds(self, candidate: Candidate) -> list[float]:
        """The times of a candidate's samples."""
        return [sample[self.operation.mode or "both"] for sample in self.samples[candidate.name]]

    def run(self) -> None:
        """All rounds, without garbage collection in between."""
        gc.collect()
        gc.disable()
        try:
            for _ in range(self.rounds):
                self.round()
        finally:
            gc.enable()

    def _sample(self, candidate: Candidate, start: int, repeats: int) -> Times:
        sets = [self.sets[(start + index) % len(self.sets)] for index in range(repeats)]
        with candidate.running():
            if self.device.type == "cuda":
                return _gpu_times(self.gpu_clock, self.operation, candidate, sets)
            return _cpu_times(self.operation, candidate, sets)

    # 3. What is counted, and the rows.

    def rows(self) -> list[table.Row]:
        """One row a candidate, mode and run; each run's time is the median of its rounds."""
        modes = [self.operation.mode] if self.operation.mode else list(MODES)
        counts = {candidate.name: self._counts(candidate) for candidate in self.candidates}
        per_run = self.rounds // self.settings.runs
        known = {
            "device": machine.device_text(self.device),
            "operation": self.operation.name,
            "case": self.case.text(self.operation.axes),
            **machine.software(self.device.type),
        }
        moved = self.operation.moved(self.case)
        rows = []
        for mode in modes:
            bandwidth = machine.copy_bandwidth(moved[mode], self.device) if mode in moved else None
            for run in range(self.settings.runs):
                part = slice(run * per_run, (run + 1) * per_run)
                median = {
                    name: statistics.median(sample[mode] for sample in samples[part])
                    for name, samples in self.samples.items()
                }
                for candidate in self.candidates:
                    took = median[candidate.name]
                    host = [sample[f"host {mode}"] for sample in self.samples[candidate.name][part]]
                    numbers = {
                        "ms": took * 1e3,
                        "vs_eager": self._ratio("eager", median, took),
                        "vs_compile": self._ratio("compile", median, took),
                        "host_us": statistics.median(host) * 1e6 if self.device.type == "cuda" else None,
                        "bandwidth_share": moved[mode] / took / bandwidth if bandwidth else None,
                        **counts[candidate.name].get(mode, {}),
                    }
                    shown = {name: table.text(numbers.get(name)) for name in table.NUMBERS}
                    rows.append({**known, "backend": candidate.name, "mode": mode, **shown})
        return [{column: row[column] for column in table.COLUMNS} for row in rows]

    def _ratio(self, kind: str, median: dict[str, float], took: float) -> float | None:
        """How many times faster than the fastest candidate of a kind."""
        others = [median[candidate.name] for candidate in self.candidates if candidate.kind == kind]
        return min(others) / took if others else None

    def _counts(self, candidate: Candidate) -> dict[str, dict[str, int | None]]:
        """Memory, launches and waits of one call, by mode."""
        operation, inputs, device = self.operation, self.sets[0], self.device
        counts: dict[str, dict[str, int | None]] = {mode: {} for mode in MODES}

        def forward() -> Any:
            return candidate(inputs)

        def both() -> Any:
            result = candidate(inputs)
            return result, gradients(operation, result, inputs)

        with candidate.running():
            differentiable = bool(inputs.leaves)
            if not self.full:  # along a curve, memory alone
                counts["both"]["peak_bytes"] = probes.peak_bytes(both, device)
                counts["forward"] = {} if differentiable else counts["both"]
                return counts
            for mode, call in (("forward", forward), ("both", both if differentiable else forward)):
                counts[mode]["peak_bytes"] = probes.peak_bytes(call, device)
            if differentiable:
                saved = saved_bytes(forward, (inputs.args, inputs.kwargs))
                counts["forward"]["saved_bytes"] = counts["both"]["saved_bytes"] = saved
            for name, probe in (("launches", probes.launches), ("syncs", probes.syncs)):
                if name == "syncs" and candidate.kind == "compile" and device.type != "cuda":
                    continue  # under torch's dispatch modes compiled code does not run
                counts["forward"][name] = probe(forward, device)
                if differentiable:
                    result = forward()
                    back = probe(lambda result=result: gradients(operation, result, inputs), device)
                    counts["backward"][name] = back
                    counts["both"][name] = None if back is None else counts["forward"][name] + back
                else:
                    counts["both"][name] = counts["forward"][name]
        return counts


def _cpu_times(operation: Operation, candidate: Candidate, sets: list[Inputs]) -> Times:
    clock = time.perf_counter
    forward = backward = 0.0
    for inputs in sets:
        start = clock()
        result = candidate(inputs)
        middle = clock()
        found = gradients(operation, result, inputs)
        end = clock()
        forward, backward = forward + middle - start, backward + end - middle
        del result, found
    return _per_call(len(sets), forward, backward, forward, backward)


def _gpu_times(clock: GpuClock, operation: Operation, candidate: Candidate, sets: list[Inputs]) -> Times:
    """Times of the device behind a kernel that hides the host; the host's own time beside them."""
    totals = [0.0] * 4
    for inputs in sets:
        if candidate.kind == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        steps = [
            lambda _, inputs=inputs: candidate(inputs),
            lambda result, inputs=inputs: gradients(operation, result, inputs),
        ]
        device, host = clock.times(candidate.name, steps)
        totals = [total + part for total, part in zip(totals, [*device, *host], strict=True)]
    return _per_call(len(sets), *totals)


def _per_call(calls: int, forward: float, backward: float, host_forward: float, host_backward: float) -> Times:
    return {
        "forward": forward / calls,
        "backward": backward / calls,
        "both": (forward + backward) / calls,
        "host forward": host_forward / calls,
        "host backward": host_backward / calls,
        "host both": (host_forward + host_backward) / calls,
    }
