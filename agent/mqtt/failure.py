"""Why a connect failed, in the operator's words, each with what to do about it."""

from __future__ import annotations

import errno
import socket
import ssl

from agent.errors import UnavailableError
from agent.mqtt.messages import FailureKind


class ConnectError(UnavailableError):
    """One attempt to connect failed."""

    def __init__(self, kind: FailureKind, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.kind: FailureKind = kind

    @property
    def reason(self) -> str:
        """What happened and what to do, as one text."""
        hint = self.hint or ""
        return f"{self.message[0].upper()}{self.message[1:]}. {hint[:1].upper()}{hint[1:]}."


def from_os_error(error: OSError, address: str, *, uses_tls: bool) -> ConnectError:
    """Translate what the operating system or TLS said while the connection was made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectError(
            "tls",
            f"the certificate of {address} is not trusted: {error.verify_message}",
            hint="set `mqtt.tls.ca` to the CA that signed it, check its name and dates, and this device's clock",
        )
    if isinstance(error, ssl.SSLError) or (uses_tls and isinstance(error, ConnectionResetError)):
        return ConnectError(
            "tls",
            f"TLS with {address} failed: {getattr(error, 'reason', None) or error}",
            hint="check that the port speaks TLS and, where the broker asks for one, the client certificate",
        )
    if isinstance(error, socket.gaierror):
        return ConnectError(
            "unreachable",
            f"the name in {address} cannot be looked up: {error.strerror}",
            hint="check `mqtt.host` and this device's name server",
        )
    if isinstance(error, ConnectionRefusedError):
        return ConnectError(
            "unreachable",
            f"nothing listens at {address}",
            hint="start the broker, or correct `mqtt.host` and `mqtt.port`",
        )
    if isinstance(error, TimeoutError) or error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return ConnectError(
            "unreachable",
            f"{address} cannot be reached: {error.strerror or error}",
            hint="check the network, the route and firewalls between this device and the broker",
        )
    return ConnectError(
        "unreachable", f"the connection to {address} failed: {error.strerror or error}", hint="check the network"
    )


def from_tls_files(error: OSError, paths: str) -> ConnectError:
    """Translate what reading certificates and keys said."""
    return ConnectError(
        "tls",
        f"the TLS files cannot be used ({paths}): {error.strerror or error}",
        hint="check the paths under `mqtt.tls`, that they are PEM, that key and certificate belong together, and who "
        "may read them",
    )


def silent(address: str, protocol: str, timeout_s: float) -> ConnectError:
    """The broker took the connection and never answered CONNECT."""
    return ConnectError(
        "silent",
        f"{address} does not answer an MQTT {protocol} CONNECT within {timeout_s:g} s",
        hint="check that an MQTT broker listens there, and that it is not overloaded",
    )


def closed_at_connect(address: str, protocol: str, text: str, *, uses_tls: bool) -> ConnectError:
    """The broker closed the connection instead of answering CONNECT. With TLS 1.3 this is how a refused client
    certificate looks (RFC 8446 section 4.4.2.4): the client's handshake is over before the server has seen it.
    """
    advice = (
        "and that it accepts this device's client certificate" if uses_tls else "and whether the port is one for TLS"
    )
    return ConnectError(
        "silent",
        f"{address} closed the connection at an MQTT {protocol} CONNECT ({text})",
        hint=f"look into the broker's log; check that an MQTT broker listens there, {advice}",
    )


def from_connack(code: int, protocol: str, address: str, text: str) -> ConnectError:
    """Translate a refusal: MQTT 5 table 3-1, or MQTT 3.1.1 table 3.1 as paho maps it to the former."""
    if code in (0x84, 0x01):
        return ConnectError(
            "protocol", f"{address} does not speak MQTT {protocol}", hint="leave `mqtt.protocol` at `auto`"
        )
    if code in (0x86, 0x87, 0x8C):
        return ConnectError(
            "credentials",
            f"{address} refuses this device: {text}",
            hint="check `mqtt.user` and `mqtt.password`, and that the broker knows them",
        )
    if code == 0x85:
        return ConnectError(
            "refused",
            f"{address} refuses the client id",
            hint="set `mqtt.client_id` to one that the broker allows",
        )
    return ConnectError(
        "refused", f"{address} refuses the connection: {text}", hint="look into the broker's log; it is tried again"
    )
