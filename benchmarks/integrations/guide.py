"""``python -m benchmarks.integrations.guide``: the tables of docs/integrations.md, from the tables in results/."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.harness import table
from benchmarks.harness.candidates import BEST
from benchmarks.integrations import AGAIN, Integration, integrations, packages

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "integrations.md"
RESULTS = ROOT / "benchmarks" / "results"
NOTHING = "Not measured yet."


def lines(package: str, rows: list[table.Row]) -> list[str]:
    """The table of a package, from the rows of all devices; one sentence where it was not measured."""
    found = []
    for operation in integrations(package):
        runs = table.by_key(row for row in rows if row["operation"] == operation.name)
        for device, name, backend, mode, case in runs:
            if backend != BEST or mode != (operation.mode or "both"):
                continue
            plain = runs.get((device, name, package, mode, case))
            if plain is None:
                continue
            own = runs[device, name, backend, mode, case]
            again = table.median(runs.get((device, name, AGAIN, mode, case), []), "ms")
            alone, ours = table.median(plain, "ms"), table.median(own, "ms")
            share = _share(operation, alone, device, case, rows)
            cells = [operation.what, case.replace(" ", ", "), device, share]
            cells += map(table.shown, (alone, ours, alone / ours, again and alone / again))
            found.append(f"| {' | '.join(cells)} |")
    if not found:
        return [NOTHING]
    heads = ["what", "case", "device", "share of the step", f"{package} alone, ms", "with gflv2, ms", "times faster"]
    heads.append(f"{package} against itself")
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *found]


def _share(operation: Integration, alone: float, device: str, case: str, rows: list[table.Row]) -> str:
    """Of the package's own training step, what this takes alone.

    The step is the one that agrees in all facts that both cases have: the losses of D-FINE's queries take the same time
    whatever the size of the images.
    """
    facts = _facts(case)
    steps = [
        row
        for row in rows
        if (row["operation"], row["backend"], row["device"]) == (operation.part_of, operation.package, device)
        and all(facts.get(name, value) == value for name, value in _facts(row["case"]).items())
    ]
    one = len({row["case"] for row in steps}) == 1
    return f"{100 * alone / table.median(steps, 'ms'):.2g} %" if one else "–"


def _facts(case: str) -> dict[str, str]:
    return dict(fact.split("=") for fact in case.split())


def written(text: str, rows: list[table.Row]) -> str:
    """The guide's text with its tables made anew."""
    for package in packages():
        pattern = rf"(<!-- table: integrations {package}[ :(][^\n]*-->\n).*?(<!-- end -->)"
        made = "\n".join(lines(package, rows))
        text, count = re.subn(pattern, lambda m, made=made: f"{m[1]}{made}\n{m[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"{GUIDE.name} has {count} tables 'integrations {package}', expected one")
    return text


def measured() -> list[table.Row]:
    return [row for path in table.files(RESULTS) for row in table.read(path)]


if __name__ == "__main__":
    GUIDE.write_text(written(GUIDE.read_text(), measured()))
    print(f"wrote {GUIDE.relative_to(ROOT)}")
