"""The table of results: one CSV a device, one row a candidate, mode, case and run."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

COLUMNS = (
    "device operation backend mode case ms vs_eager vs_compile launches syncs host_us peak_bytes saved_bytes "
    "bandwidth_share torch triton driver commit"
).split()
NUMBERS = COLUMNS[COLUMNS.index("ms") : COLUMNS.index("torch")]
KEY = COLUMNS[: COLUMNS.index("ms")]
# Files of the same folder that begin so hold other tables: of `pairs`, of `tests.gpu.ncu`, of the modules so named.
PAIR, HOST, LOADER, FORMATS, NCU = "training_pair-", "host-", "loader-", "formats-", "ncu-"
STARTS, LIGHT, LIGHT_AP = "predictor_start-", "light_step-", "light_step_ap"

Row = dict[str, str]
Key = tuple[str, ...]


def text(value: float | int | None) -> str:
    """A number as the table holds it: six digits, empty for None."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def files(folder: Path) -> list[Path]:
    """The tables in a folder."""
    others = (PAIR, HOST, LOADER, FORMATS, NCU, STARTS, LIGHT, LIGHT_AP)
    return sorted(path for path in folder.glob("*.csv") if not path.name.startswith(others))


def read(path: str | Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Rows of one file.

    Raises:
        ValueError: its columns are others.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(columns):
            raise ValueError(f"{path}: expected the columns {', '.join(columns)}, got {reader.fieldnames}")
        return list(reader)


def write(path: Path, rows: Iterable[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write one file; a column that a row lacks stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def merge(path: Path, rows: list[Row]) -> None:
    """Add rows to a file; earlier ones of the same device, operation and case make way."""
    measured = {(row["device"], row["operation"], row["case"]) for row in rows}
    kept = read(path) if path.exists() else []
    kept = [row for row in kept if (row["device"], row["operation"], row["case"]) not in measured]
    write(path, [*kept, *rows])


def key_of(row: Row) -> Key:
    return tuple(row[name] for name in KEY)


def by_key(rows: Iterable[Row]) -> dict[Key, list[Row]]:
    """The runs of each candidate, mode and case, in the table's order."""
    found: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        found[key_of(row)].append(row)
    return found


def median(runs: list[Row], column: str) -> float | None:
    """Median over the runs that have a number; None if none has."""
    values = [float(row[column]) for row in runs if row[column] != ""]
    return statistics.median(values) if values else None


def shown(value: float | None, factor: float = 1.0) -> str:
    """A number for a reader: three significant digits, empty for None."""
    if value is None:
        return ""
    value *= factor
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(runs: list[Row], column: str = "ms") -> float:
    """(largest − smallest) / median over the runs."""
    values = [float(row[column]) for row in runs]
    return (max(values) - min(values)) / statistics.median(values)
