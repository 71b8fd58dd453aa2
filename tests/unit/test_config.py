"""The node's settings: four sources in order, and errors that name source, value and remedy."""

from __future__ import annotations

import argparse
import re
import tomllib
from pathlib import Path

import pytest

from netagent import config
from netagent.config import OPTIONS, Settings
from netagent.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def load(*words: str, environ: dict[str, str] | None = None, hostname: str = "h1") -> Settings:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    config.add_arguments(parser)
    return config.load(parser.parse_args(words), environ or {}, hostname=lambda: hostname)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "netagent.toml"


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "absent.toml")


def test_defaults() -> None:
    assert load() == Settings(node_name="h1")


def test_flags_win_over_environment_over_file_over_defaults(file: Path) -> None:
    file.write_text('etcd_prefix = "/file"\nlease_ttl = "2h"\nlog_level = "error"\n')
    settings = load(
        f"--config={file}",
        "--etcd-prefix=/flag/",
        environ={"NETAGENT_ETCD_PREFIX": "/environment", "NETAGENT_LOG_LEVEL": "debug"},
    )
    assert (settings.etcd_prefix, settings.log_level, settings.lease_ttl) == ("/flag", "debug", 7200)
    assert load(environ={"NETAGENT_CONFIG": str(file)}).etcd_prefix == "/file"


def test_the_default_file_is_read_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "absent.toml").write_text("ip_masq = true\n")
    assert load().ip_masq


def test_every_setting_has_a_field_a_flag_and_a_variable() -> None:
    assert [option.name for option in OPTIONS] != []
    assert {option.name for option in OPTIONS} == set(Settings.__struct_fields__)
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {option.flag for option in OPTIONS} <= flags
    # flannel's own names.
    etcd = {f"--etcd-{name}" for name in ("endpoints", "prefix", "cafile", "certfile", "keyfile", "username")}
    assert etcd | {"--iface", "--iface-regex", "--iface-can-reach", "--public-ip", "--public-ipv6"} <= flags
    assert {"--subnet-file", "--ip-masq"} <= flags


def test_lists_and_switches() -> None:
    settings = load(
        "--etcd-endpoints=http://a:2379, http://b:2379",
        "--iface=eth1",
        "--iface",
        "10.0.0.7",
        "--iface-regex=eth[0-9]{1,2}",
        "--ip-masq",
        "--firewall-integrate=false",
        environ={"NETAGENT_IP_MASQ": "false", "NETAGENT_FIREWALL_INTEGRATE": "true"},
    )
    assert settings.etcd_endpoints == ("http://a:2379", "http://b:2379")
    assert settings.iface == ("eth1", "10.0.0.7")
    assert settings.iface_regex == ("eth[0-9]{1,2}",)
    assert (settings.ip_masq, settings.firewall_integrate) == (True, False)


def test_the_subnet_file_follows_the_run_directory() -> None:
    assert load("--run-dir=/tmp/x").subnet_file == Path("/tmp/x/subnet.env")
    assert load("--run-dir=/tmp/x", "--subnet-file=/y").subnet_file == Path("/y")


@pytest.mark.parametrize(
    ("words", "where", "remedy"),
    [
        (["--lease-ttl=1"], "--lease-ttl: '1'", "from 5 to"),
        (["--lease-ttl=24 hours"], "--lease-ttl: '24 hours'", "such as 30s or 24h"),
        (["--public-ip=fd00::1"], "--public-ip: 'fd00::1'", "192.168.50.11"),
        (["--public-ipv6=1.2.3.4"], "--public-ipv6: '1.2.3.4'", "fd00:50::11"),
        (["--iface-can-reach=gateway"], "--iface-can-reach", "192.168.50.11"),
        (["--iface-regex=("], "--iface-regex", "no regular expression"),
        (["--node-name=a/b"], "--node-name: 'a/b'", "letters, digits"),
        (["--metrics-listen=9480"], "--metrics-listen: '9480'", "127.0.0.1:9480"),
        (["--metrics-listen=::1:9480"], "--metrics-listen", "[::1]:9480"),
        (["--route-protocol=2"], "--route-protocol: '2'", "from 5 to 255"),
        (["--etcd-endpoints="], "--etcd-endpoints", "http://127.0.0.1:2379"),
        (["--etcd-prefix=/"], "--etcd-prefix", "/coreos.com/network"),
        (["--ip-masq=perhaps"], "--ip-masq: 'perhaps'", "true or false"),
        (["--firewall-table=a b"], "--firewall-table", "table name"),
        (["--etcd-certfile=/c"], "etcd_certfile=/c", "both"),
        (["--config=/nowhere.toml"], "/nowhere.toml", "--config"),
    ],
)
def test_errors_name_the_flag(words: list[str], where: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*words)
    assert where in str(caught.value)
    assert remedy in caught.value.remedy


def test_errors_name_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^\$NETAGENT_ALIVE_TTL: 'soon'"):
        load(environ={"NETAGENT_ALIVE_TTL": "soon"})


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("\n\nlease_ttl = true\n", ":3 lease_ttl", "24h"),
        ('\n  "ip_masq" = 7\n', ":2 ip_masq", "true or false"),
        ("iface = 7\n", ":1 iface", '["one", "two"]'),
        ("etcd-prefix = '/x'\n", ":1 etcd-prefix: unknown key", "Did you mean etcd_prefix?"),
        ("\n[etcd]\nprefix = 'x'\n", ":2 etcd: a section", "Write etcd_prefix = ... on a line above all sections"),
        ("[netagent]\nx = 1\n", ":1 netagent: a section", "Write etcd_endpoints = ..."),
        ("colour = 1\n", ":1 colour: unknown key", "Known keys are"),
        ("node_name = []\n", ":1 node_name", "Write text"),
        ('state_dir = "/var\\u0000"\n', ":1 state_dir", "zero bytes"),
        ('etcd_cafile = "\\u0000"\n', ":1 etcd_cafile", "zero bytes"),
        ('iface_regex = ["a{99999999999999999999}"]\n', ":1 iface_regex", "no regular expression"),
        (f'iface_regex = ["{"(" * 2000}{")" * 2000}"]\n', ":1 iface_regex", "no regular expression"),
        ("x = " + "9" * 5000, "not valid TOML", "4300 digits"),
        ("x = \n", "not valid TOML", "line 1"),
        ("lease_ttl = 60\nlease_ttl = 70\n", "not valid TOML", "line 2"),
    ],
)
def test_errors_name_file_and_line(file: Path, text: str, where: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(f"--config={file}")
    assert where in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_file_that_is_no_text_is_an_error(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(f"--config={file}")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(f"--config={tmp_path}")


def test_a_password_is_refused_and_not_repeated(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load("--etcd-password=s3cret")
    assert "s3cret" not in str(caught.value)
    assert "--etcd-password-file" in str(caught.value)
    file.write_text('etcd_password = "s3cret"\n')
    with pytest.raises(ConfigError) as caught:
        load(f"--config={file}")
    assert "s3cret" not in str(caught.value)
    # In the environment it is allowed; the store reads it there.
    assert "s3cret" not in repr(load(environ={"NETAGENT_ETCD_PASSWORD": "s3cret"}))


def test_the_hostname_is_the_name_unless_it_cannot_be() -> None:
    assert load(hostname="web-1.example.org").node_name == "web-1.example.org"
    with pytest.raises(ConfigError, match="--node-name"):
        load(hostname="")


def test_unknown_variables_are_findings() -> None:
    found = config.unknown_variables({"NETAGENT_ETCD_ENDPOINT": "x", "NETAGENT_DEBUG": "1", "NETAGENT_IFACE": "e"})
    assert [(finding.subject, finding.remedy) for finding in found] == [
        ("NETAGENT_ETCD_ENDPOINT", "did you mean NETAGENT_ETCD_ENDPOINTS?")
    ]


def test_changed() -> None:
    assert config.changed(Settings(), Settings(lease_ttl=60, ip_masq=True)) == ("ip_masq", "lease_ttl")


def test_the_packaged_file_is_the_table_and_agrees_with_the_defaults(file: Path) -> None:
    packaged = (ROOT / "packaging/netagent.toml").read_text()
    assert packaged == config.default_file()
    assert tomllib.loads(packaged) == {}
    uncommented = re.sub(r"(?m)^#(\w+ = )", r"\1", packaged)
    assert set(tomllib.loads(uncommented)) == {option.name for option in OPTIONS}
    file.write_text(uncommented)
    assert load(f"--config={file}") == load()


def test_labels_are_words_in_order_and_each_once() -> None:
    assert load("--labels=rack=r1,role=rr,rack=r1").labels == ("rack=r1", "role=rr")
    with pytest.raises(ConfigError, match="no label"):
        load("--labels=a b")
