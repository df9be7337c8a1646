"""The options by which commands of `holdfast release` reach a broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from agent.errors import HoldfastError, OperatorError
from agent.mqtt.settings import MqttSettings

Host = Annotated[str, typer.Option("--host", help="The broker's name or address.")]
Port = Annotated[int | None, typer.Option("--port", help="Its port. Default: 1883, with TLS 8883.")]
User = Annotated[str | None, typer.Option("--user", help="The login, where the broker asks for one.")]
PasswordEnv = Annotated[str, typer.Option("--password-env", help="The environment variable with the password.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="TLS: certificates of the authorities to trust (PEM).")]
Cert = Annotated[Path | None, typer.Option("--cert", help="TLS: the client's certificate (PEM).")]
KeyFile = Annotated[Path | None, typer.Option("--key", help="TLS: the certificate's private key (PEM).")]
Prefix = Annotated[str, typer.Option("--prefix", help="What every topic begins with.")]


_OPTIONS = {
    "`mqtt.host`": "--host", "`mqtt.port`": "--port", "`mqtt.user`": "--user", "`mqtt.password`": "--password-env",
    "`mqtt.tls.ca`": "--ca", "`mqtt.tls`": "--ca, --cert and --key",
}  # fmt: skip
"""What the agent's advice calls by its key in the configuration."""


@contextmanager
def said_as_options() -> Iterator[None]:
    """Let the advice of errors name options, where there is no configuration to correct."""
    try:
        yield
    except HoldfastError as error:
        for key, option in _OPTIONS.items():
            error.hint = error.hint.replace(key, option) if error.hint else None
        raise


def settings(
    host: str,
    *,
    port: int | None,
    user: str | None,
    password_env: str,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    prefix: str,
) -> MqttSettings:
    """Put the options together.

    Raises:
        OperatorError: a file is not there, the password's variable is not set, or a value is not allowed.
    """
    for path in (ca, cert, key):
        if path is not None and not path.is_file():
            raise OperatorError("there is no such file", where=str(path), hint="check --ca, --cert and --key")
    if user is not None and password_env not in os.environ:
        raise OperatorError(f"{password_env} is not set", hint="put the password there, or name another --password-env")
    values = {
        "host": host,
        "port": port,
        "user": user,
        "password": os.environ.get(password_env) if user else None,
        "topic_prefix": prefix,
        "tls": {"ca": ca, "cert": cert, "key": key} if ca or cert else None,
    }
    try:
        return MqttSettings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise OperatorError(f"the broker's options are not valid: {problems}", hint="correct them") from error
