"""What ``make bench`` runs: one pytest-benchmark for each device, operation and case.

A round of it is one sample of every candidate, in turn, on the same inputs; the candidates' own times are taken inside
and end up in the table that ``--output`` names.
"""

from __future__ import annotations

from benchmarks.harness.contest import Contest


def bench_operation(benchmark, recorder, operation, case, device, full):
    """Measure one case and add its rows to the table."""
    settings = recorder.settings(operation, case, device, full)
    contest = Contest(operation, case, device, settings, full=full, notes=recorder.note)
    benchmark.pedantic(contest.round, rounds=contest.rounds, iterations=1)
    rows = contest.rows()
    benchmark.extra_info["seconds"] = {candidate.name: contest.seconds(candidate) for candidate in contest.candidates}
    recorder.add(rows)
