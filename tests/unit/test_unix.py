"""Whether somebody is at a unix socket."""

from __future__ import annotations

import socket
from pathlib import Path

from netagent import unix


def test_nobody_is_at_a_path_without_a_socket_nor_at_a_dead_ones(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert not unix.answers(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    assert path.exists()
    assert not unix.answers(path)


def test_who_takes_no_more_connections_is_there(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(0)
        assert unix.answers(path)
        waiting = []
        try:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                waiting[-1].setblocking(False)
                waiting[-1].connect(str(path))
        except BlockingIOError:
            pass
        assert unix.answers(path)
        for sock in waiting:
            sock.close()
