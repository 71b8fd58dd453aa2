"""The driver on real sockets: IPv4 and IPv6, many at once, MD5, GTSM, resets, load, peers that do not read."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from bgp.aio import Driver, Listen, SetupError
from bgp.connection import Direction
from bgp.message import (
    KEEPALIVE,
    Attributes,
    Cease,
    ErrorCode,
    GracefulRestart,
    MessageType,
    Notification,
    decode_notification,
    encode_announcement,
    encode_end_of_rib,
    nlri,
)
from bgp.peer import PeerConfig
from bgp.ranges import PeerRange
from bgp.transport import Transport
from tests.support.bgp_sockets import (
    ASN,
    PORT,
    V4,
    V6,
    Host,
    Probe,
    at,
    at6,
    connected,
    home,
    hop,
    prefix,
    running,
)
from tests.support.netns import Namespace, Namespaces, eventually

pytestmark = pytest.mark.netns

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def space(namespaces: Namespaces) -> Iterator[Namespace]:
    """The test's thread is in a namespace that has the addresses of a hundred speakers and more."""
    with ExitStack() as stack:
        yield stack.enter_context(home(namespaces, range(1, 130)).entered())


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
async def test_two_speakers_tell_each_other(six: bool) -> None:
    one, two = Host(1), Host(2)
    one.speaker.originate(V4, prefix(1))
    two.speaker.originate(V6, nlri.parse("2001:db8::/32")[1])
    async with running(one, two):
        one.peer(2, six=six)
        two.peer(1, six=six)
        one.driver.wake()
        two.driver.wake()
        await eventually(lambda: two.known() == {prefix(1)} and one.known(V6), timeout=PATIENCE)
        assert two.speaker.ribs[V4].chosen[prefix(1)][0].attributes.next_hop == at(1)
        assert two.speaker.ribs[V6].chosen.keys() == one.speaker.ribs[V6].chosen.keys()
        # What is asked of a speaker that runs is told as well.
        one.speaker.originate(V4, prefix(2))
        one.driver.wake()
        await eventually(lambda: two.known() == {prefix(1), prefix(2)}, timeout=PATIENCE)
    assert two.speaker.peers["1"].session.negotiated is None


async def test_who_is_not_told_its_addresses_announces_that_of_the_session() -> None:
    one, two = Host(1, asn=65010), Host(2, asn=65020)
    one.speaker.set_config(replace(one.speaker.config, addresses=()), 0.0)
    one.speaker.originate(V4, prefix(1))
    one.speaker.originate(V6, nlri.parse("2001:db8::/32")[1])
    async with running(one, two):
        one.peer(2, asn=65020)
        two.peer(1, asn=65010)
        for host in (one, two):
            host.driver.wake()
        await eventually(lambda: two.known() == {prefix(1)}, timeout=PATIENCE)
        assert two.speaker.ribs[V4].chosen[prefix(1)][0].attributes.next_hop == at(1)
        assert not two.known(V6)  # the session is IPv4's: there is no next hop


async def test_stopping_says_why_and_leaves_nothing_open() -> None:
    one, two = Host(1), Host(2)
    async with running(two):
        async with running(one):
            one.peer(2)
            two.peer(1)
            one.driver.wake()
            two.driver.wake()
            await eventually(lambda: one.stands(2) and two.stands(1), timeout=PATIENCE)
        await eventually(lambda: not two.stands(1), timeout=PATIENCE)
        down = two.speaker.peers["1"].session.last_down
        assert down is not None
        assert "the test is over" in down.reason
        with pytest.raises(ConnectionRefusedError):
            connected(3, 1)


async def test_stopping_without_a_word_keeps_the_routes_until_it_is_back() -> None:
    one, two = Host(1), Host(2)
    one.speaker.originate(V4, prefix(1))
    async with running(two):
        two.peer(1)
        one.driver.start()
        one.peer(2)
        one.driver.wake()
        await eventually(lambda: two.known() == {prefix(1)}, timeout=PATIENCE)
        await one.driver.stop()
        await eventually(lambda: not two.stands(1), timeout=PATIENCE)
        assert two.known() == {prefix(1)}
        again = Host(1)
        async with running(again):
            again.peer(2)
            again.driver.wake()
            # A cold start: it does not say that it has gone on forwarding, and it has nothing to announce.
            await eventually(lambda: two.stands(1) and not two.known(), timeout=PATIENCE)


async def test_a_hundred_and_one_sessions_at_once() -> None:
    clients = range(2, 103)
    reflector = Host(1)
    hosts = [Host(number, listen=False) for number in clients]
    async with running(reflector, *hosts):
        for host in hosts:
            host.speaker.originate(V4, prefix(host.number))
            reflector.peer(host.number, client=True, passive=True)
            host.peer(1)
        began, cpu = time.monotonic(), time.process_time()
        for host in (reflector, *hosts):
            host.driver.wake()
        await eventually(lambda: reflector.established() == len(clients), timeout=PATIENCE)
        print("seconds until all stand:", round(time.monotonic() - began, 3))
        everything = {prefix(number) for number in clients}
        await eventually(lambda: all(host.known() == everything for host in hosts), timeout=PATIENCE)
        print("seconds until all know all:", round(time.monotonic() - began, 3))
        print("CPU seconds of all 102:", round(time.process_time() - cpu, 3))
        assert {len(reflector.driver.channels(str(number))) for number in clients} == {1}
        assert len(reflector.speaker.advertising.groups) == 1
        assert reflector.established() == len(clients)  # nobody had to come twice


async def test_a_reset_is_a_withdrawal() -> None:
    speaker, watcher = Host(1), Host(2)
    async with running(speaker, watcher):
        speaker.peer(2)
        speaker.peer(3, client=True, passive=True)
        watcher.peer(1)
        for host in (speaker, watcher):
            host.driver.wake()
        probe = await asyncio.to_thread(Probe.connect, 3, 1)
        probe.sock.sendall(b"".join(encode_announcement(V4, Attributes(next_hop=at(3)), [prefix(3)], as4=True)))
        await eventually(lambda: watcher.known() == {prefix(3)}, timeout=PATIENCE)
        watcher.changed.clear()
        began = time.monotonic()
        probe.reset()
        async with asyncio.timeout(PATIENCE):
            while watcher.known():
                await watcher.changed.wait()
                watcher.changed.clear()
        print("milliseconds from reset to withdrawal:", round(1000 * (time.monotonic() - began), 2))
        down = speaker.speaker.peers["3"].session.last_down
        assert down is not None
        assert "reset" in down.reason


# ------------------------------------------------------------------------------------------------- who may connect


async def test_strangers_are_not_let_in() -> None:
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(2)
        sock = await asyncio.to_thread(connected, 9, 1)
        assert await asyncio.to_thread(sock.recv, 100) == b""
        sock.close()
        assert speaker.driver.refused == 1


async def test_a_second_connection_is_refused_with_a_reason() -> None:
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(2, passive=True)
        speaker.driver.wake()
        first = await asyncio.to_thread(Probe.connect, 2, 1)
        second = await asyncio.to_thread(connected, 2, 1)
        data = await asyncio.to_thread(second.recv, 100)
        assert data == Notification(ErrorCode.CEASE, Cease.CONNECTION_REJECTED).encode()
        assert await asyncio.to_thread(second.recv, 100) == b""
        second.close()
        assert speaker.stands(2)
        first.sock.close()


async def test_a_link_local_peer_may_connect(space: Namespace) -> None:
    """Its interface is in no address here, and where it comes from the kernel knows."""
    space.run("ip", "address", "add", "fe80::2/128", "dev", "lo", "nodad")
    speaker = Host(1, listen=False)
    speaker.driver.listen = (Listen(bytes(16), PORT),)
    async with running(speaker):
        config = PeerConfig("near", nlri.parse_address("fe80::2"), ASN, passive=True, hold_time=30)
        speaker.speaker.add_peer(config, 0.0)
        speaker.driver.wake()
        sock = socket.socket(socket.AF_INET6)
        sock.settimeout(PATIENCE)
        zone = socket.if_nametoindex("lo")
        sock.bind(("fe80::2", 0, 0, zone))
        # The kernel gives the new address its route a moment later.
        await eventually(lambda: sock.connect_ex(("fe80::2", PORT, 0, zone)) != errno.ENETUNREACH, timeout=PATIENCE)
        probe = await asyncio.to_thread(Probe, sock, 2)
        await eventually(lambda: speaker.established() == 1, timeout=PATIENCE)
        probe.sock.close()


async def test_a_peer_that_has_restarted_comes_in_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old connection still stands here: it is closed, and the new one is taken in its place."""
    monkeypatch.setattr("bgp.peer._SETTLED", 0.0)
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(2, passive=True)
        speaker.driver.wake()
        restart = GracefulRestart(120, False, ((V4, True),))
        first = await asyncio.to_thread(Probe.connect, 2, 1, restart=restart)
        route = Attributes(0, next_hop=at(2), local_pref=100)
        first.sock.sendall(b"".join(encode_announcement(V4, route, [prefix(1), prefix(2)], as4=True)))
        await eventually(lambda: speaker.known() == {prefix(1), prefix(2)}, timeout=PATIENCE)
        second = await asyncio.to_thread(Probe.connect, 2, 1, restart=replace(restart, restarting=True))
        await eventually(lambda: speaker.established() == 2, timeout=PATIENCE)
        assert list(speaker.driver.channels("2")) == [Direction.INCOMING]
        assert speaker.known() == {prefix(1), prefix(2)}
        second.sock.sendall(b"".join([*encode_announcement(V4, route, [prefix(1)], as4=True), encode_end_of_rib(V4)]))
        await eventually(lambda: speaker.known() == {prefix(1)}, timeout=PATIENCE)
        await asyncio.to_thread(lambda: list(first.messages()))  # until it is closed
        for probe in (first, second):
            probe.sock.close()


async def test_peers_by_prefix_come_and_go_up_to_the_limit() -> None:
    speaker = Host(1)
    async with running(speaker):
        template = replace(_config(0), client=True)
        inside = PeerRange("clients", V4, nlri.parse("10.77.0.0/24")[1], template, limit=2)
        speaker.speaker.set_peers([], 0.0, [inside])
        speaker.driver.wake()
        first, second = [await asyncio.to_thread(Probe.connect, number, 1) for number in (2, 3)]
        assert speaker.speaker.peers.keys() == {"10.77.0.2", "10.77.0.3"}
        third = await asyncio.to_thread(connected, 4, 1)
        assert await asyncio.to_thread(third.recv, 100) == b""
        third.close()
        first.reset()
        await eventually(lambda: speaker.speaker.peers.keys() == {"10.77.0.3"}, timeout=PATIENCE)
        again = await asyncio.to_thread(Probe.connect, 4, 1)
        assert speaker.speaker.peers.keys() == {"10.77.0.3", "10.77.0.4"}
        for probe in (second, again):
            probe.sock.close()


def _config(number: int, password: bytes = b"") -> PeerConfig:
    return PeerConfig(str(number), at(number), ASN, hold_time=30, transport=Transport(port=PORT, password=password))


# ------------------------------------------------------------------------------------------------------- TCP MD5


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
async def test_with_the_same_password_and_no_other(six: bool) -> None:
    one, two = Host(1), Host(2)
    place = at6 if six else at
    async with running(one, two):
        one.peer(2, six=six, transport={"password": b"right"})
        two.peer(1, six=six, transport={"password": b"right"})
        for host in (one, two):
            host.driver.wake()
        await eventually(lambda: one.stands(2) and two.stands(1), timeout=PATIENCE)
        # The password changes on one side: that session ends, and stays down until the other has it too.
        other = replace(one.speaker.peers["2"].config, transport=_transport(place(1), b"other"))
        one.speaker.set_peers([other], one.driver.now())
        one.driver.wake()
        await eventually(lambda: not one.stands(2) and not two.stands(1), timeout=PATIENCE)
        same = replace(two.speaker.peers["1"].config, transport=_transport(place(2), b"other"))
        two.speaker.set_peers([same], two.driver.now())
        two.driver.wake()
        await eventually(lambda: one.stands(2) and two.stands(1), timeout=PATIENCE)


def _transport(local: bytes, password: bytes) -> Transport:
    return Transport(port=PORT, local_address=local, password=password)


async def test_who_does_not_sign_is_not_heard() -> None:
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(2, transport={"password": b"secret"})
        speaker.peer(3)
        inside = PeerRange("signed", V4, nlri.parse("10.77.0.64/26")[1], _config(64, password=b"secret"))
        speaker.speaker.set_peers([peer.config for peer in speaker.speaker.peers.values()], 0.0, [inside])
        speaker.driver.wake()
        for number in (2, 65):
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(connected, number, 1, timeout=1.5)
        (await asyncio.to_thread(connected, 3, 1)).close()


async def test_a_range_with_a_password() -> None:
    reflector, client = Host(1), Host(70, listen=False)
    async with running(reflector, client):
        inside = PeerRange("signed", V4, nlri.parse("10.77.0.64/26")[1], _config(64, password=b"secret"))
        reflector.speaker.set_peers([], 0.0, [inside])
        reflector.driver.wake()
        client.peer(1, transport={"password": b"secret"})
        client.driver.wake()
        await eventually(lambda: client.stands(1), timeout=PATIENCE)


# ---------------------------------------------------------------------------------------------------------- GTSM


async def test_who_is_too_far_away_is_not_heard() -> None:
    speaker = Host(1)
    async with running(speaker):
        for number in (2, 3):
            speaker.peer(number, transport={"security_hops": 1 + (number == 3)}, passive=True)
        speaker.driver.wake()
        # All peers demand 254 at least: the listener does not answer a SYN from farther away.
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(connected, 2, 1, ttl=64, timeout=1.5)
        # The one that demands 255: connected, but what comes is not heard.
        far = await asyncio.to_thread(connected, 2, 1, ttl=254)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(Probe, far, 2, timeout=1.5)
        far.close()
        near = await asyncio.to_thread(connected, 3, 1, ttl=254)
        probe = await asyncio.to_thread(Probe, near, 3)
        await eventually(lambda: speaker.stands(3), timeout=PATIENCE)
        assert not speaker.stands(2)
        probe.sock.close()


async def test_two_speakers_with_ttl_security() -> None:
    one, two = Host(1), Host(2)
    async with running(one, two):
        one.peer(2, transport={"security_hops": 1})
        two.peer(1, transport={"security_hops": 1})
        for host in (one, two):
            host.driver.wake()
        await eventually(lambda: one.stands(2) and two.stands(1), timeout=PATIENCE)
        channel = next(iter(one.driver.channels("2").values()))
        assert channel.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 255
        assert channel.sock.getsockopt(socket.IPPROTO_IP, 21) == 255


async def test_what_is_sent_to_another_as_does_not_leave_the_link_unless_told() -> None:
    one, two = Host(1, asn=65010), Host(2, asn=65020)
    async with running(one, two):
        for hops in (0, 7):
            one.speaker.set_peers([], one.driver.now())
            two.speaker.set_peers([], two.driver.now())
            one.peer(2, asn=65020, transport={"multihop": hops})
            two.peer(1, asn=65010, transport={"multihop": hops})
            for host in (one, two):
                host.driver.wake()
            await eventually(lambda: one.stands(2) and two.stands(1), timeout=PATIENCE)
            for host, name in ((one, "2"), (two, "1")):
                for channel in host.driver.channels(name).values():
                    assert channel.sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == (hops or 1)


# ------------------------------------------------------------------------------------------------- errors of set-up


async def test_an_occupied_port_is_an_error_that_names_who_has_it() -> None:
    one = Host(1)
    async with running(one):
        second = Host(1)
        with pytest.raises(SetupError, match=r"port 1790 of 10\.77\.0\.1: it is in use by .* \(process \d+\); stop"):
            second.driver.start()
        assert not second.driver.started
        elsewhere = Driver(second.speaker, [Listen(at(1), PORT + 1)])
        elsewhere.start()
        await elsewhere.stop()


async def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.1 is not an address of this host"):
        Driver(Host(1).speaker, [Listen(bytes((192, 0, 2, 1)), PORT)]).start()


async def test_a_local_address_that_is_not_ours_is_why_the_session_is_down() -> None:
    one = Host(1)
    async with running(one):
        one.peer(2, transport={"local_address": bytes((192, 0, 2, 1))})
        one.driver.wake()

        def why() -> bool:
            failure = one.speaker.peers["2"].session.last_failure
            return failure is not None and "192.0.2.1 is not on this host" in failure.reason

        await eventually(why, timeout=PATIENCE)


async def test_nobody_there_is_tried_again() -> None:
    one = Host(1)
    async with running(one):
        one.peer(2)
        one.driver.wake()
        await eventually(lambda: len(one.news) > 2, timeout=PATIENCE)
        failure = one.speaker.peers["2"].session.last_failure
        assert failure is not None
        assert "connection refused" in failure.reason
        two = Host(2)
        async with running(two):
            two.peer(1, passive=True)
            two.driver.wake()
            await eventually(lambda: one.stands(2), timeout=PATIENCE)


# ------------------------------------------------------------------------------------------------------------ load


def _feed(probe: Probe, numbers: range, med: int = 0) -> None:
    """Distinct routes, one an UPDATE, as fast as they are taken."""
    for start in range(numbers.start, numbers.stop, 1000):
        messages = [
            message
            for number in range(start, min(start + 1000, numbers.stop))
            for message in encode_announcement(
                V4, Attributes(next_hop=hop(number), local_pref=100, med=med), [prefix(number)], as4=True
            )
        ]
        probe.sock.sendall(b"".join(messages))


def _keepalive_gaps(probe: Probe, end: asyncio.Event) -> list[float]:
    """Seconds between a silent peer's keepalives; it sends its own, and reads nothing else."""
    last, gaps = time.monotonic(), []
    for kind, _ in probe.messages():
        if kind == MessageType.KEEPALIVE:
            now = time.monotonic()
            gaps.append(now - last)
            last = now
            probe.sock.sendall(KEEPALIVE)
        if end.is_set():
            break
    return gaps


async def _most_of_a_turn(done: Callable[[], tuple[int, ...]], end: asyncio.Event) -> int:
    """How many routes were worked through between two turns of a task that is always ready, at most.

    A count, and not a time: it is the same on a machine that is slow, or where others have its processors.
    """
    most, last = 0, done()
    while not end.is_set():
        await asyncio.sleep(0)
        now = done()
        most = max(most, sum(abs(one - other) for one, other in zip(now, last, strict=True)))
        last = now
    return most


async def test_keepalives_go_out_on_time_while_100_000_routes_are_processed() -> None:
    speaker = Host(1)
    count, hold = 100_000, 9
    async with running(speaker):
        speaker.peer(2, client=True, passive=True, hold_time=90)
        speaker.peer(3, client=True, passive=True, hold_time=hold)
        speaker.peer(4, client=True, passive=True, next_hop_self=True)
        speaker.driver.wake()
        feeder = await asyncio.to_thread(Probe.connect, 2, 1)
        idle = await asyncio.to_thread(Probe.connect, 3, 1, hold_time=hold)
        end = asyncio.Event()
        watching = asyncio.create_task(asyncio.to_thread(_keepalive_gaps, idle, end))
        began, cpu = time.monotonic(), time.thread_time()
        rib = speaker.speaker.ribs[V4]

        def done() -> tuple[int, ...]:
            recorders = [peer.session.recorder for peer in speaker.speaker.peers.values()]
            messages = sum(sum(recorder.received) + sum(recorder.sent) for recorder in recorders)
            return len(rib.chosen), messages

        turns = asyncio.create_task(_most_of_a_turn(done, end))

        def arrived(last: int, med: int) -> bool:
            chosen = rib.chosen.get(prefix(last - 1))
            return chosen is not None and chosen[0].attributes.med == med

        for med, some in ((0, count), (1, count // 5)):  # new ones, then changes
            feeding = asyncio.create_task(asyncio.to_thread(_feed, feeder, range(some), med))
            await eventually(partial(arrived, some, med), timeout=PATIENCE)
            await feeding
        print("seconds for 120,000 UPDATEs:", round(time.monotonic() - began, 2))
        print("CPU seconds of the speaker's thread:", round(time.thread_time() - cpu, 2))
        assert len(rib.chosen) == count
        late = await asyncio.to_thread(Probe.connect, 4, 1)  # to be told all of it, in a group of its own
        await asyncio.to_thread(late.read_until, lambda table: len(table) == count)
        late.sock.close()
        feeder.reset()  # and all of them go
        await eventually(lambda: not rib.chosen, timeout=PATIENCE)
        end.set()
        try:
            gaps = await watching
        finally:
            idle.sock.close()
        print("longest gap between keepalives:", round(max(gaps), 2))
        most = await turns
        print("most routes and messages in a turn of the loop:", most)
        assert most < count / 10
        assert max(gaps) < hold
        assert speaker.stands(3)
        assert speaker.speaker.peers["3"].flaps == 0


async def test_a_peer_that_does_not_read_costs_little_and_gets_it_right_in_the_end(space: Namespace) -> None:
    space.sysctl("net/ipv4/tcp_wmem", "4096 16384 65536")  # what the kernel takes off us does not count
    speaker, other = Host(1), Host(2)
    count = 8000
    async with running(speaker, other):
        speaker.peer(2, client=True)
        speaker.peer(3, client=True, passive=True, hold_time=0)
        other.peer(1)
        for host in (speaker, other):
            host.driver.wake()
        slow = await asyncio.to_thread(Probe.connect, 3, 1, hold_time=0)
        most = 0
        for med in range(10):
            for number in range(count):
                speaker.speaker.originate(V4, prefix(number), Attributes(next_hop=hop(number), med=med))
            speaker.driver.wake()

            def told(med: int = med) -> bool:
                chosen = other.speaker.ribs[V4].chosen
                return len(chosen) == count and all(route[0].attributes.med == med for route in chosen.values())

            await eventually(told, timeout=PATIENCE)  # who reads is not kept waiting
            channel = speaker.driver.channels("3")[Direction.INCOMING]
            most = max(most, channel.waiting)
        for number in range(count // 2):
            speaker.speaker.retract(V4, prefix(number))
        speaker.driver.wake()
        await eventually(lambda: len(other.speaker.ribs[V4].chosen) == count // 2, timeout=PATIENCE)
        assert speaker.speaker.advertising.is_held(speaker.speaker.peers["3"].source)
        assert 1 << 20 < most < 3 << 20
        wanted = {prefix(number) for number in range(count // 2, count)}
        await asyncio.to_thread(slow.read_until, lambda table: _is(table, wanted, med=9))
        assert not speaker.speaker.advertising.is_held(speaker.speaker.peers["3"].source)
        slow.sock.close()


def _is(table: dict[bytes, Attributes], wanted: set[bytes], med: int) -> bool:
    return table.keys() == wanted and all(attributes.med == med for attributes in table.values())


async def test_a_peer_that_takes_nothing_loses_its_session(space: Namespace) -> None:
    """RFC 9687 on a real socket: who reads a little goes on, who reads nothing is given up."""
    space.sysctl("net/ipv4/tcp_wmem", "4096 16384 65536")
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(3, client=True, passive=True, hold_time=600, send_hold=2)
        speaker.driver.wake()
        slow = await asyncio.to_thread(Probe.connect, 3, 1, hold_time=600)
        slow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        session = speaker.speaker.peers["3"].session
        for number in range(30000):
            speaker.speaker.originate(V4, prefix(number), Attributes(next_hop=hop(number)))
        speaker.driver.wake()
        await eventually(lambda: session.timers()["send_hold"] is not None, timeout=PATIENCE)
        first = session.timers()["send_hold"]
        while session.timers()["send_hold"] == first and speaker.stands(3):
            await asyncio.to_thread(slow.sock.recv, 1 << 20)  # it has taken something: the timer begins anew
            await asyncio.sleep(0)
        assert speaker.stands(3)
        await eventually(lambda: not speaker.stands(3), timeout=PATIENCE)
        assert session.last_down is not None
        assert session.last_down.reason.startswith("send hold timer expired (8/0)")
        slow.sock.close()


async def test_a_peer_that_was_not_read_in_time_is_not_held_for_dead() -> None:
    """The loop stands still for longer than the hold time; the peer's keepalives lie in its socket meanwhile."""
    one = Host(1)
    async with running(one):
        one.peer(3, passive=True, hold_time=3)
        one.driver.wake()
        probe = await asyncio.to_thread(Probe.connect, 3, 1, hold_time=3)
        end = asyncio.Event()
        watching = asyncio.create_task(asyncio.to_thread(_keepalive_gaps, probe, end))
        probe.sock.sendall(KEEPALIVE)
        until = time.monotonic() + 4
        while time.monotonic() < until:  # the loop has no turn
            time.sleep(0.1)
        before = one.speaker.peers["3"].session.recorder.sent[MessageType.KEEPALIVE]
        await eventually(
            lambda: one.speaker.peers["3"].session.recorder.sent[MessageType.KEEPALIVE] > before, timeout=PATIENCE
        )
        assert one.speaker.peers["3"].flaps == 0
        assert one.stands(3)
        end.set()
        probe.sock.shutdown(socket.SHUT_RDWR)
        await watching
        probe.sock.close()


async def test_the_last_words_arrive_though_octets_lie_unread() -> None:
    """Closed with unread octets a socket sends a reset, which would overtake the NOTIFICATION."""
    speaker = Host(1)
    async with running(speaker):
        speaker.peer(2, passive=True)
        speaker.driver.wake()
        probe = await asyncio.to_thread(Probe.connect, 2, 1)
        probe.sock.sendall(bytes(19) + bytes(100_000))
        messages = await asyncio.to_thread(lambda: list(probe.messages()))
        kind, body = messages[-1]
        assert kind == MessageType.NOTIFICATION
        assert decode_notification(body).code == ErrorCode.MESSAGE_HEADER
        probe.sock.close()
