"""What a repository holds, as values for `holdfast release show`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Root

from agent.update.documents import ChannelDocument
from bundles.release.metadata import ROLES, RoleName
from bundles.release.publication import Outcome
from bundles.release.repository import Repository


@dataclass(frozen=True, slots=True)
class RoleView:
    """One role: what is current of it, and who may sign it."""

    role: RoleName
    version: int
    expires: datetime | None
    threshold: int
    keyids: tuple[str, ...]
    at_hand: tuple[str, ...]
    """Those of the keys that this machine can sign with."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The whole repository, with changes that still wait for signatures."""

    roles: tuple[RoleView, ...]
    channels: tuple[ChannelDocument, ...]
    bundles: tuple[str, ...]
    """Name and version, in the order in which they were added."""
    outcome: Outcome
    """What waits, and the next step."""


def overview(repository: Repository) -> Overview:
    """Look at a repository.

    Raises:
        OperatorError: it is none, or is damaged.
    """
    root = repository.root()
    return Overview(
        tuple(_role(repository, root, role) for role in ROLES),
        tuple(repository.channel(name) for name in repository.channels()),
        tuple(f"{each.name} {each.version}" for each in repository.bundles()),
        repository.outcome(),
    )


def _role(repository: Repository, root: Root, role: RoleName) -> RoleView:
    metadata = repository.metadata
    current = {
        "root": metadata.root,
        "targets": metadata.targets,
        "snapshot": metadata.snapshot,
        "timestamp": metadata.timestamp,
    }[role]()
    keyids = tuple(root.roles[role].keyids)
    return RoleView(
        role,
        current.signed.version if current else 0,
        current.signed.expires if current else None,
        root.roles[role].threshold,
        keyids,
        tuple(keyid for keyid in keyids if repository.keyring.uri(keyid)),
    )
