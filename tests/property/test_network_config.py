"""Properties of the network's configuration: nothing raises but ConfigError, and what is written reads back."""

from __future__ import annotations

import ipaddress
import json

import hypothesis.strategies as st
from hypothesis import given

from netagent.errors import ConfigError
from netagent.network_config import KEYS, compatible, effective, fits, parse, write

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 140)
    | st.floats(allow_nan=False)
    | st.sampled_from(["10.5.0.0/16", "10.5.4.0", "10.5.0.0/28", "fc00::/48", "fc00:0:0:5::", "", "vxlan", "x"])
)
names = st.sampled_from([*KEYS, "network", "SUBNETLEN", "Other"])
backends = st.dictionaries(st.sampled_from(["Type", "type", "VNI", "Port"]), scalars, max_size=3)
documents = st.dictionaries(names, scalars | backends, max_size=8)


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_no_bytes_raise_anything_else(raw: bytes | str) -> None:
    try:
        parse(raw)
    except ConfigError as error:
        assert error.where and str(error)


@given(documents)
def test_documents_are_read_or_refused_and_what_is_read_is_sound(document: dict[str, object]) -> None:
    try:
        network, _ = parse(json.dumps(document))
    except ConfigError as error:
        assert error.remedy
        return
    assert parse(write(network)) == (network, ())
    assert network.families
    for prefix, length, first, last in (
        (network.v4, network.subnet_len, network.subnet_min, network.subnet_max),
        (network.v6, network.subnet_len6, network.subnet_min6, network.subnet_max6),
    ):
        if prefix is None:
            assert (length, first, last) == (None, None, None)
            continue
        net = ipaddress.ip_network(prefix)
        assert length is not None and length >= net.prefixlen + 2
        for bound in (first, last):
            subnet = ipaddress.ip_network(f"{bound}/{length}")
            assert subnet.subnet_of(net)  # type: ignore[arg-type]
            assert fits(network, str(subnet))
    verdict = compatible(network, network, None, None)
    assert (verdict.holds, verdict.changed, verdict.backend_changed) == (True, (), False)
    json.dumps(effective(network))
