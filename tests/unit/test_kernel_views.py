"""What netagent makes of the kernel's and other tools' words where they are not as they should be.

Each of these was found by fuzzing (tests/fuzz).
"""

from __future__ import annotations

from typing import Any

import pytest

from netagent.errors import KernelError
from netagent.kernel import legacy, nftwire
from netagent.kernel.links import Links
from netagent.kernel.nft import _listing
from netagent.kernel.wire.links import LinkMessage

OURS = LinkMessage(7, "na-tun", "tun", 1, 1450, "", "netagent", 0, 0, None, None, False, False)


class Kernel:
    def dump(self, request: bytes, kind: int, decode: Any) -> list[LinkMessage]:
        return [OURS]


def test_a_name_of_ours_that_another_device_has_is_not_ours() -> None:
    found = Links(Kernel())  # type: ignore[arg-type]
    assert found.own == {"na-tun": 7}
    found.learn(OURS._replace(ifindex=9, alias=""))
    assert found.own == {}
    found.learn(OURS._replace(ifindex=9))
    assert found.own == {"na-tun": 9}


def test_a_table_of_nothing_is_nobodys() -> None:
    assert nftwire.table(nftwire.Message(0, 0, 0, 0, memoryview(b""))) == ("", "", 0)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"nftables":5}', '{"nftables":{}}', '{"nftables":' + "[" * 100_000],
    ids=["cut", "list", "empty", "number", "object", "deep"],
)
def test_a_listing_that_nft_does_not_write_is_refused(text: str) -> None:
    with pytest.raises(KernelError, match="cannot be read"):
        _listing(text)


@pytest.mark.parametrize(
    ("ports", "read"),
    [
        ("53", 53),
        ("8000:9000", {"range": [8000, 9000]}),
        (":1023", {"range": [0, 1023]}),
        ("1024:", {"range": [1024, 65535]}),
        ("domain", "domain"),
        ("x:9", "x:9"),
        ("\u00b2", "\u00b2"),
        ("9" * 5000, "9" * 5000),
        ("", ""),
    ],
)
def test_ports_of_iptables(ports: str, read: Any) -> None:
    (_, rule) = legacy.parse(f"-N A\n-A A -p udp --dport '{ports}' -j DROP", "ip", "filter")
    match = rule["rule"]["expr"][1]["match"]
    assert (match["left"]["payload"], match["right"]) == ({"protocol": "udp", "field": "dport"}, read)
