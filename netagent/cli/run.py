"""`netagent run`: the agent, in the foreground, as systemd wants it."""

from __future__ import annotations

import argparse

from netagent import config

DESCRIPTION = (
    "Runs the agent: leases a subnet in etcd, keeps devices, routes and firewall as the network needs them, and "
    "writes subnet.env for container engines. Settings come from flags, then the environment (NETAGENT_*), then the "
    "settings file. SIGTERM ends the agent and leaves the traffic flowing; SIGHUP reads the settings again."
)


def configure(parser: argparse.ArgumentParser) -> None:
    config.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from netagent import app

    return app.run(lambda: config.load(args))
