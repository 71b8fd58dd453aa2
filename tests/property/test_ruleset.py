"""Rulesets of others are read whatever is in them: nothing raises, and what must hold of any ruleset holds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from netagent.kernel import foreign, legacy
from netagent.kernel.ruleset import Packet, Rules, words
from netagent.model import Inbound

INBOUND = [Inbound(17, 8472), Inbound(6, 179), Inbound(4)]
PREFIX, OTHER = "10.5.0.0/16", "fc00::/48"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["new", "lo", "@set", PREFIX, "fc00::1", "udp", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["set", "prefix", "range", "addr", "len", "key", "data", "&"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
LEFT = st.one_of(
    st.builds(
        lambda protocol, field: {"payload": {"protocol": protocol, "field": field}},
        st.sampled_from(["ip", "ip6", "udp", "th", "tcp", "ether"]),
        st.sampled_from(["saddr", "daddr", "dport", "protocol", "nexthdr"]),
    ),
    st.builds(lambda key: {"meta": {"key": key}}, st.sampled_from(["iifname", "oif", "l4proto", "mark", "nfproto"])),
    st.just({"ct": {"key": "state"}}),
    st.just({"fib": {"result": "type", "flags": ["daddr"]}}),
    JSON,
)
EXPRESSION = st.one_of(
    st.builds(
        lambda op, left, right: {"match": {"op": op, "left": left, "right": right}},
        st.sampled_from(["==", "!=", "<", "in"]),
        LEFT,
        JSON,
    ),
    st.builds(
        lambda word, inner: {word: inner}, st.sampled_from(["accept", "drop", "jump", "goto", "vmap", "xt"]), JSON
    ),
    st.builds(
        lambda word, name: {word: {"target": name}},
        st.sampled_from(["jump", "goto"]),
        st.sampled_from(["a", "b", "c"]),
    ),
    st.builds(lambda name: {"xt": {"type": "target", "name": name}}, st.sampled_from(["REJECT", "LOG"])),
    st.builds(
        lambda key, pairs: {"vmap": {"key": key, "data": {"set": pairs}}},
        LEFT,
        st.lists(
            st.tuples(JSON, st.sampled_from([{"accept": None}, {"drop": None}, {"goto": {"target": "b"}}])).map(list)
        ),
    ),
    st.dictionaries(st.sampled_from(["match", "counter", "xt", "limit"]), JSON, max_size=2),
)
NAMES = st.sampled_from(["a", "b", "c"])
RULE = st.builds(
    lambda chain, expr: {"rule": {"family": "inet", "table": "t", "chain": chain, "expr": expr}},
    NAMES,
    st.lists(EXPRESSION, max_size=4) | JSON,
)
BASE = st.builds(
    lambda name, hook, policy: {
        "chain": {"family": "inet", "table": "t", "name": name, "type": "filter", "hook": hook, "policy": policy}
    },
    NAMES,
    st.sampled_from(["forward", "input", "prerouting"]),
    st.sampled_from(["accept", "drop"]),
)
RULESET = st.lists(
    RULE | BASE | st.dictionaries(st.sampled_from(["chain", "rule", "set"]), JSON, max_size=2), max_size=8
)


@given(RULESET)
def test_nothing_in_a_ruleset_raises(ruleset: list[dict[str, Any]]) -> None:
    """Chains that jump in circles included."""
    for finding in foreign.findings(
        ruleset,
        ("inet", "netagent"),
        [PREFIX, OTHER],
        INBOUND,
        devices=["na-vx1"],
        peers=["192.168.50.12", "fd00::1"],
    ):
        assert finding.message
        assert finding.evidence
        assert finding.remedy
    for entry in ruleset:
        rule = entry.get("rule")
        if isinstance(rule, dict) and isinstance(rule.get("expr"), list):
            words([e for e in rule["expr"] if isinstance(e, dict)])


@given(RULESET)
def test_an_accept_in_front_ends_every_drop(ruleset: list[dict[str, Any]]) -> None:
    """The remedy: an accept of the network's addresses at the head of each base chain."""
    packets = [
        Packet("forward", 4, PREFIX, PREFIX, iifs=["na-vx1"]),
        Packet("forward", 4, PREFIX, PREFIX, oifs=["na-vx1"]),
    ]
    head = [
        {
            "rule": {
                **{key: base[key] for key in ("family", "table")},
                "chain": base["name"],
                "expr": [
                    {
                        "match": {
                            "op": "==",
                            "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                            "right": {"prefix": {"addr": "10.5.0.0", "len": 16}},
                        }
                    },
                    {"accept": None},
                ],
            }
        }
        for entry in ruleset
        if isinstance(base := entry.get("chain"), dict) and "hook" in base
    ]
    rules = Rules([*head, *ruleset])
    assert [drop for packet in packets for drop in rules.drops(packet)] == []


@given(RULESET)
def test_what_is_ours_is_not_looked_at(ruleset: list[dict[str, Any]]) -> None:
    assert foreign.findings(ruleset, ("inet", "t"), [PREFIX], INBOUND) == []


WORDS = """
-A -P -N -I FORWARD INPUT x -s -d -i -o ! 10.5.0.0/16 eth+ -p udp tcp -m conntrack set --dport 53 8000:9000 :
--ctstate NEW,ESTABLISHED -j -g ACCEPT DROP REJECT LOG RETURN NFQUEUE --comment "a b" ' -w
"""
LINE = st.lists(st.sampled_from(WORDS.split()) | st.text(max_size=5), max_size=10).map(" ".join)


@given(st.lists(LINE, max_size=6).map("\n".join))
def test_nothing_that_iptables_prints_raises(listing: str) -> None:
    foreign.findings(legacy.parse(listing, "ip", "filter"), ("inet", "netagent"), [PREFIX], INBOUND)
