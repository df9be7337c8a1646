"""The documents that a release repository signs, as targets of TUF: text from outside becomes typed values here.

    channels/<channel>.json                    the desired state of the devices that follow a channel
    bundles/<name>/<version>/manifest.json     a bundle's manifest, the very bytes that its digest names
    bundles/<name>/<version>/transfer.json     how its blobs travel: each form with its digest, length and chunk hashes

A channel's document is an assignment: without a signature on it a hostile broker could choose which of the valid bundles a
device runs. Unknown fields are kept and ignored, since an old device must still read what a newer repository writes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from agent.bundle.manifest import Name, Sha256
from agent.update.settings import ChannelName, GroupName, TimeWindow

CHUNK_BYTES = 65536
MAX_CHANNEL_BYTES = 256_000
MAX_TRANSFER_BYTES = 8_000_000
ReleaseNumber = Annotated[int, Field(ge=1, lt=2**53)]
"""What every JSON reader takes exactly (RFC 8259 section 6), and SQLite too."""
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=64)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class BundleReference(_Document):
    """Exactly one bundle: the digest is the SHA-256 of its manifest.json."""

    name: Name
    version: Version
    manifest_sha256: Sha256


class Rollback(_Document):
    """Said when an assignment goes back to an older version on purpose."""

    from_version: str
    reason: str


class PipelineOverrides(_Document):
    """What a release changes in one pipeline's settings; what is None stays as the operator's file has it."""

    min_score: Annotated[float, Field(ge=0, le=1)] | None = None
    labels: tuple[str, ...] | None = None
    zones: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None


class Assignment(_Document):
    """What the devices that it selects should run."""

    release: ReleaseNumber
    bundle: BundleReference
    percent: Annotated[int, Field(ge=0, le=100)] = 100
    """The share of devices that it selects: SHA-256(seed + "/" + device id) as a number < percent of its range."""
    seed: str = ""
    """Stays the same when a release is promoted, so that whoever had it keeps it."""
    groups: tuple[GroupName, ...] = ()
    """Only devices of one of these groups; empty: all."""
    not_before: datetime | None = None
    window: TimeWindow | None = None
    rollback: Rollback | None = None
    pipelines: dict[str, PipelineOverrides] = {}
    """By pipeline name; a name that a device does not have is ignored there."""


class ChannelDocument(_Document):
    """`channels/<channel>.json`. Assignments newest first: a device takes the first that selects it."""

    schema_version: Literal[1] = 1
    channel: ChannelName
    release: ReleaseNumber
    """Rises with every change of this document."""
    issued: datetime
    assignments: Annotated[tuple[Assignment, ...], Field(max_length=64)]


FormKind = Literal["raw", "zstd", "patch", "residual"]


class Form(_Document):
    """One way in which a blob can travel; the file is `blobs/<sha256>` in the repository.

    raw: the blob itself. zstd: RFC 8878. patch: zstd with the blob `base` as prefix. residual: tensor-wise
    difference to the blob `base` (agent/update/fetching/residual.py), for weights that all moved a little.
    """

    kind: FormKind
    sha256: Sha256
    """Of the file that travels, not of the blob."""
    size_bytes: Annotated[int, Field(ge=0)]
    base: Sha256 | None = None
    chunks: tuple[Sha256, ...]
    """Of each `chunk_bytes` of the file, the last one shorter."""


class TransferDocument(_Document):
    """`bundles/<name>/<version>/transfer.json`. Every blob has at least one form without a base."""

    schema_version: Literal[1] = 1
    chunk_bytes: Annotated[int, Field(ge=1024, le=262144)] = CHUNK_BYTES
    blobs: dict[Sha256, tuple[Form, ...]]


def channel_path(channel: str) -> str:
    """Return the target path of a channel's document."""
    return f"channels/{channel}.json"


def manifest_path(name: str, version: str) -> str:
    """Return the target path of a bundle's manifest."""
    return f"bundles/{name}/{version}/manifest.json"


def transfer_path(name: str, version: str) -> str:
    """Return the target path of the document that says how a bundle's blobs travel."""
    return f"bundles/{name}/{version}/transfer.json"


def blob_path(sha256: str) -> str:
    """Return where a file that travels lies in the repository."""
    return f"blobs/{sha256}"
