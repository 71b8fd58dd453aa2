"""systemd-networkd, where it takes away what is ours: told with the command that keeps its hands off.

By default networkd removes routes that it did not make (ManageForeignRoutes= in networkd.conf(5)) whenever it
configures a link anew: ours on an uplink (host-gw, DirectRouting) go with them. The reconciler puts them back at
once, but each time packets are lost meanwhile. And a device of ours that one of its .network files matches loses its
addresses too.

Rules: only files are read, networkd is never asked. Its state (/run/systemd/netif/links, one file a link, named by
ifindex) counts only where it is that of the links here: in another network namespace the numbers mean other links.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from netagent.model import Finding

_STATE = "run/systemd/netif/links"
# Where settings lie, by rank: of two drop-ins with one name only the first counts (systemd.syntax(7)).
_FOLDERS = ("etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd")
_HANDS_OFF = frozenset(("", "unmanaged", "linger", "pending"))
_NO = frozenset(("no", "false", "off", "n", "f", "0"))

KEEP_ROUTES = (
    "mkdir -p /etc/systemd/networkd.conf.d && "
    "printf '[Network]\\nManageForeignRoutes=no\\n' >/etc/systemd/networkd.conf.d/netagent.conf && "
    "systemctl restart systemd-networkd"
)
KEEP_OFF = (
    "printf '[Match]\\nName={device}\\n[Link]\\nUnmanaged=yes\\n' >/etc/systemd/network/10-{device}.network && "
    "networkctl reload"
)


def inspect(
    links: Mapping[int, str], own: Collection[str], carriers: Collection[str], *, root: Path = Path("/")
) -> list[Finding]:
    """`links`: every link's name by ifindex; `own`: devices of ours; `carriers`: others' that routes of ours name."""
    managed = _managed(links, root)
    found = [_device(name, file) for name, file in managed.items() if name in own]
    routed = [name for name in managed if name in carriers and name not in own]
    if routed and _manages_routes(root):
        found += [_routes(name, managed[name]) for name in routed]
    return found


def _managed(links: Mapping[int, str], root: Path) -> dict[str, str]:
    """The links that networkd configures, with the file by which it does."""
    try:
        states = {int(path.name): path for path in (root / _STATE).iterdir()}
    except (OSError, ValueError):
        return {}
    if states.keys() != links.keys():
        return {}
    managed = {}
    for index, path in states.items():
        state = _assignments(path)
        if state.get("ADMIN_STATE", "") not in _HANDS_OFF:
            managed[links[index]] = state.get("NETWORK_FILE", "")
    return managed


def _manages_routes(root: Path) -> bool:
    """ManageForeignRoutes=, from networkd.conf and its drop-ins; yes where nothing is said."""
    dropins: dict[str, Path] = {}
    main: list[Path] = []
    for folder in (root / name for name in _FOLDERS):
        main += [folder / "networkd.conf"] if not main and (folder / "networkd.conf").exists() else []
        for path in folder.glob("networkd.conf.d/*.conf"):
            dropins.setdefault(path.name, path)
    value = ""
    for path in [*main, *(dropins[name] for name in sorted(dropins))]:
        value = _assignments(path, "Network").get("ManageForeignRoutes", value)
    return value.lower() not in _NO


def _assignments(path: Path, section: str = "") -> dict[str, str]:
    """KEY=VALUE lines, of one section where one is named; nothing of what cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    present = ""
    for line in (line.strip() for line in lines):
        if line.startswith("["):
            present = line.strip("[]")
        elif present == section and not line.startswith(("#", ";")):
            key, equals, value = line.partition("=")
            if equals:
                found[key.strip()] = value.strip()
    return found


def _routes(device: str, file: str) -> Finding:
    return Finding(
        code="networkd-routes",
        subject=device,
        message=f"systemd-networkd removes routes to other hosts' containers whenever it configures {device} anew",
        evidence=f"ManageForeignRoutes is not off, and {device} is configured by {file or 'networkd'}",
        remedy=KEEP_ROUTES,
    )


def _device(device: str, file: str) -> Finding:
    return Finding(
        code="networkd-device",
        subject=device,
        message=f"systemd-networkd configures {device}, which is netagent's: it removes addresses and routes there",
        evidence=f"{device} is matched by {file or 'a .network file'}",
        remedy=KEEP_OFF.format(device=device),
    )
