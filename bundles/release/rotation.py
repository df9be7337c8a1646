"""Replace one key of a role by another: which is meant, where the new one comes from, and the new root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agent.errors import OperatorError
from bundles.release.keys import Keyring, generate, read_public_key
from bundles.release.metadata import RoleName
from bundles.release.publication import Outcome
from bundles.release.repository import Repository


@dataclass(frozen=True, slots=True)
class Replaced:
    """A key that took another's place."""

    old_keyid: str
    new_keyid: str
    outcome: Outcome


def replace_key(repository: Repository, role: RoleName, old: str | None = None, new: Path | None = None) -> Replaced:
    """Let a new key sign for `role` instead of an old one.

    Args:
        repository: With the root keys at hand; and with the role's own where a gap is to be avoided.
        role: Whose key.
        old: The old key's id or its beginning; may be left out where the role has one key only.
        new: A public key file, or a `.pem` that is made where it is not there; made beside the old one where None.

    Raises:
        OperatorError: the old key is not known or not unique, or no key at hand may sign a root.
    """
    old_keyid = find_key(repository, role, old)
    path = new or _beside(repository, role, old_keyid)
    if not path.with_suffix(".pub").exists():
        if path.suffix != ".pem":
            hint = "name a .pub file, or a .pem file to make a key"
            raise OperatorError("there is no such key", where=str(path), hint=hint)
        generate(path)
    key, _ = read_public_key(path)
    if key.keyid == old_keyid:
        raise OperatorError("the new key is the old one", where=str(path), hint="name another file with --new")
    repository.keyring = Keyring(files=[path], recorded=repository.keyring.uris)
    return Replaced(old_keyid, key.keyid, repository.change_keys(role, add=[key], remove=[old_keyid]))


def find_key(repository: Repository, role: RoleName, beginning: str | None) -> str:
    """Return the id of the role's key that begins so.

    Raises:
        OperatorError: none does, or several.
    """
    keyids = repository.root().roles[role].keyids
    found = [keyid for keyid in keyids if keyid.startswith(beginning or "")]
    if len(found) != 1:
        what = "no key" if not found else f"{len(found)} keys"
        hint = f"its keys: {', '.join(keyids)}"
        raise OperatorError(f"{what} of {role} begin with `{beginning or ''}`", hint=hint)
    return found[0]


def _beside(repository: Repository, role: RoleName, old_keyid: str) -> Path:
    uri = repository.keyring.uri(old_keyid) or ""
    if not uri.startswith("file2:"):
        hint = "name it with --new FILE"
        raise OperatorError(f"where should the new key of {role} be? The old one is not a file here", hint=hint)
    return Path(uri.removeprefix("file2:")).parent / f"{role}-{repository.root().version + 1}.pem"
