"""A real TUF repository in memory, with all of its keys: what tests let devices trust, and what hostile parts tamper with.

It takes target documents and gives signed files under the paths of a release repository (`metadata/3.root.json`,
`targets/channels/<sha256>.stable.json`). Time is handed in and moves by `now` alone. For one hand: whoever holds this object
can sign anything, which is the point of a test and the opposite of bundles/release.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from agent.update.transports.transport import NotThereError
from simulator.clock import START

ROLES = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


class TufRepository:
    """Version 1 of everything is published at once.

    Args:
        now: The time at which it signs; change `now` to let time pass.
        lifetime: Until what is signed expires.
        keys: Ed25519 keys a role, all of which must sign.
    """

    def __init__(self, now: datetime = START, lifetime: timedelta = timedelta(days=30), keys: int = 1) -> None:
        self.now = now
        self.lifetime = lifetime
        self.files: dict[str, bytes] = {}
        """What a device may read, by path. Copy it to keep an old state for a replay."""
        self.signers = {role: [CryptoSigner.generate_ed25519() for _ in range(keys)] for role in ROLES}
        self.root = Root()
        self.targets = Targets()
        self.snapshot = Snapshot()
        self.timestamp = Timestamp()
        for role, signers in self.signers.items():
            for signer in signers:
                self.root.add_key(signer.public_key, role)
            self.root.roles[role].threshold = keys
        self._write_root()
        self._write_rest()

    @property
    def first_root(self) -> bytes:
        """What a device is provisioned with."""
        return self.files["metadata/1.root.json"]

    def publish(self, documents: Mapping[str, bytes] | None = None) -> None:
        """Sign `documents` (path → content) as targets, with those that are there, as a new version of all three roles."""
        for path, content in (documents or {}).items():
            target = TargetFile.from_data(path, content, ["sha256"])
            self.targets.targets[path] = target
            folder, slash, name = path.rpartition("/")
            self.files[f"targets/{folder}{slash}{target.hashes['sha256']}.{name}"] = content
        self.targets.version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        self._write_rest()

    def refresh(self) -> None:
        """Sign a new timestamp, as the online side does every day."""
        self.timestamp.version += 1
        self._write_timestamp()

    def rotate(self, *roles: str) -> None:
        """Replace the keys of `roles`, in one new root that the old and the new root keys sign."""
        old_root_signers = self.signers[Root.type]
        for role in roles:
            for signer in self.signers[role]:
                self.root.revoke_key(signer.public_key.keyid, role)
            self.signers[role] = [CryptoSigner.generate_ed25519() for _ in self.signers[role]]
            for signer in self.signers[role]:
                self.root.add_key(signer.public_key, role)
        self.root.version += 1
        self._write_root(old_root_signers if Root.type in roles else ())

    def read(self, path: str, limit_bytes: int) -> bytes:
        """Give a file out, as an honest transport does.

        Raises:
            NotThereError: there is none.
        """
        if path not in self.files:
            raise NotThereError("the repository has no such file", where=path)
        return self.files[path][: limit_bytes + 1]

    def sign(self, signed: Root | Targets | Snapshot | Timestamp, signers: Collection[CryptoSigner]) -> bytes:
        """Return metadata as a file, signed by whoever is named."""
        metadata: Metadata[Any] = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def _write_root(self, also_signed_by: Collection[CryptoSigner] = ()) -> None:
        self.root.expires = self.now + 12 * self.lifetime
        signers = [*self.signers[Root.type], *also_signed_by]
        self.files[f"metadata/{self.root.version}.root.json"] = self.sign(self.root, signers)

    def _write_rest(self) -> None:
        self.targets.expires = self.now + 6 * self.lifetime
        self.snapshot.expires = self.now + 2 * self.lifetime
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        for signed in (self.targets, self.snapshot):
            content = self.sign(signed, self.signers[signed.type])
            self.files[f"metadata/{signed.version}.{signed.type}.json"] = content
        self._write_timestamp()

    def _write_timestamp(self) -> None:
        self.timestamp.expires = self.now + self.lifetime
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.timestamp.unrecognized_fields["issued"] = self.now.isoformat()
        self.files["metadata/timestamp.json"] = self.sign(self.timestamp, self.signers[Timestamp.type])
