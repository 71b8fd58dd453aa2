"""The tree of netagent's errors.

Rule: an error that reaches an operator says what is wrong, where (file, key, value) and what to do next, and is
printed without a traceback. Foreign exceptions are mapped to these once, at the border (store, kernel, config).
"""

from __future__ import annotations


class NetagentError(Exception):
    """Base. `where` names a file, key or endpoint; `remedy` is the next step."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if not self.remedy:
            return text
        return f"{text}{'' if text.endswith('?') else '.'} {self.remedy[:1].upper()}{self.remedy[1:]}"


class ConfigError(NetagentError):
    """A setting or the network's configuration is wrong. Exit code 2, as for wrong usage."""

    exit_code = 2


class UsageError(NetagentError):
    """The command line asks for something that makes no sense."""

    exit_code = 2


class AgentUnavailable(NetagentError):
    """The agent's socket does not answer."""

    exit_code = 2


class AgentForbidden(NetagentError):
    """The agent may not be asked by this user; whether it answers is not known."""

    exit_code = 2


# ----------------------------------------------------------------------------------------------- store


class StoreError(NetagentError):
    """Base of what the cluster store can answer."""


class StoreUnavailable(StoreError):
    """No endpoint answers, or no quorum. The request was not carried out."""


class StoreUnknownOutcome(StoreError):
    """A write's deadline passed or its connection broke: it may or may not have happened. Read back."""


class StoreCompacted(StoreError):
    """The revision asked for is gone; list again. `compact_revision` is the oldest that is left."""

    def __init__(self, message: str, *, compact_revision: int) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class StorePermissionDenied(StoreError):
    """The user's role does not allow this key."""


class StoreAuthError(StoreError):
    """User or password refused, or none given where etcd demands one."""


class StoreTLSError(StoreError):
    """The TLS handshake fails: CA, name, or a missing client certificate."""


class LeaseNotFound(StoreError):
    """The etcd lease is gone (expired or revoked)."""


# ---------------------------------------------------------------------------------------------- kernel


class KernelError(NetagentError):
    """The kernel refused an operation. `errno` is positive; 0 where it does not apply."""

    def __init__(self, message: str, *, errno: int = 0, where: str = "", remedy: str = "") -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.errno = errno


# ------------------------------------------------------------------------------------------- allocation


class SubnetsExhausted(NetagentError):
    """No free subnet is left between SubnetMin and SubnetMax."""
