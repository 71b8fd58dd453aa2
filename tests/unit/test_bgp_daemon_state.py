"""What the daemon writes down of its peers, for whom it waits after a restart."""

from __future__ import annotations

import json
from pathlib import Path

from bgp.aio import Driver
from bgp.daemon.run import Daemon
from bgp.speaker import Speaker

CONFIG = """
[speaker]
asn = 65001
router-id = "192.0.2.1"
state = "{state}"
[[peers]]
name = "two"
address = "192.0.2.2"
[[peers]]
name = "three"
address = "192.0.2.3"
shutdown = "tea"
"""


def test_a_daemon_that_dies_while_it_waits_waits_for_the_same_peers_again(tmp_path: Path) -> None:
    """The second crash comes before the peers are back: they still keep our routes."""
    path, state = tmp_path / "speaker.toml", tmp_path / "state"
    path.write_text(CONFIG.format(state=state))
    state.write_text(json.dumps({"established": ["two", "three"]}))
    daemon = Daemon(str(path))
    config = daemon.config
    daemon.speaker = Speaker(config.speaker, lambda: 0.5, restarting=daemon._stood(), deferral=100)
    daemon.speaker.set_peers(config.peers, 0)
    daemon._save()
    assert daemon._stood() == ["two"]
    daemon.speaker.expire(101)
    daemon._save()
    assert daemon._stood() == []


async def test_a_reload_that_comes_before_the_start_is_over_counts(tmp_path: Path) -> None:
    """SIGHUP and the control socket are heard a moment before the driver runs."""
    path = tmp_path / "speaker.toml"
    path.write_text(CONFIG.format(state=tmp_path / "state"))
    daemon = Daemon(str(path))
    daemon.speaker = Speaker(daemon.config.speaker, lambda: 0.5)
    daemon.driver = Driver(daemon.speaker)
    daemon.speaker.set_peers(daemon.config.peers, 0)
    path.write_text(CONFIG.format(state=tmp_path / "state").replace("192.0.2.3", "192.0.2.4"))
    assert daemon.reload() == ""
    assert daemon.speaker.peers["three"].config.address == bytes((192, 0, 2, 4))
    (summary,) = daemon._answer({"command": "summary"})
    assert summary["peers"] == 2
