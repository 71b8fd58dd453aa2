"""Policies of the configuration file: [policies.NAME] to `bgp.policy`.

Rule: a policy that reads as before is the object that it was.
"""

from __future__ import annotations

from collections.abc import Mapping

from bgp.daemon.tables import Table
from bgp.message import nlri
from bgp.message.codes import WellKnownCommunity
from bgp.policy import Change, Match, Policy, PrefixRange, Rule

_MOST = (1 << 32) - 1
_NAMED = {each.name.lower().replace("_", "-"): each.value for each in WellKnownCommunity}


def policies_from(table: Table, previous: Mapping[str, Policy]) -> dict[str, Policy]:
    """All policies by name. Raises ConfigError."""
    policies = {}
    for name, entry in table.named_tables():
        rules = tuple(_rule(rule) for rule in entry.tables("rules"))
        policy = Policy(rules, entry.choice("default", ("accept", "reject"), "reject") == "accept")
        entry.end()
        before = previous.get(name)
        same = before is not None and (before.rules, before.accept) == (policy.rules, policy.accept)
        policies[name] = before if before is not None and same else policy
    return policies


def community(text: str) -> int:
    """ "65000:120" or the name of a well-known one. Raises ValueError."""
    if text in _NAMED:
        return _NAMED[text]
    high, colon, low = text.partition(":")
    if not (colon and _fits(high, 65535) and _fits(low, 65535)):
        raise ValueError(f"must be like 65000:120, or one of: {', '.join(_NAMED)}")
    return int(high) << 16 | int(low)


def large_community(text: str) -> tuple[int, int, int]:
    """ "4200000000:1:2" (RFC 8092). Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 3 or not all(_fits(part, _MOST) for part in parts):
        raise ValueError("must be three numbers like 4200000000:1:2")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _fits(text: str, most: int) -> bool:
    return text.isascii() and text.isdecimal() and int(text) <= most


def _rule(table: Table) -> Rule:
    action = table.choice("action", ("accept", "reject"))
    match = Match(
        prefixes=table.parsed_list("prefixes", PrefixRange.parse),
        communities=frozenset(table.parsed_list("communities", community)),
        large_communities=frozenset(table.parsed_list("large-communities", large_community)),
        through=frozenset(table.numbers("through", 1, _MOST)),
        neighbour=frozenset(table.numbers("neighbour", 1, _MOST)),
        originator=frozenset(table.numbers("originator", 1, _MOST)),
        longest_path=table.optional_number("longest-path", 0, 4096),
        own=table.optional_flag("own"),
    )
    settings = table.table("set")
    change = Change(
        local_pref=settings.optional_number("local-pref", 0, _MOST),
        med=settings.optional_number("med", 0, _MOST),
        next_hop=settings.parsed("next-hop", nlri.parse_address, b""),
        prepend=settings.numbers("prepend", 1, _MOST),
        clear_communities=settings.take("clear-communities", bool, False),
        remove_communities=frozenset(settings.parsed_list("remove-communities", community)),
        add_communities=settings.parsed_list("add-communities", community),
        add_large_communities=settings.parsed_list("add-large-communities", large_community),
    )
    settings.end()
    table.end()
    return Rule(action == "accept", match, change)
