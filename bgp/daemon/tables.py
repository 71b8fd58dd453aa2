"""A TOML table read strictly: each key by its name and type, and no key that nobody asked for.

Rule: what is wrong is a ConfigError that names the file, the key, the value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from bgp.daemon.errors import ConfigError

T = TypeVar("T")
_MISSING: Any = object()
_ALIKE = 0.8
"""How alike two names are (difflib) when one is taken for the other: `address` is not `local-address`."""


class Table:
    """One table of a file. Each value is taken once; `end` refuses what was not taken."""

    def __init__(self, file: str, path: str, values: dict[str, Any]) -> None:
        self.file = file
        self.path = path
        self._values = values
        self._asked: list[str] = []

    def error(self, key: str, problem: str, value: object = _MISSING) -> ConfigError:
        """The error to raise about a key; with its value where it is wrong, without where it is missing."""
        shown = "" if value is _MISSING else f" = {value!r}"
        return ConfigError(f"{self.file}: {self._name(key)}{shown}: {problem}")

    def _name(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def take(self, key: str, wanted: type[T], default: T = _MISSING) -> T:
        """The value of that type."""
        self._asked.append(key)
        value = self._values.get(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                self._refuse_misspelt(key)
                raise self.error(key, "is missing; add it")
            return default
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise self.error(key, f"must be {_TYPES[wanted]}", value)
        return value

    def has(self, key: str) -> bool:
        return key in self._values

    def is_flag(self, key: str) -> bool:
        """Whether the value is true or false, where something else may stand too."""
        return isinstance(self._values.get(key), bool)

    def number(self, key: str, least: int, most: int, default: int = _MISSING) -> int:
        value = self.take(key, int, default)
        if self.has(key) and not least <= value <= most:
            raise self.error(key, f"must lie between {least} and {most}", value)
        return value

    def optional_number(self, key: str, least: int, most: int) -> int | None:
        return self.number(key, least, most) if self._noted(key) else None

    def number_or_word(self, key: str, least: int, most: int, words: Iterable[str]) -> int | str | None:
        """A whole number, or one of the words; None where the key is missing."""
        if not self._noted(key):
            return None
        value = self._values[key]
        number = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        if number or (isinstance(value, str) and value in words):
            found: int | str = value
            return found
        shown = " or ".join(f'"{word}"' for word in words)
        raise self.error(key, f"must be a whole number from {least} to {most}, or {shown}", value)

    def optional_flag(self, key: str) -> bool | None:
        return self.take(key, bool) if self._noted(key) else None

    def _noted(self, key: str) -> bool:
        self._asked.append(key)
        return self.has(key)

    def parsed(self, key: str, parse: Callable[[str], T], default: T = _MISSING) -> T:
        """A string turned into a value; what `parse` says in its ValueError is the error."""
        if default is not _MISSING and not self._noted(key):
            return default
        return self._parse(key, parse, self.take(key, str))

    def _parse(self, key: str, parse: Callable[[str], T], text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            problem = str(error).removeprefix(f"{text!r}").removeprefix(": ").lstrip()
            raise self.error(key, problem, text) from None

    def parsed_list(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """A list of strings, or one string alone; nothing where the key is missing."""
        if not self._noted(key):
            return ()
        value = self._values[key]
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise self.error(key, "must be a list of strings", value)
        return tuple(self._parse(key, parse, item) for item in items)

    def numbers(self, key: str, least: int, most: int) -> tuple[int, ...]:
        """A list of whole numbers, or one alone; nothing where the key is missing."""
        if not self._noted(key):
            return ()
        value = self._values[key]
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and least <= item <= most for item in items):
            raise self.error(key, f"must be whole numbers from {least} to {most}", value)
        return tuple(items)

    def choice(self, key: str, choices: Iterable[str], default: str = _MISSING) -> str:
        value = self.take(key, str, default)
        names = list(choices)
        if value not in names:
            raise self.error(key, f"must be one of: {', '.join(names)}", value)
        return value

    def table(self, key: str) -> Table:
        """A table inside; empty where it is missing."""
        if key not in self._values:
            self._refuse_misspelt(key)
        return Table(self.file, self._name(key), self.take(key, dict, {}))

    def tables(self, key: str) -> list[Table]:
        """An array of tables: [[key]]; empty where it is missing."""
        value = self.take(key, list, [])
        if not all(isinstance(item, dict) for item in value):
            raise self.error(key, f"must be tables: write [[{self._name(key)}]]", value)
        return [Table(self.file, f"{self._name(key)}[{number}]", item) for number, item in enumerate(value, 1)]

    def named_tables(self) -> list[tuple[str, Table]]:
        """Each key of this table as a table of its own."""
        return [(name, self.table(name)) for name in self._values]

    def _refuse_misspelt(self, key: str) -> None:
        """What is missing may be there under nearly its name."""
        near = difflib.get_close_matches(key, [each for each in self._values if each not in self._asked], 1, _ALIKE)
        if near:
            raise self.error(near[0], f"there is no such key; did you mean {key}?")

    def end(self) -> None:
        """Nothing else may stand here."""
        for key in self._values:
            if key not in self._asked:
                near = difflib.get_close_matches(key, self._asked, 1)
                remedy = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(set(self._asked)))}"
                raise self.error(key, f"there is no such key; {remedy}")


_TYPES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    float: "a number",
}
