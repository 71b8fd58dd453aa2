"""The listening sockets without a network: keys that the kernel refuses, a process without descriptors left."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from bgp.aio import Driver, SetupError
from bgp.message import Family
from bgp.peer import PeerConfig, SpeakerConfig
from bgp.speaker import Speaker
from bgp.transport import Transport


def at(number: int) -> bytes:
    return bytes((192, 0, 2, number))


class Refusing:
    """A listening socket of IPv4 whose kernel has no room for the keys of some addresses."""

    family = socket.AF_INET

    def __init__(self, *refused: int) -> None:
        self.refused = {at(number) for number in refused}
        self.signed: set[bytes] = set()

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        if option != 14:  # TCP_MD5SIG
            return
        address = value[4:8]
        if address in self.refused:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.signed.add(address)

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...


def driver_of(count: int) -> Driver:
    speaker = Speaker(SpeakerConfig(65001, at(1), (Family.IPV4,)), lambda: 0.5)
    for number in range(2, 2 + count):
        config = PeerConfig(f"n{number}", at(number), 65001, passive=True, transport=Transport(password=b"secret"))
        speaker.add_peer(config, 0)
    return Driver(speaker)


def listening_on(kernel: Refusing, driver: Driver) -> None:
    driver.start()
    some: Any = kernel
    driver._listeners.open([])  # forgets what it knows
    driver._listeners.sockets.append(some)
    driver.speaker.version += 1


async def test_a_key_that_is_refused_names_its_peer_and_keeps_no_other_out() -> None:
    driver = driver_of(4)
    kernel = Refusing(3, 4)
    listening_on(kernel, driver)
    remedy = r"cannot allocate memory, errno 12\): no room .* net\.core\.optmem_max"
    with pytest.raises(SetupError, match=rf"n3: TCP MD5 for 192\.0\.2\.3 is refused \({remedy}; n4: TCP MD5 for 192"):
        driver.wake()
    assert driver.unsigned.keys() == {"n3", "n4"}
    assert any("TCP MD5" in str(entry) for entry in driver.speaker.peers["n3"].session.recorder.entries(driver.now()))
    # What has become possible meanwhile is done, whether or not something else is asked for.
    kernel.refused = {at(4)}
    with pytest.raises(SetupError, match=r"^n4: "):
        driver.wake()
    kernel.refused = set()
    driver.wake()
    assert driver.unsigned == {}
    assert kernel.signed == {at(number) for number in range(2, 6)}
    driver._listeners.sockets.clear()
    await driver.stop(None)


async def test_a_complaint_about_very_many_stays_short() -> None:
    driver = driver_of(50)
    listening_on(Refusing(*range(2, 52)), driver)
    with pytest.raises(SetupError, match=r"and 47 more$"):
        driver.wake()
    driver._listeners.sockets.clear()
    await driver.stop(None)
