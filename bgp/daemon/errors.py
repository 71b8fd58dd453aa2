"""What the daemon and its commands tell an operator: one sentence with the remedy."""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration is wrong: file, key, value, remedy."""


class CommandError(Exception):
    """It could not be done: the daemon does not answer, has refused, or cannot start."""


class RequestError(CommandError):
    """What was asked for cannot be: the command is wrong."""
