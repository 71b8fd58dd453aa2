"""Whatever somebody writes into the options of bgp: it is refused with its place, or a speaker can be made of it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.bgp import sessions
from backends.bgp.options import parse
from backends.bgp.planner import Bgp
from backends.bgp.sessions import Secret
from bgp.message import nlri
from bgp.speaker import Speaker
from netagent import network_config
from netagent.errors import ConfigError
from tests.unit.test_bgp_backend import context, member

ADDRESSES = st.sampled_from(
    [
        "192.0.2.1",
        "192.168.50.11",
        "192.168.50.12",
        "fd50::1",
        "fd50::11",
        "fe80::1%eth0",
        "::ffff:192.0.2.1",
        "1.2",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "127.0.0.1",
        "::",
        "ff02::1",
    ]
)
PREFIXES = st.sampled_from(
    [
        "10.96.0.0/12",
        "10.5.59.0/24",
        "10.5.0.0/16",
        "10.1.2.3",
        "10.0.0.0/255.0.0.0",
        "0.0.0.0/0",
        "10.0.0.1/8",
        "2001:db8::/32",
        "fe80::%eth0/64",
        "fe80::1%eth0",
        "::ffff:0:0/96",
        "::/0",
    ]
)
NUMBERS = st.one_of(st.sampled_from([0, 1, 3, 23456, 64512, 65535, 2**32 - 1, 2**32, -1, 10**30]), st.integers())
COMMUNITIES = st.sampled_from(
    ["64512:100", "1:2:3", "no-export", "1" * 5000, "1:" + "2" * 5000, "\u00b2:1", "", "0:0"]
)
TEXTS = st.sampled_from(
    [
        "h1",
        "*",
        "rack=r1",
        "",
        "\x00",
        "\x1b[31m",
        "é",
        "/etc/\x00",
        "/etc/x",
        "none",
        "VXLAN",
        "ipip",
        "both",
        "self",
        "vxlan-cross-subnet",
        "10.0.0.1",
        "x" * 5000,
    ]
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(allow_nan=False, allow_infinity=False), TEXTS, ADDRESSES),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=4,
)


def mostly(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(*[right] * 9, ANYTHING)


def some(right: Mapping[str, st.SearchStrategy[Any]], **needed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {key: mostly(value) for key, value in needed.items()},
        optional={key: mostly(value) for key, value in right.items()},
    )


TIMERS: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(("MinTx", "MinRx", "Multiplier"), NUMBERS)
BFD = st.one_of(st.booleans(), some(TIMERS), some({**TIMERS, "Multihop": st.booleans()}))
ROUTER = some(
    {
        **dict.fromkeys(
            ("Port", "TTLSecurity", "Multihop", "AllowOwnAS", "LocalAS", "HoldTime", "MaxPrefixes"), NUMBERS
        ),
        **dict.fromkeys(("Name", "PasswordFile", "NextHop", "AddPath"), TEXTS),
        **dict.fromkeys(("Passive", "ExtendedNextHop"), st.booleans()),
        "BFD": BFD,
    },
    Address=ADDRESSES,
    AS=NUMBERS,
)
ANNOUNCE = st.one_of(PREFIXES, some({"Communities": st.lists(COMMUNITIES, max_size=3)}, Prefix=PREFIXES))
COMMON = {
    "Announce": st.lists(ANNOUNCE, max_size=3),
    "Communities": st.lists(COMMUNITIES, max_size=3),
    "Routers": st.lists(ROUTER, max_size=3),
    "ClusterID": TEXTS,
    "AS": NUMBERS,
    "BFD": BFD,
}
DOCUMENT = some(
    {
        **COMMON,
        **dict.fromkeys(("Port", "HoldTime", "RestartTime", "LongLivedTime", "VNI", "VXLANPort", "MTU"), NUMBERS),
        **dict.fromkeys(("PasswordFile", "Encapsulation"), TEXTS),
        "Mesh": st.booleans(),
        "Reflectors": st.lists(TEXTS, max_size=3),
        "Nodes": st.lists(some(COMMON, Match=TEXTS), max_size=3),
    }
)
ONE_PART = st.one_of(
    ROUTER.map(lambda router: {"Routers": [router]}),
    ANNOUNCE.map(lambda prefix: {"Announce": [prefix]}),
    *(each.map(lambda value, key=key: {key: value}) for key, each in COMMON.items()),
)


@given(st.one_of(ONE_PART, DOCUMENT), st.booleans())
def test_what_is_not_refused_with_its_place_makes_a_speaker(raw: dict[str, Any], v6: bool) -> None:
    document = json.dumps({"Network": "10.5.0.0/16", "Backend": {**raw, "Type": "bgp"}})
    try:
        given_options = network_config.parse(document).network.backend.options
        options = parse(given_options).value
    except ConfigError as error:
        assert error.where
        return
    here = context(dict(given_options), v6=v6, labels=("rack=r1",))
    backend = Bgp()
    backend.ports(options)
    backend.lease(here)
    backend.base(here)
    own = options.own("h1", ("rack=r1",))
    config = sessions.speaker(here, own)
    assert config is not None
    paths = {options.password_file, *(router.password_file for router in own.routers)}
    secrets = {path: Secret(b"hush") for path in paths}
    others = {"h2": member("h2", 12), "h3": member("h3", 13)}
    for role in ("mesh", "reflector"):
        speaker = Speaker(config, random.random)
        speaker.set_peers(sessions.peering(here, own, role, role, others, secrets).peers, 0.0)
        for prefix, attributes in sessions.originated(here, own).items():
            speaker.originate(*nlri.parse(prefix), attributes)
        speaker.take(0.0)
