"""What the integrations share: the error for a missing package, and attributes that are replaced and put back."""

from __future__ import annotations

import importlib.util
from collections.abc import MutableMapping
from typing import Any

_ABSENT = object()


def require(package: str, pip: str, of: str | None = None) -> None:
    """Say how to install a package that an integration needs.

    Args:
        package: the name that is imported.
        pip: what follows ``pip install``.
        of: name of the integration; None: as the package.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        message = f"gflv2.integrations.{of or package} needs the package {package!r}, which is not installed: "
        raise ModuleNotFoundError(f"{message}pip install {pip}", name=package)


class Patch:
    """Attributes and entries of other people's modules, replaced until ``restore()``.

    The original of a place is what was there before ours, so that applying a patch twice, or over itself, changes
    nothing, and one ``restore()`` undoes it all. What somebody else has put into a place since is left alone.
    """

    def __init__(self) -> None:
        self._places: dict[tuple[int, Any], tuple[Any, Any, Any, Any, bool]] = {}

    def __bool__(self) -> bool:
        """Whether anything is replaced."""
        return bool(self._places)

    def attributes(self) -> list[tuple[Any, str, Any]]:
        """(owner, name, ours) of every attribute that has ours now, in the order in which they were replaced."""
        places = self._places.values()
        return [(owner, name, ours) for owner, name, ours, _, item in places if not item and self.holds(owner, name)]

    def holds(self, owner: Any, name: str) -> bool:
        """Whether ``owner.name`` is ours now."""
        place = self._places.get((id(owner), name))
        return place is not None and vars(owner).get(name, _ABSENT) is place[2]

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """``owner.name = value``; the owner is a module, a class or an object.

        Raises:
            AttributeError: there is no such attribute, as in another version of the package.
        """
        if not hasattr(owner, name):
            raise AttributeError(f"{getattr(owner, '__name__', owner)!s} has no {name!r} to replace")
        # A class may inherit it: then restoring means to take ours away.
        self._replace(owner, name, value, vars(owner).get(name, _ABSENT), item=False)

    def item(self, mapping: MutableMapping, key: Any, value: Any) -> None:
        """``mapping[key] = value``; the key may be a new one."""
        self._replace(mapping, key, value, mapping.get(key, _ABSENT), item=True)

    def restore(self) -> None:
        """Put every original back; without a patch nothing happens."""
        for owner, name, ours, original, item in reversed(self._places.values()):
            now = owner.get(name, _ABSENT) if item else vars(owner).get(name, _ABSENT)
            if now is not ours:
                continue
            if original is not _ABSENT:
                _put(owner, name, original, item)
            elif item:
                del owner[name]
            else:
                delattr(owner, name)
        self._places.clear()

    def _replace(self, owner: Any, name: Any, value: Any, now: Any, *, item: bool) -> None:
        place = (id(owner), name)
        earlier = self._places.get(place)
        original = earlier[3] if earlier is not None and now is earlier[2] else now
        _put(owner, name, value, item)
        self._places[place] = (owner, name, value, original, item)


def _put(owner: Any, name: Any, value: Any, item: bool) -> None:
    if item:
        owner[name] = value
    else:
        setattr(owner, name, value)
