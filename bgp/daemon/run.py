"""The daemon at work: configuration, speaker, driver, control socket and signals, in one process.

Rule: a reload that is wrong changes nothing. SIGHUP reads the file anew; SIGTERM and SIGINT end it. With
`speaker.state` it goes without a word, so that peers with graceful restart keep our routes until it is back, and
remembers who stood; without, it says goodbye.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bfd.orders import Status
from bgp import metrics, views
from bgp.aio import Driver, Listen, SetupError, collect_seldom, dropped
from bgp.connection import Down, Established
from bgp.daemon.config import Config, parse
from bgp.daemon.control import ControlSocket
from bgp.daemon.errors import CommandError, ConfigError
from bgp.fsm import State
from bgp.message import Family, LocalError
from bgp.speaker import News, PrefixLimit, Speaker

log = logging.getLogger("bgp")

_DEFERRAL = 120.0
"""Seconds that we wait for our peers where only long-lived restart is configured, which says nothing of that."""
_SAVE_AFTER = 1.0
"""Seconds from a session's coming or going until it is written down."""


def load(path: str, previous: Config | None = None) -> Config:
    """Read a configuration file. Raises ConfigError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; say which file: --config PATH") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text in UTF-8") from None
    return parse(text, path, lambda name: (Path(path).parent / name).read_text(), previous)


class Daemon:
    """One speaker as a process."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.config = load(path)
        self._saving: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Until a signal ends it. Raises SetupError."""
        loop = asyncio.get_running_loop()
        config = self.config
        before = self._stood()
        self.speaker = Speaker(
            config.speaker,
            random.random,
            restarting=before,
            deferral=config.speaker.restart_time or (_DEFERRAL if config.speaker.restarts else 0.0),
            now=loop.time(),
            dropped=dropped,
        )
        self._announce(None, config)
        self.speaker.set_peers(config.peers, loop.time(), config.ranges)
        listen = [Listen(address, port) for address, port in config.listen]
        lasting = f"{config.control}.bfd" if config.state else ""
        self.driver = Driver(self.speaker, listen, on_news=self._news, on_bfd=self._bfd, bfd_path=lasting)
        control = ControlSocket(config.control, self._answer)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_and_log)
        await control.open()
        try:
            self.driver.start()
            for name, problem in self.driver.unsigned.items():
                log.error("%s: %s", name, problem)
            log.info("running: AS %d, %d peers, %d ranges", config.speaker.asn, len(config.peers), len(config.ranges))
            if before:
                log.info("restarted: routes are decided when %s have sent theirs", ", ".join(before))
            await stopped.wait()
            self._save()
            await self.driver.stop(None if self.config.state else "the daemon was stopped")
        finally:
            await control.close()

    # ------------------------------------------------------------------------------------------- configuration

    def reload(self) -> str:
        """Make the file's configuration ours; what this host does not take of it (passwords).

        Raises ConfigError, and then nothing has changed.
        """
        before, after = self.config, load(self.path, self.config)
        for name in ("listen", "control"):
            if getattr(before, name) != getattr(after, name):
                raise ConfigError(
                    f"{self.path}: speaker.{name} or speaker.port is read at start only; restart the daemon"
                )
        now = asyncio.get_running_loop().time()  # the driver may not run yet
        try:
            self.speaker.set_config(after.speaker, now)
        except LocalError as error:
            raise ConfigError(f"{self.path}: {error}; restart the daemon") from None
        self.config = after
        self._announce(before, after)
        self.speaker.set_peers(after.peers, now, after.ranges)
        try:
            self.driver.wake()
        except SetupError as error:
            return f"the configuration counts from now on, but {error}"
        return ""

    def _announce(self, before: Config | None, after: Config) -> None:
        """Make what we originate what the configuration says."""
        old = {(each.family, each.prefix): each for each in before.announcements} if before else {}
        new = {(each.family, each.prefix): each for each in after.announcements}
        for (family, prefix), each in new.items():
            if family in self.speaker.ribs and old.get((family, prefix)) != each:
                self.speaker.originate(family, prefix, each.attributes, guard=each.guard)
        for family, prefix in old.keys() - new.keys():
            if family in self.speaker.ribs:
                self.speaker.retract(family, prefix)

    def _reload_and_log(self) -> None:
        try:
            problem = self.reload()
            log.info("configuration read anew: %d peers", len(self.config.peers))
            if problem:
                log.error("%s", problem)
        except ConfigError as error:
            log.error("the configuration stays as it was: %s", error)

    # ------------------------------------------------------------------------------------------------- the state

    def _stood(self) -> list[str]:
        """The peers that stood when this daemon last ran."""
        if not self.config.state:
            return []
        try:
            names = json.loads(Path(self.config.state).read_text())["established"]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): nobody is waited for", self.config.state, error)
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _save_soon(self) -> None:
        if self.config.state and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_AFTER, self._save)

    def _save(self) -> None:
        """Write down who stands, and for whom we still wait, in one piece or not at all."""
        if self._saving:
            self._saving.cancel()
            self._saving = None
        if not self.config.state:
            return
        stand = {name for name, peer in self.speaker.peers.items() if peer.session.negotiated}
        names = sorted(stand | self.speaker.deferral.names)
        path = Path(self.config.state)
        beside = path.with_name(path.name + ".new")
        try:
            beside.write_text(json.dumps({"established": names}) + "\n")
            beside.replace(path)
        except OSError as error:
            log.warning("%s cannot be written: %s; set speaker.state to another place", path, error.strerror)

    # -------------------------------------------------------------------------------------------------- what is said

    def _news(self, name: str, news: News) -> None:
        if isinstance(news, Established):
            received = news.negotiated.received
            log.info("%s: established, AS %d, hold time %d s", name, received.asn, news.negotiated.hold_time)
            self._save_soon()
        elif isinstance(news, Down):
            level = logging.WARNING if news.was is State.ESTABLISHED else logging.DEBUG
            log.log(level, "%s: down in %s: %s", name, news.was.name.lower(), news.reason)
            if news.was is State.ESTABLISHED:
                self._save_soon()
        elif isinstance(news, PrefixLimit):
            what = "its session ends and stays down (bgp start-peer)" if news.ended else "a warning"
            log.warning(
                "%s: %d %s prefixes, the limit is %d: %s", name, news.prefixes, news.family.name, news.limit, what
            )

    def _bfd(self, name: str, before: Status, now: Status) -> None:
        if now.problem != before.problem and now.problem:
            log.error("%s: BFD: %s", name, now.problem)
        if now.failures > before.failures:
            log.warning("%s: BFD down: %s", name, now.diag)
        elif now.state != before.state and "up" in (now.state, before.state):
            log.info("%s: BFD %s: %s", name, now.state, f"{now.detection / 1000:g} ms" if now.up else now.diag)

    # ------------------------------------------------------------------------------------------------- the socket

    def _answer(self, request: dict[str, Any]) -> Iterator[Any]:
        """The items of an answer. Raises BgpError."""
        now = asyncio.get_running_loop().time()
        name = _text(request, "peer")
        match request.get("command"):
            case "summary":
                unsigned = {"unsigned": self.driver.unsigned} if self.driver.unsigned else {}
                yield {**views.summary(self.speaker), "bfd": self.driver.liveness.view(), **unsigned}
            case "peers":
                yield from views.peers(self.speaker, now, name)
            case "routes":
                more = bool(request.get("more_specific"))
                yield from views.routes(self.speaker, _text(request, "prefix"), more_specific=more)
            case "received":
                yield from views.received(self.speaker, name)
            case "advertised":
                yield from views.advertised(self.speaker, name)
            case "log":
                yield from views.log(self.speaker, name, now)
            case "metrics":
                yield metrics.text(self.speaker, now)
            case "reload":
                try:
                    problem = self.reload()
                except ConfigError as error:
                    raise LocalError(str(error)) from None
                if problem:
                    raise LocalError(problem)
            case "shutdown-peer" | "start-peer" | "reset-peer" | "refresh-peer" as command:
                self._act(command, views.find(self.speaker, name).name, _text(request, "text"))
            case command:
                raise LocalError(f"there is no command {command!r}")

    def _act(self, command: str, name: str, text: str) -> None:
        now = asyncio.get_running_loop().time()
        if command == "shutdown-peer":
            self.speaker.stop_peer(name, now, text)
        elif command == "start-peer":
            self.speaker.start_peer(name, now)
        elif command == "reset-peer":
            self.speaker.reset(name, now, text)
        else:
            negotiated = self.speaker.peers[name].session.negotiated
            for family in negotiated.families if negotiated else (Family.IPV4,):
                self.speaker.ask_again(name, family)
        with contextlib.suppress(SetupError):  # a key that is refused was told of when it was configured
            self.driver.wake()


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise LocalError(f"{key} must be a string of Unicode")
    return value


def run(path: str) -> None:
    """Run until a signal ends it. Raises ConfigError, CommandError."""
    daemon = Daemon(path)
    collect_seldom()
    try:
        asyncio.run(daemon.run())
    except SetupError as error:
        raise CommandError(str(error)) from None


def log_to_stderr(*, debug: bool) -> None:
    """Lines as systemd's journal wants them: without a time there, with one elsewhere."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO, format=f"{stamp}%(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
