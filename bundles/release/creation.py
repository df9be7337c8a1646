"""A new repository: the keys of each role, the first root, empty targets, and the first snapshot and timestamp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from securesystemslib.signer import Key
from tuf.api.metadata import Root

from agent.clock import Clock
from agent.errors import OperatorError
from bundles.release import keys as keyfiles
from bundles.release.keys import Keyring
from bundles.release.metadata import OFFLINE, ROLES, MetadataFolder, RoleName
from bundles.release.publication import Outcome
from bundles.release.repository import Repository
from bundles.release.settings import ExpiryDays, RepositorySettings


def create(
    folder: Path,
    keys: Path,
    online_keys: Path | None = None,
    *,
    thresholds: Mapping[RoleName, int] | None = None,
    public_keys: Mapping[RoleName, Sequence[Path]] | None = None,
    expires_days: ExpiryDays | None = None,
    passphrase: str | None = None,
    clock: Clock | None = None,
) -> tuple[Repository, Outcome]:
    """Make a repository in `folder`.

    Args:
        folder: Where; empty or not there yet.
        keys: Folder of the offline keys, `root` and `targets`: those that are missing are made, Ed25519.
        online_keys: Folder of `snapshot` and `timestamp`; `keys` where None.
        thresholds: How many signatures each role needs; 1 where not said.
        public_keys: Public key files of further people, by role.
        expires_days: See `ExpiryDays`.
        passphrase: For offline keys that are made here.
        clock: For tests.

    Raises:
        OperatorError: there is a repository already, or a key or threshold does not fit.
    """
    metadata = MetadataFolder(folder)
    if metadata.versions("root") or metadata.pending_of(Root):
        hint = "`holdfast release show REPO` says what is left of an interrupted start; or name another folder"
        raise OperatorError("is a release repository already", where=str(folder), hint=hint)
    role_keys: dict[RoleName, list[Key]] = {}
    others = {
        role: [keyfiles.read_public_key(path)[0] for path in paths] for role, paths in (public_keys or {}).items()
    }
    for role, threshold in (thresholds or {}).items():
        if not 1 <= threshold <= 1 + len(others.get(role, ())):
            hint = f"name the public keys of others with --public-key {role}=FILE"
            raise OperatorError(f"{role} would need {threshold} signatures and has too few keys", hint=hint)
    for role in ROLES:
        home = keys if role in OFFLINE else online_keys or keys
        own = home / f"{role}.pub"
        private = own.with_suffix(".pem")
        if not own.exists() and private.exists():
            keyfiles.complete(private)
        elif not own.exists():
            keyfiles.generate(private, passphrase if role in OFFLINE else None)
        role_keys[role] = [keyfiles.read_public_key(own)[0], *others.get(role, ())]
    keyring = Keyring(folders=list(dict.fromkeys([keys, online_keys or keys])))
    repository = Repository(folder, keyring, clock)
    settings = RepositorySettings(expires_days=expires_days or ExpiryDays())
    return repository, repository.create(role_keys, thresholds or {}, settings)


def open_repository(
    folder: Path, *, key_folders: Sequence[Path] = (), key_files: Sequence[Path] = (), clock: Clock | None = None
) -> Repository:
    """Open the repository in `folder` with the keys that it remembers and those that are named here."""
    repository = Repository(folder, clock=clock)
    repository.keyring = Keyring(key_folders, key_files, repository.settings.signers)
    return repository
