"""Finds backends by their entry points. Rule: netagent never imports backends/ by name.

A backend that cannot be imported is reported when it is asked for, and never stops the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from netagent.contract import Backend
from netagent.errors import ConfigError

GROUP = "netagent.backends"


class Registry(Mapping[str, Backend]):
    """Backends by type, each imported and made when it is first asked for, then kept."""

    def __init__(self, found: Mapping[str, EntryPoint] | None = None) -> None:
        self._found = {e.name: e for e in entry_points(group=GROUP)} if found is None else dict(found)
        self._made: dict[str, Backend] = {}

    def __getitem__(self, name: str) -> Backend:
        """The backend of that type. ConfigError names the types there are."""
        if name not in self._made:
            if name not in self._found:
                raise ConfigError(
                    f"there is no backend {name!r}",
                    where="Backend.Type",
                    remedy="Known types: " + ", ".join(sorted(self._found)),
                )
            try:
                self._made[name] = self._found[name].load()()
            except Exception as error:  # a third party's module may raise anything
                raise ConfigError(
                    f"the backend {name!r} cannot be loaded: {error}",
                    where=f"entry point {self._found[name].value}",
                    remedy="Reinstall the package that provides it",
                ) from error
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
