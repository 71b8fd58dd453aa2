#!/bin/bash
# What an administrator does on each machine, by its role: etcd, router or node. May be run again.
#
# eth0 is Vagrant's own network, the same on every machine, and never the one between the hosts (VirtualBox gives all of
# them 10.0.2.15 there). So the nodes are told to take the interface by which etcd is reached.
set -euo pipefail

# ---- The networks between the machines: eth1 and on. Nothing else is touched.
mkdir -p /etc/systemd/network
number=0
for leg in $LEGS; do
    number=$((number + 1))
    {
        printf '[Match]\nName=eth%d\n\n[Network]\nAddress=%s\nAddress=%s\n' "$number" "${leg%,*}" "${leg#*,}"
        printf 'LinkLocalAddressing=ipv6\nIPv6AcceptRA=no\nLLMNR=no\n'
        for gateway in $GATEWAYS; do
            for prefix in $PREFIXES; do
                case $gateway,$prefix in
                    *:*,*:* | *.*,*.*) ;;
                    *) continue ;;
                esac
                # Its own rack is on the link: the shorter way wins by its metric.
                printf '\n[Route]\nDestination=%s\nGateway=%s\nMetric=2048\n' "$prefix" "$gateway"
            done
        done
    } >"/etc/systemd/network/10-netagent-eth$number.network"
done
if [[ $ROLE == router ]]; then
    printf 'net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n' >/etc/sysctl.d/50-router.conf
    sysctl --quiet --load=/etc/sysctl.d/50-router.conf
fi
conf=/etc/systemd/networkd.conf.d/netagent.conf
if [[ $ROLE == node && ! -e $conf ]]; then # or it would take routes away that are not its own
    mkdir -p "${conf%/*}"
    printf '[Network]\nManageForeignRoutes=no\n' >$conf
    ! systemctl is-active --quiet systemd-networkd || systemctl restart systemd-networkd
fi
systemctl enable --quiet systemd-networkd
if systemctl is-active --quiet systemd-networkd; then
    networkctl reload
else
    systemctl start systemd-networkd
fi

await() { # await SECONDS WHAT COMMAND...: until the command succeeds
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { echo "$what: not in time" >&2; exit 1; }
        sleep 0.5
    done
}
for leg in $LEGS; do
    address=${leg%,*}
    await 120 "the address $address" sh -c "ip -4 address show | grep -q 'inet $address'"
done

case $ROLE in
    router)
        # A BGP speaker for the racks that want one: each rack is an AS of its own, 65001 and on, and it hears every node
        # that asks. Where no node does it has nothing to say.
        command -v bird >/dev/null || { apt-get update -qq && apt-get install -qq -y bird2; }
        {
            printf 'router id %s;\nprotocol device {}\n' "${LEGS%%/*}"
            for family in ipv4 ipv6; do
                printf 'protocol kernel { %s { import none; export where source = RTS_BGP; }; }\n' "$family"
            done
            printf 'template bgp node { local as 65100; ipv4 { import all; export all; }; ipv6 { import all; export all; }; }\n'
            as=65000
            for prefix in $PREFIXES; do
                [[ $prefix != *:* ]] || continue
                as=$((as + 1))
                printf 'protocol bgp as%d from node { neighbor range %s as %d; dynamic name "as%d_"; }\n' $as "$prefix" $as $as
            done
        } >/etc/bird/bird.conf
        systemctl enable --quiet bird
        systemctl restart bird
        ;;
    etcd)
        command -v etcd >/dev/null || { apt-get update -qq && apt-get install -qq -y etcd-server etcd-client; }
        printf 'ETCD_LISTEN_CLIENT_URLS=http://%s:2379,http://127.0.0.1:2379\nETCD_ADVERTISE_CLIENT_URLS=http://%s:2379\n' \
            "$ETCD" "$ETCD" >/etc/default/etcd
        systemctl enable --quiet etcd
        systemctl restart etcd
        export ETCDCTL_API=3
        await 120 "etcd" etcdctl endpoint health
        etcdctl put /coreos.com/network/config "$CONFIG"
        ;;
    node)
        mkdir -p /etc/netagent
        # A file that is there is kept when the package is installed.
        cat >/etc/netagent/netagent.toml <<END
etcd_endpoints = ["http://$ETCD:2379"]
iface_can_reach = "$ETCD"
labels = ["rack=$RACK"]
END
        dpkg --install --force-confold /tmp/netagent.deb 2>/tmp/dpkg.log ||
            { apt-get update -qq && apt-get install -qq -y --fix-broken; } || { cat /tmp/dpkg.log >&2; exit 1; }
        systemctl enable --quiet netagent
        systemctl restart --no-block netagent
        await 900 "the subnet" test -s /run/netagent/subnet.env
        # A container, as a runtime makes one from subnet.env: a network namespace on a bridge of the host.
        . /run/netagent/subnet.env
        if ! ip netns list | grep -qw c1; then
            ip netns add c1
            ip link add br0 type bridge
            ip link add veth-c1 type veth peer name eth0 netns c1
            ip link set veth-c1 master br0
            ip -n c1 link set lo up
        fi
        ip link set veth-c1 mtu "$FLANNEL_MTU" up
        ip link set br0 mtu "$FLANNEL_MTU" up
        ip -n c1 link set eth0 mtu "$FLANNEL_MTU" up
        for subnet in "$FLANNEL_SUBNET" "${FLANNEL_IPV6_SUBNET:-}"; do
            [[ -n $subnet ]] || continue
            gateway=${subnet%/*}
            ip address replace "$subnet" dev br0
            ip -n c1 address replace "${gateway%1}2/${subnet#*/}" dev eth0
            ip -n c1 route replace default via "$gateway"
        done
        ;;
esac
