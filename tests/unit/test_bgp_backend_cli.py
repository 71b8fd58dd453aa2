"""`netagent bgp` and the API behind it: the question is handed to the backend's service, its answer is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from netagent.__main__ import main
from netagent.api.client import Client
from netagent.contract import Viewer
from netagent.errors import NetagentError
from netagent.services import Runner
from tests.support.probe_backend import Probe, ProbeService
from tests.support.views import View, serving


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with serving(View(), tmp_path):
        yield tmp_path


def test_lines_for_people(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bgp", "peers", "h2", "--run-dir", str(run_dir)]) == 0
    assert capsys.readouterr().out == "the arguments are ['peer', 'text']\n"


def test_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bgp", "peers", "h2", "--run-dir", str(run_dir), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"peer": "h2"}]


def test_what_the_service_refuses_is_told_with_the_remedy(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bgp", "routes", "10.5.0.0/16", "--more-specific", "--run-dir", str(run_dir)]) != 0
    assert "no view 'routes'" in (error := capsys.readouterr().err)
    assert "There is peers" in error


@pytest.mark.parametrize("words", [["log"], ["received"], ["frob"], []])
def test_a_view_that_is_not_complete(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bgp", *words])
    assert caught.value.code == 2
    assert capsys.readouterr().err


def test_arguments_are_escaped(run_dir: Path) -> None:
    client = Client(run_dir / "netagent.sock")
    assert client.backend("bgp", "peers", peer="a&b=c d/é") == [{"peer": "a&b=c d/é"}]
    with pytest.raises(NetagentError, match="no view"):
        client.backend("udp", "peers")


async def test_a_service_without_views_says_so() -> None:
    runner = Runner(Probe(), None)  # type: ignore[arg-type]
    runner._service = ProbeService(None)  # type: ignore[arg-type]
    assert not isinstance(runner._service, Viewer)
    with pytest.raises(NetagentError, match="has no views"):
        runner.view("peers", {})


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("10.5.0.0/33", "'10.5.0.0/33' is neither a prefix nor an address: write it like 10.5.0.0/16"),
        ("nonsense", "'nonsense' is neither a prefix nor an address"),
    ],
)
def test_a_prefix_that_is_none(prefix: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bgp", "routes", prefix])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "prefix", ["--json", "10.5.0.0/16", "10.5.1.1", "10.5.1.1/16", "fc00:5::/48", "fc00:5::1", "FC00:5::/48"]
)
def test_a_prefix_or_an_address(prefix: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bgp", "routes", prefix, "--run-dir", str(run_dir)]) == 1
    assert "no view 'routes'" in capsys.readouterr().err
