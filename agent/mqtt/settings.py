"""The operator's words for the broker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class TlsSettings(BaseModel):
    """TLS. Without `ca` the system's certificate store decides."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = None
    """Certificates of the authorities to trust (PEM)."""
    cert: Path | None = None
    """The client's certificate (PEM)."""
    key: Path | None = None
    """The client certificate's private key (PEM)."""


class MqttSettings(BaseModel):
    """The broker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: Annotated[str, Field(min_length=1)]
    """The broker's name or address."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """1883, or 8883 with TLS."""
    user: str | None = None
    """Where the broker asks for a login."""
    password: SecretStr | None = None
    """Better not in the file: write `"${MQTT_PASSWORD}"` and set the variable."""
    client_id: str | None = None
    """The device's id where it is not given."""
    topic_prefix: Annotated[str, Field(pattern=r"^[^#+\s]+[^#+/\s]$|^[^#+/\s]$")] = "holdfast"
    """What every topic begins with."""
    tls: TlsSettings | None = None
    """`{}` for TLS with the system's certificates."""
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    """auto: MQTT 5, and 3.1.1 where the broker speaks nothing else."""
    keepalive_s: Annotated[int, Field(ge=5, le=65535)] = 30
    """Seconds of silence after which a dead connection is noticed (about 1.5 × this)."""
