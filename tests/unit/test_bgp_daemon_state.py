"""What the daemon writes down of its peers, for whom it waits after a restart."""

from __future__ import annotations

import json
from pathlib import Path

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
