"""The control protocol: what is encoded is decoded however it is cut, and nothing hostile gets past the parser."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.udp import control
from backends.udp.control import Config, ControlError, Decoder, encode
from backends.udp.table import Entry

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
messages = st.dictionaries(st.text(max_size=8), values, max_size=4)

CONFIG = Config("na-tun", 1472, 8285, ("192.168.50.11", "fd50::11"), ("10.5.1.0/24", "fc00:0:0:1::/64"))


@given(
    st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5),
    st.lists(st.integers(1, 50)),
)
def test_messages_come_back_whole_however_they_are_cut(sent: list[dict[str, Any]], cuts: list[int]) -> None:
    data, decoder, got = b"".join(map(encode, sent)), Decoder(), []
    for size in itertools.chain(cuts, itertools.repeat(1 << 16)):
        piece, data = data[:size], data[size:]
        got += list(decoder.feed(piece))
        if not data:
            break
    assert got == sent


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_are_refused_cleanly_or_understood(pieces: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces:
            for message in decoder.feed(piece):
                assert isinstance(message, dict)
    except ControlError:
        pass


@given(st.binary(max_size=200))
def test_a_body_is_an_object_or_an_error(body: bytes) -> None:
    try:
        (message,) = Decoder().feed(len(body).to_bytes(4, "big") + body)
    except ControlError:
        return
    assert message == json.loads(body)


@pytest.mark.parametrize("body", [b"[" * 100_000, b"9" * 10_000, b'"', b"[]", b"null", b"\xff\xfe", b""])
def test_hostile_bodies(body: bytes) -> None:
    with pytest.raises(ControlError):
        list(Decoder().feed(len(body).to_bytes(4, "big") + body))


def test_a_message_too_long_is_refused_before_it_is_read_and_before_it_is_sent() -> None:
    with pytest.raises(ControlError, match="longer than"):
        list(Decoder().feed((control.MAX_MESSAGE + 1).to_bytes(4, "big")))
    with pytest.raises(ControlError, match="longer than"):
        encode({"x": "y" * control.MAX_MESSAGE})


READERS = [
    control.config_of,
    control.peers_of,
    control.traffic_of,
    lambda m: control.texts(m, "keys"),
    lambda m: control.text(m, "do"),
    lambda m: control.whole(m, "offset", 0, 10),
]


@given(messages, values, st.sampled_from(["config", "peers", "traffic", "keys", "do", "offset"]))
def test_any_fields_are_refused_cleanly_or_have_their_type(message: dict[str, Any], value: Any, field: str) -> None:
    for reader in READERS:
        try:
            reader({**message, field: value})
        except ControlError as error:
            assert len(str(error)) < 400


@given(st.sampled_from(Config._fields), values)
def test_any_field_of_a_config_is_refused_cleanly_or_kept(field: str, value: Any) -> None:
    try:
        config = control.config_of({"config": {**CONFIG.to_json(), field: value}})
    except ControlError:
        return
    assert getattr(config, field) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", ""),
        ("device", "sixteen-bytes-xx"),
        ("device", "a/b"),
        ("device", "a b"),
        ("device", ".."),
        ("mtu", 67),
        ("mtu", True),
        ("mtu", 1472.0),
        ("port", 0),
        ("port", 65536),
        ("addresses", ["192.168.50.11", "192.168.50.12"]),
        ("addresses", ["nowhere"]),
        ("addresses", "192.168.50.11"),
        ("subnets", ["10.5.1.1/24"]),
        ("subnets", [["10.5.1.0/24"]]),
    ],
)
def test_what_a_config_may_not_hold(field: str, value: Any) -> None:
    with pytest.raises(ControlError):
        control.config_of({"config": {**CONFIG.to_json(), field: value}})


def test_config_and_peers_pass_through_json() -> None:
    peers = [Entry("10.5.2.0-24", ("10.5.2.0/24",), ("192.168.50.12", "fd50::12")), Entry("x", (), ())]
    message = json.loads(json.dumps({"config": CONFIG.to_json(), "peers": peers}))
    assert control.config_of(message) == CONFIG
    assert control.peers_of(message) == peers
