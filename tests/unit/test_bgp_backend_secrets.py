"""Password files: read, rotated, and away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.bgp.secrets import Secrets
from backends.bgp.sessions import Secret


def test_a_rotated_password_is_taken_and_a_vanished_one_kept(tmp_path: Path) -> None:
    file, secrets = tmp_path / "secret", Secrets()
    path = str(file)
    file.write_text("hush\n")
    assert secrets.read([path])
    assert secrets.known == {path: Secret(b"hush")}
    assert not secrets.read([path]), "nothing new"
    file.write_text("tell\nnobody\n")
    assert secrets.read([path])
    assert secrets.known == {path: Secret(b"tell")}
    file.unlink()
    assert secrets.read([path])
    assert secrets.known == {path: Secret(b"tell", "cannot be read: no such file or directory")}
    assert not secrets.read([path])
    file.write_text("")
    assert secrets.read([path])
    assert secrets.known == {path: Secret(b"tell", "has an empty first line")}
    file.write_text("anew")
    assert secrets.read([path])
    assert secrets.known == {path: Secret(b"anew")}
    assert secrets.read([])
    assert secrets.known == {}


@pytest.mark.parametrize("what", ["a pipe", "a directory", "endless", "a name too long", "a zero octet"])
def test_what_is_no_file_is_told_and_not_waited_for(tmp_path: Path, what: str) -> None:
    path = str(tmp_path / "it")
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a directory":
        Path(path).mkdir()
    else:
        path = {"endless": "/dev/zero", "a name too long": "/" + "x" * 5000, "a zero octet": "/x\0"}[what]
    secrets = Secrets()
    secrets.read([path])
    assert not secrets.known[path].password
    assert secrets.known[path].problem
