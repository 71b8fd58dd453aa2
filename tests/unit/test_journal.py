"""The journal: on disk before the change, the first old value kept, and good for one boot and namespace only."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from netagent import files
from netagent.errors import KernelError
from netagent.kernel.journal import Entry, Journal

KEY = "sysctl:net/ipv4/ip_forward"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.json"


def journal(path: Path | None, epoch: str = "boot1/4026531840") -> Journal:
    return Journal(path, epoch=epoch)


def test_survives_a_restart(path: Path) -> None:
    journal(path).record(KEY, "0", "1")
    assert journal(path).entries() == {KEY: Entry("0", "1")}
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_first_old_value_stays(path: Path) -> None:
    first = journal(path)
    first.record(KEY, "0", "1")
    first.record(KEY, "7", "2")
    assert journal(path).get(KEY) == Entry("0", "2")


def test_values_of_each_kind(path: Path) -> None:
    first = journal(path)
    first.record("offload:eth0:tx", True, False)
    first.record("address:eth0:10.0.0.1", None, "32")
    assert journal(path).entries() == {
        "offload:eth0:tx": Entry(True, False),
        "address:eth0:10.0.0.1": Entry(None, "32"),
    }
    assert list(journal(path).entries("offload:")) == ["offload:eth0:tx"]


def test_forgotten(path: Path) -> None:
    first = journal(path)
    first.record(KEY, "0", "1")
    first.forget(KEY)
    first.forget(KEY)
    assert journal(path).entries() == {}


def test_a_reboot_has_undone_everything(path: Path) -> None:
    journal(path, "boot1/1").record(KEY, "0", "1")
    later = journal(path, "boot2/1")
    assert later.entries() == {}
    later.record("sysctl:other", "a", "b")
    assert list(json.loads(path.read_text())["entries"]) == ["boot2/1"]


def test_namespaces_of_one_boot_keep_apart(path: Path) -> None:
    journal(path, "boot1/1").record(KEY, "0", "1")
    other = journal(path, "boot1/2")
    assert other.entries() == {}
    other.record(KEY, "2", "1")
    assert journal(path, "boot1/1").get(KEY) == Entry("0", "1")
    assert journal(path, "boot1/2").get(KEY) == Entry("2", "1")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 2, "entries": {}}',
        '{"version": 1, "entries": {"boot1/4026531840": {"k": {"old": 1, "new": "2"}}}}',
        '{"version": 1, "entries": {"boot1/4026531840": []}}',
        "\xff",
        "[" * 100_000,
    ],
)
def test_an_unreadable_file_is_put_aside_and_told(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    found = journal(path)
    assert found.entries() == {}
    assert found.finding is not None
    assert found.finding.code == "journal-unreadable"
    aside = path.with_name("journal.json.unreadable")
    assert aside.read_bytes() == content.encode("latin-1")
    assert str(aside) in found.finding.remedy
    found.record(KEY, "0", "1")
    assert journal(path).get(KEY) == Entry("0", "1")


def test_a_full_disk_is_told_and_leaves_nothing_recorded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = journal(path)
    found.record(KEY, "0", "1")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "replace", full)
    for key in (KEY, "sysctl:other"):
        with pytest.raises(KernelError, match="No space left") as caught:
            found.record(key, "0", "2")
        assert caught.value.errno == errno.ENOSPC
        assert str(path) in str(caught.value)
    with pytest.raises(KernelError), found.batch():
        found.record("sysctl:third", "0", "2")
    assert found.entries() == {KEY: Entry("0", "1")}
    found.forget(KEY)
    assert found.get(KEY) is None


def test_a_batch_is_written_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    replace = files.replace

    def counted(*args: object, **keywords: object) -> None:
        writes.append(args)
        replace(*args, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "replace", counted)
    found = journal(path)
    with found.batch():
        for number in range(10):
            found.record(f"sysctl:{number}", "0", "1")
        with found.batch():
            found.forget("sysctl:3")
    assert len(writes) == 1
    assert len(journal(path).entries()) == 9


def test_in_memory() -> None:
    found = journal(None)
    found.record(KEY, "0", "1")
    assert found.get(KEY) == Entry("0", "1")


def test_the_present_epoch_names_boot_and_namespace(path: Path) -> None:
    Journal(path).record(KEY, "0", "1")
    (epoch,) = json.loads(path.read_text())["entries"]
    boot, space = epoch.split("/")
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert int(space) == Path("/proc/self/ns/net").stat().st_ino
