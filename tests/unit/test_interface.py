"""Which interface and address: every rule, every trap of the field, and what the operator is told."""

import pytest

from netagent.config import Settings
from netagent.errors import ConfigError
from netagent.kernel.interface import Choice, choose
from netagent.model import AddressFact, Facts, LinkFact, Network, RouteFact

V4 = Network(v4="10.5.0.0/16", subnet_len=24)
V6 = Network(v6="fc00::/48", subnet_len6=64)
DUAL = Network(v4="10.5.0.0/16", subnet_len=24, v6="fc00::/48", subnet_len6=64)


def facts(*addresses: AddressFact | str, default: str = "eth0", mtu: int = 1500, gateway: str | None = None) -> Facts:
    """Addresses as "eth0 192.168.50.11/24" or facts; a default route on `default`, unless ""."""
    listed = [address if isinstance(address, AddressFact) else address_of(address) for address in addresses]
    names = dict.fromkeys(["lo", *(address.dev for address in listed)])
    links = {
        name: LinkFact(
            name=name,
            index=position,
            mtu=mtu,
            up=True,
            carrier=True,
            loopback=name == "lo",
            own=name.startswith("na"),
        )
        for position, name in enumerate(names, 1)
    }
    routes = []
    for metric, dev in enumerate(default.split()):
        routes += [
            RouteFact(dst="0.0.0.0/0", dev=dev, gateway=gateway or "192.168.50.1", metric=metric),
            RouteFact(dst="::/0", dev=dev, gateway="fe80::1", metric=metric),
        ]
    return Facts(links, tuple(listed), tuple(routes))


def address_of(text: str, **flags: bool) -> AddressFact:
    dev, address = text.split()
    ip, _, length = address.partition("/")
    scope = "link" if ip.startswith("fe80") else "host" if dev == "lo" else "global"
    return AddressFact(dev=dev, ip=ip, length=int(length), scope=scope, **flags)


def pick(found: Facts, network: Network = V4, **settings: object) -> Choice:
    return choose(found, Settings(**settings), network, lambda _: None)  # type: ignore[arg-type]


PLAIN = facts("eth0 192.168.50.11/24", "eth1 172.16.0.11/24", "eth0 fe80::11/64", "eth0 2001:db8::11/64")
VAGRANT = facts("eth0 10.0.2.15/24", "eth1 192.168.50.11/24")


def test_default_route() -> None:
    choice = pick(PLAIN)
    assert choice == Choice(
        interface="eth0",
        mtu=1500,
        local_ip="192.168.50.11",
        public_ip="192.168.50.11",
        why="it holds the default route",
        others=("eth1 172.16.0.11: not on the default route", "eth0 2001:db8::11: the network has no IPv6"),
    )


def test_the_default_route_with_the_best_metric() -> None:
    choice = pick(facts("eth0 192.168.50.11/24", "eth1 172.16.0.11/24", default="eth1 eth0", gateway="172.16.0.1"))
    assert choice.interface == "eth1"
    assert choice.others == ("eth0 192.168.50.11: a worse default route",)


def test_ipv6_only_goes_by_the_ipv6_default_route() -> None:
    choice = pick(PLAIN, V6)
    assert (choice.interface, choice.local_ip, choice.local_ip6, choice.public_ip) == (
        "eth0",
        None,
        "2001:db8::11",
        None,
    )


def test_dual_stack_needs_both_on_one_interface() -> None:
    choice = pick(PLAIN, DUAL)
    assert (choice.public_ip, choice.public_ip6) == ("192.168.50.11", "2001:db8::11")
    with pytest.raises(ConfigError, match=r"eth0 \(it holds the default route\) has no usable IPv6 address"):
        pick(facts("eth0 192.168.50.11/24", "eth0 fe80::11/64"), DUAL)


def test_vagrant_is_warned_of() -> None:
    choice = pick(VAGRANT)
    assert choice.public_ip == "10.0.2.15"
    assert "VirtualBox and Vagrant give every machine" in choice.why
    assert choice.others == ("eth1 192.168.50.11: not on the default route",)


@pytest.mark.parametrize("name", ["eth1", "192.168.50.11"])
def test_iface_by_name_and_by_address(name: str) -> None:
    choice = pick(VAGRANT, iface=(name,))
    assert (choice.interface, choice.public_ip) == ("eth1", "192.168.50.11")
    assert choice.why.startswith("--iface names")
    assert choice.others == ("eth0 10.0.2.15: holds the default route",)


def test_the_first_iface_that_exists_wins() -> None:
    assert pick(VAGRANT, iface=("eth9", "10.9.9.9", "eth1", "eth0")).interface == "eth1"


def test_iface_that_is_missing_is_no_reason_to_take_another() -> None:
    with pytest.raises(ConfigError) as caught:
        pick(VAGRANT, iface=("eth9", "10.9.9.9"))
    said = str(caught.value)
    assert "there is no interface eth9; no interface has the address 10.9.9.9" in said
    assert "Name one with --iface. There is: eth0 10.0.2.15, eth1 192.168.50.11" in said


def test_iface_address_is_the_one_bound_to_even_if_it_is_a_secondary() -> None:
    found = facts("eth0 192.168.50.11/24", address_of("eth0 192.168.50.99/24", temporary=True))
    assert pick(found, iface=("192.168.50.99",)).local_ip == "192.168.50.99"
    assert pick(found).others == ("eth0 192.168.50.99: secondary",)


@pytest.mark.parametrize(("pattern", "dev"), [("eth[1-9]", "eth1"), (r"^192\.168\.", "eth1"), ("^eth", "eth0")])
def test_iface_regex_on_names_and_addresses(pattern: str, dev: str) -> None:
    assert pick(VAGRANT, iface_regex=(pattern,)).interface == dev


def test_iface_regex_takes_a_container_bridge_last() -> None:
    found = facts("docker0 172.17.0.1/16", "eth0 172.17.9.9/16")
    assert pick(found, iface_regex=(r"^172\.17\.",)).interface == "eth0"
    assert pick(found, iface_regex=("^docker0$",)).interface == "docker0"
    with pytest.raises(ConfigError, match="no interface or address matches --iface-regex wlan"):
        pick(found, iface_regex=("wlan",))


def test_iface_can_reach() -> None:
    route = RouteFact(dst="192.168.50.12/32", dev="eth1", src="192.168.50.11")
    choice = choose(VAGRANT, Settings(iface_can_reach="192.168.50.12"), V4, lambda ip: route)
    assert (choice.interface, choice.local_ip) == ("eth1", "192.168.50.11")
    assert choice.why == "192.168.50.12 is reached by it (--iface-can-reach)"
    with pytest.raises(ConfigError, match=r"no route to 192\.168\.50\.12"):
        choose(VAGRANT, Settings(iface_can_reach="192.168.50.12"), V4, lambda ip: None)
    with pytest.raises(ConfigError, match="is reached by lo, which is the loopback"):
        local = RouteFact(dst="192.168.50.11/32", dev="lo")
        choose(VAGRANT, Settings(iface_can_reach="192.168.50.11"), V4, lambda ip: local)


def test_public_ip_behind_nat_changes_only_what_peers_send_to() -> None:
    choice = pick(PLAIN, public_ip="203.0.113.7")
    assert (choice.interface, choice.local_ip, choice.public_ip) == ("eth0", "192.168.50.11", "203.0.113.7")


def test_public_ip_of_an_interface_picks_it() -> None:
    choice = pick(VAGRANT, public_ip="192.168.50.11")
    assert (choice.interface, choice.local_ip, choice.public_ip) == ("eth1", "192.168.50.11", "192.168.50.11")
    assert choice.why == "it has the address 192.168.50.11 of --public-ip"


def test_a_lasting_address_comes_first() -> None:
    found = facts(
        address_of("eth0 192.168.50.5/24", deprecated=True),
        "eth0 192.168.50.100/32",
        "eth0 192.168.50.11/24",
        address_of("eth0 192.168.50.12/24", temporary=True),
    )
    choice = pick(found)
    assert choice.local_ip == "192.168.50.11"
    assert choice.others == (
        "eth0 192.168.50.5: deprecated",
        "eth0 192.168.50.100: looks like a virtual address",
        "eth0 192.168.50.12: secondary",
    )


def test_a_temporary_ipv6_address_is_passed_over_even_as_the_routes_source() -> None:
    found = facts(address_of("eth0 2001:db8::aaaa/64", temporary=True), "eth0 2001:db8::11/64")
    route = RouteFact(dst="::/0", dev="eth0", src="2001:db8::aaaa")
    choice = choose(Facts(found.links, found.addresses, (route,)), Settings(), V6, lambda _: None)
    assert choice.public_ip6 == "2001:db8::11"
    assert choice.others == ("eth0 2001:db8::aaaa: temporary",)


def test_the_address_in_the_gateways_prefix_comes_first() -> None:
    assert pick(facts("eth0 10.1.1.1/24", "eth0 192.168.50.11/24")).local_ip == "192.168.50.11"


def test_never_an_address_inside_the_container_network() -> None:
    found = facts("eth0 10.5.9.9/24", "eth0 192.168.50.11/24", gateway="10.5.9.1")
    choice = pick(found)
    assert choice.local_ip == "192.168.50.11"
    assert choice.others == ("eth0 10.5.9.9: inside the container network 10.5.0.0/16",)
    with pytest.raises(ConfigError, match=r"There is: eth0 10\.5\.9\.9: inside the container network"):
        pick(facts("eth0 10.5.9.9/24"))


def test_own_devices_and_loopback_are_refused_even_by_name() -> None:
    found = facts("lo 127.0.0.1/8", "na-vx1 192.0.2.1/32", "eth0 192.168.50.11/24")
    for name, words in (("na-vx1", "na-vx1, which is netagent's own"), ("lo", "lo, which is the loopback")):
        with pytest.raises(ConfigError, match=words):
            pick(found, iface=(name,))
    assert pick(found).others == ("na-vx1 192.0.2.1: netagent's own",)


def test_without_default_route_the_only_interface() -> None:
    found = facts("docker0 172.17.0.1/16", "eth1 192.168.50.11/24", default="")
    choice = pick(found)
    assert (choice.interface, choice.why) == ("eth1", "it is the only interface with an address")
    assert choice.others == ("docker0 172.17.0.1: for containers or virtual machines",)


def test_without_default_route_two_interfaces_are_a_question_to_the_operator() -> None:
    with pytest.raises(ConfigError, match="no default route, and no single interface with an address") as caught:
        pick(facts("eth1 192.168.50.11/24", "eth2 192.168.60.11/24", default=""))
    assert "There is: eth1 192.168.50.11, eth2 192.168.60.11" in caught.value.remedy


def test_nothing_at_all() -> None:
    with pytest.raises(ConfigError, match=r"and no interface with an address\. Give an interface"):
        pick(facts("lo 127.0.0.1/8", default=""))


def test_a_long_list_is_cut() -> None:
    found = facts("eth0 192.168.50.11/24", *(f"eth{i} 10.9.{i}.1/24" for i in range(1, 30)))
    assert pick(found).others[-1] == "and 17 more"
    assert len(pick(found).others) == 13


def test_mtu_is_the_interfaces() -> None:
    assert pick(facts("eth0 192.168.50.11/24", mtu=9000)).mtu == 9000
