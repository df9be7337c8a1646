"""Why an RTSP stream did not open: FFmpeg only says that it did not, so the camera is asked once more, by hand.

Takes the URL, sends one or two DESCRIBE requests (RFC 2326 §10.2) over a plain socket, and gives the error to raise.
The password never appears in it. Only for streams that FFmpeg could not open, so it costs nothing where all is well.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from urllib.parse import SplitResult, unquote, urlsplit

from agent.errors import HoldfastError, OperatorError, SourceError
from agent.log import mask_url

DEFAULT_PORT = 554
ANSWER_TIMEOUT_S = 1.0


def diagnose(url: str, *, has_timed_out: bool) -> HoldfastError:
    """Return the error that explains why `url` did not open.

    Args:
        url: With the login, as the operator wrote it.
        has_timed_out: Whether FFmpeg gave up at its own limit rather than being refused.
    """
    where = mask_url(url)
    parts = urlsplit(url)
    if parts.hostname is None:
        return OperatorError("this URL names no host", where=where, hint="write rtsp://user:password@host/path")
    try:
        status, reason = _describe(parts)
    except socket.gaierror:
        return SourceError("the host name is unknown", where=where, hint="check the name, or use the camera's address")
    except ConnectionRefusedError:
        return SourceError(
            "the connection was refused",
            where=where,
            hint="check the port, and whether RTSP is switched on in the camera",
        )
    except TimeoutError:
        return SourceError("no answer", where=where, hint="check the address, the camera's power and the firewall")
    except OSError as error:
        return SourceError(f"the camera cannot be reached: {error.strerror or error}", where=where)
    except ValueError as error:
        return SourceError(f"what answers there is no RTSP server: {error}", where=where, hint="check the port")
    return _explain(status, reason, where=where, has_login=parts.username is not None, has_timed_out=has_timed_out)


def _explain(status: int, reason: str, *, where: str, has_login: bool, has_timed_out: bool) -> HoldfastError:
    if status in (401, 403):
        if has_login:
            return OperatorError(
                f"the camera refused the user or the password ({status} {reason})",
                where=where,
                hint="correct the login",
            )
        return OperatorError(
            f"the camera asks for a login ({status} {reason})", where=where, hint="write rtsp://user:password@host/path"
        )
    if status == 404:
        return OperatorError(
            f"the camera has no stream of this path ({status} {reason})",
            where=where,
            hint="look up the stream's path in the camera's manual",
        )
    if status >= 400:
        return SourceError(f"the camera answered {status} {reason}", where=where)
    if has_timed_out:
        return SourceError(
            "the camera answers, but no picture came in time", where=where, hint="raise `open_timeout_s:`"
        )
    return SourceError("the camera answers, but FFmpeg cannot open its stream", where=where, hint="try H.264 and TCP")


def _describe(parts: SplitResult) -> tuple[int, str]:
    """Ask for the stream's description, with the login where the camera wants one. Return the status line."""
    assert parts.hostname is not None
    port = parts.port or DEFAULT_PORT
    target = f"{parts.scheme}://{parts.hostname}:{port}{parts.path or '/'}" + (f"?{parts.query}" if parts.query else "")
    with socket.create_connection((parts.hostname, port), timeout=ANSWER_TIMEOUT_S) as connection:
        status, reason, headers = _ask(connection, target, 1, "")
        if status == 401 and parts.username is not None:
            login = (unquote(parts.username), unquote(parts.password or ""))
            status, reason, _ = _ask(connection, target, 2, _authorization(headers, target, *login))
    return status, reason


def _ask(connection: socket.socket, target: str, number: int, authorization: str) -> tuple[int, str, str]:
    request = f"DESCRIBE {target} RTSP/1.0\r\nCSeq: {number}\r\nAccept: application/sdp\r\n{authorization}\r\n"
    connection.sendall(request.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        chunk = connection.recv(4096)
        if not chunk:
            break
        answer += chunk
    head = answer.decode(errors="replace").partition("\r\n\r\n")[0]
    match = re.match(r"RTSP/\d\.\d (\d{3}) ?([^\r\n]*)", head)
    if match is None:
        raise ValueError(f"it said {head[:40]!r}")
    return int(match[1]), match[2], head


def _authorization(headers: str, target: str, user: str, password: str) -> str:
    """Return the header for the scheme that the camera offers: Digest (RFC 2617 §3.2.2, without qop) or Basic."""
    if not re.search(r"^WWW-Authenticate:\s*Digest", headers, re.IGNORECASE | re.MULTILINE):
        return f"Authorization: Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}\r\n"
    realm, nonce = (_parameter(headers, name) for name in ("realm", "nonce"))
    secret = _md5(f"{user}:{realm}:{password}")
    response = _md5(f"{secret}:{nonce}:{_md5(f'DESCRIBE:{target}')}")
    return (
        f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", uri="{target}", '
        f'response="{response}"\r\n'
    )


def _parameter(headers: str, name: str) -> str:
    match = re.search(rf'{name}="([^"]*)"', headers, re.IGNORECASE)
    return match[1] if match else ""


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()  # the RFC's choice
