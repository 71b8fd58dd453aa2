"""Reading a backend's options from `Backend` of the network's configuration, as flannel's JSON decoder does.

Rule: keys match in any case (Go's encoding/json does so), a wrong type is a ConfigError that names key, value and
remedy, an unknown key is a finding and nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from netagent.errors import ConfigError
from netagent.model import Finding
from netagent.network_config import nearest

T = TypeVar("T", bound=msgspec.Struct)

_WORDS = {int: "a whole number", bool: "true or false", str: "a string"}


def parse(backend: str, cls: type[T], raw: Mapping[str, Any]) -> tuple[T, tuple[Finding, ...]]:
    """`raw` as a `cls`, whose field names are matched by their encoded names ("VNI"), plus findings."""
    known = {field.encode_name.lower(): (field.encode_name, field.type) for field in msgspec.structs.fields(cls)}
    values: dict[str, Any] = {}
    findings = []
    for key, value in raw.items():
        if key.lower() not in known:
            findings.append(
                Finding(
                    code="config-unknown-key",
                    subject=f"Backend.{key}",
                    message=f"the {backend} backend has no option {key!r}; it is ignored",
                    evidence=f"{key} = {value!r}",
                    remedy=_remedy(key, [name for name, _ in known.values()]),
                )
            )
            continue
        name, kind = known[key.lower()]
        if type(value) is not kind:
            raise ConfigError(
                f"{value!r} is not {_WORDS.get(kind, str(kind))}",
                where=f"Backend.{key}",
                remedy=f"Write it as {_WORDS.get(kind, str(kind))} in the network's configuration",
            )
        values[name] = value
    return msgspec.convert(values, cls), tuple(findings)


def _remedy(key: str, known: Sequence[str]) -> str:
    near = nearest(key, known)
    return f"did you mean {near}?" if near else f"known options: {', '.join(known) or 'none'}"


def check_range(key: str, value: int, low: int, high: int) -> None:
    """ConfigError unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(
            f"{value} is out of range", where=f"Backend.{key}", remedy=f"Use a value from {low} to {high}"
        )
