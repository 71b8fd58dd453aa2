"""Why an endpoint could not be connected to, in an operator's words.

gRPC says "unavailable" for all of it: refused, wrong name, unknown authority, missing client certificate. So the
connection is tried once more here, with the standard library's TLS, only to read the reason.
Rule: no call of the store ever depends on the outcome; this only finds words.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from typing import NamedTuple

from netagent.store.endpoints import TLS, Endpoint

# An HTTP/2 connection preface and an empty SETTINGS frame: with TLS 1.3 the server's refusal of a client
# certificate arrives only after the handshake, in answer to the first data.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Diagnosis(NamedTuple):
    text: str
    tls: bool = False
    remedy: str = ""


NO_ANSWER = "See whether its host is up and no firewall drops the port, or correct etcd_endpoints"
_NO_TLS = Diagnosis("the server speaks plain http, not TLS", tls=True, remedy="Write the endpoint as http://")


async def diagnose(endpoint: Endpoint, tls: TLS, timeout: float) -> Diagnosis:
    """Connect as a client would and say what is in the way. Takes `timeout` seconds at most; never raises."""
    try:
        async with asyncio.timeout(timeout):
            try:
                return await _try(endpoint, tls)
            except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
                return await _closed(endpoint)
    except TimeoutError:
        return Diagnosis(f"no answer within {timeout:.3g} s", remedy=NO_ANSWER)
    except ssl.SSLCertVerificationError as error:
        return _unverified(error, endpoint)
    except ssl.SSLError as error:
        return _refused(error, tls)
    except socket.gaierror as error:
        return Diagnosis(
            f"host name {endpoint.host!r} does not resolve ({error.strerror})", remedy="Correct etcd_endpoints"
        )
    except ConnectionRefusedError:
        return Diagnosis(
            "connection refused: nothing listens there", remedy="Start etcd there, or correct etcd_endpoints"
        )
    except OSError as error:
        # asyncio wraps the reason into a text of its own and keeps only the number
        text = os.strerror(error.errno) if error.errno and error.errno in errno.errorcode else str(error)
        return Diagnosis(text, remedy=NO_ANSWER)


async def _try(endpoint: Endpoint, tls: TLS) -> Diagnosis:
    context = _context(tls) if endpoint.secure else None
    name = (tls.server_name or endpoint.host) if endpoint.secure else None
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context, server_hostname=name)
    try:
        writer.write(_PREFACE)
        answer = await reader.read(64)
    finally:
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()
    if not answer:
        return await _closed(endpoint)
    return Diagnosis("the connection broke, though the server answers now")


async def _closed(endpoint: Endpoint) -> Diagnosis:
    """The server closes the connection without a word: perhaps it speaks the other scheme."""
    if endpoint.secure:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            try:
                writer.write(b"GET /version HTTP/1.0\r\n\r\n")
                if (await reader.read(16)).startswith(b"HTTP/"):
                    return _NO_TLS
            finally:
                writer.transport.abort()
    else:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # only the language matters, nothing is sent
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
            writer.transport.abort()
            return Diagnosis(
                "the server speaks TLS, not plain http", tls=True, remedy="Write the endpoint as https://"
            )
    return Diagnosis("the server closes the connection")


def _context(tls: TLS) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.ca) if tls.ca else None)
    if tls.cert and tls.key:
        context.load_cert_chain(tls.cert, tls.key)
    context.set_alpn_protocols(["h2"])
    return context


def _unverified(error: ssl.SSLCertVerificationError, endpoint: Endpoint) -> Diagnosis:
    text = error.verify_message.rstrip(".")
    if "mismatch" in text.lower() or "not valid for" in text.lower():
        remedy = f"Use a name that the certificate holds, or issue one for {endpoint.host}"
    elif "expired" in text or "not yet valid" in text:
        remedy = "Renew the server's certificate, or check both clocks"
    else:
        remedy = "Give the authority that signed it as etcd_cafile"
    return Diagnosis(f"the server's certificate is not trusted: {text}", tls=True, remedy=remedy)


def _refused(error: ssl.SSLError, tls: TLS) -> Diagnosis:
    reason = (error.reason or str(error)).upper()
    if "WRONG_VERSION" in reason or "RECORD_LAYER" in reason:
        return _NO_TLS
    if "CERTIFICATE_REQUIRED" in reason or ("BAD_CERTIFICATE" in reason and not tls.cert):
        return Diagnosis(
            "the server demands a client certificate and none is given",
            tls=True,
            remedy="Set etcd_certfile and etcd_keyfile",
        )
    if "ALERT" in reason and tls.cert:
        return Diagnosis(
            f"the server refuses our client certificate {tls.cert} ({reason.lower().replace('_', ' ')})",
            tls=True,
            remedy="Use one that the server's --trusted-ca-file signed and that has not expired",
        )
    return Diagnosis(f"the TLS handshake fails: {reason.lower().replace('_', ' ')}", tls=True)
