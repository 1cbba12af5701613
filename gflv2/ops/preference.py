from __future__ import annotations

PREFERENCE: dict[str, tuple[tuple[str, ...], str]] = {}
