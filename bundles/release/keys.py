"""Keys that sign releases: made, found and opened here, wherever their private half lives.

A *public key file* (`targets.pub`, JSON) holds the key as TUF writes it, its id, and the URI of its signer: `file2:` with a
PKCS#8 PEM file beside it, or what securesystemslib knows (`hsm:`, `awskms:`, `gcpkms:`, `azurekms:`, `hv:`). Only public
key files are ever copied between people; the private half stays in its file (mode 0600) or device.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signer,
    SSlibKey,
    VaultSigner,
)

from agent import atomicfile
from agent.errors import OperatorError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PASSPHRASE = "HOLDFAST_KEY_PASSPHRASE"  # noqa: S105  the variable's name
"""Environment variable with the passphrase of key files; `…_TARGETS` for `targets.pem` alone goes before it."""
_FILE = f"{CryptoSigner.SCHEME}:"
_INSTALL = "install it with `pip install 'securesystemslib[crypto]'`"
_MAX_KEY_FILE_BYTES = 64_000


def generate(path: Path, passphrase: str | None = None) -> Key:
    """Make an Ed25519 key: `path` (PKCS#8 PEM, mode 0600) and the public key file beside it. Return the public key.

    Raises:
        OperatorError: a key is there already, or the files cannot be written.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            BestAvailableEncryption,
            Encoding,
            KeySerializationEncryption,
            NoEncryption,
            PrivateFormat,
        )
    except ImportError as error:
        raise _needs_cryptography(error) from error
    lock: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)
    if path.exists():
        hint = "choose another file; a key is never overwritten"
        raise OperatorError("there is a key already", where=str(path), hint=hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomicfile.write(path, content)  # through a temporary file, which is its owner's alone (0600) from the start
    except OSError as error:
        message = f"the key cannot be written: {error.strerror or error}"
        raise OperatorError(message, where=str(path), hint="choose a folder that you may write to") from error
    return complete(path, private)


def complete(path: Path, private: PrivateKeyTypes | None = None) -> Key:
    """Write the public key file of a private key file (one of openssl's, say, or of an interrupted `generate`).

    Raises:
        OperatorError: it is no private key, of no usable kind, or its passphrase is missing or wrong.
    """
    try:
        key = SSlibKey.from_crypto((private or _load(path)).public_key())
    except (ValueError, AttributeError) as error:
        hint = "use an Ed25519, ECDSA or RSA key"
        raise OperatorError(f"is of no usable kind: {error}", where=str(path), hint=hint) from error
    write_public_key(path.with_suffix(".pub"), key, f"{_FILE}{path.absolute()}")
    return key


def import_key(uri: str) -> tuple[str, Key]:
    """Ask an HSM or a cloud's key service for the public key of `uri`; return the URI to sign with, and the key.

    Raises:
        OperatorError: the URI is of no known kind, a library is missing, or the service refuses.
    """
    scheme, _, name = uri.partition(":")
    if scheme not in _IMPORTS:
        known = ", ".join(f"{each}:" for each in _IMPORTS)
        raise OperatorError(f"`{uri}` names no key service", hint=f"known: {known}")
    try:
        signer_uri, key = _IMPORTS[scheme](name)
    except Exception as error:
        raise _unusable(uri, error) from error
    return str(signer_uri), key


_IMPORTS: dict[str, Any] = {
    "hsm": lambda _: HSMSigner.import_(),
    "awskms": AWSSigner.import_,
    "gcpkms": GCPSigner.import_,
    "azurekms": lambda name: AzureSigner.import_(*name.rsplit("/", 1)),
    "hv": VaultSigner.import_,
}
"""Scheme → how securesystemslib brings the public key. `azurekms:VAULT/KEY`; `hsm:` takes the token's signing key."""


def write_public_key(path: Path, key: Key, uri: str | None = None) -> None:
    """Write a public key file."""
    document = {"keyid": key.keyid, **key.to_dict(), **({"uri": uri} if uri else {})}
    atomicfile.write(path, json.dumps(document, indent=2).encode() + b"\n")


def read_public_key(path: Path) -> tuple[Key, str | None]:
    """Read a public key file, or the one beside a private key file; return the key and its signer's URI.

    The URI of a key file is the `.pem` beside this file where there is one, since folders of keys move.

    Raises:
        OperatorError: there is no such file, or it is no public key.
    """
    public = path.with_suffix(".pub")
    try:
        with public.open("rb") as file:
            document = json.loads(file.read(_MAX_KEY_FILE_BYTES))
        uri = document.pop("uri", None)
        key = Key.from_dict(document.pop("keyid"), document)
    except FileNotFoundError as error:
        hint = "make a key with `holdfast release key new FILE`, or name the right one"
        raise OperatorError("there is no such key", where=str(public), hint=hint) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "name a .pub file that `holdfast release key` wrote"
        raise OperatorError(f"is no public key: {error}", where=str(public), hint=hint) from error
    private = public.with_suffix(".pem")
    return key, f"{_FILE}{private.absolute()}" if private.exists() else uri


class Keyring:
    """Every signer at hand, by key id; a private key is opened only when it signs.

    Args:
        folders: Folders of key files.
        files: Key files (`.pem` or `.pub`).
        recorded: Key id → URI, as the repository remembers them; the two above go before it.

    Raises:
        OperatorError: a folder or file is not there or is no key.
    """

    def __init__(
        self, folders: Sequence[Path] = (), files: Sequence[Path] = (), recorded: Mapping[str, str] | None = None
    ) -> None:
        self.uris: dict[str, str] = dict(recorded or {})
        """Key id → URI, whether it is at hand or not."""
        self.keys: dict[str, Key] = {}
        """The public keys of `folders` and `files`."""
        for folder in folders:
            if not folder.is_dir():
                raise OperatorError("there is no such folder of keys", where=str(folder), hint="check the path")
        for path in [*(each for folder in folders for each in sorted(folder.glob("*.pub"))), *files]:
            key, uri = read_public_key(path)
            self.keys[key.keyid] = key
            if uri is not None:
                self.uris[key.keyid] = uri

    def uri(self, keyid: str) -> str | None:
        """Return where the private key is, or None where nothing here can sign with it."""
        uri = self.uris.get(keyid)
        if uri is None or (uri.startswith(_FILE) and not Path(uri.removeprefix(_FILE)).exists()):
            return None
        return uri

    def signer(self, key: Key) -> Signer | None:
        """Open the signer of a public key, or return None where it is not at hand.

        Raises:
            OperatorError: the key is there and cannot be used: wrong passphrase, damaged file, a service that refuses.
        """
        uri = self.uri(key.keyid)
        if uri is None:
            return None
        try:
            if uri.startswith(_FILE):
                return _open_file(Path(uri.removeprefix(_FILE)), key)
            return Signer.from_priv_key_uri(uri, key, getpass.getpass)
        except OperatorError:
            raise
        except Exception as error:
            raise _unusable(uri, error) from error


def _open_file(path: Path, key: Key) -> Signer:
    assert isinstance(key, SSlibKey), "CryptoSigner takes nothing else"
    return CryptoSigner(_load(path), key)


def _load(path: Path) -> PrivateKeyTypes:
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise _needs_cryptography(error) from error
    content = path.read_bytes()
    passphrase = _passphrase(path) if b"BEGIN ENCRYPTED" in content else None
    try:
        return load_pem_private_key(content, passphrase.encode() if passphrase else None)
    except ValueError as error:
        what = "wrong passphrase" if passphrase else f"is no private key: {error}"
        hint = f"set {PASSPHRASE}" if passphrase else "bring the file back from its copy"
        raise OperatorError(what, where=str(path), hint=hint) from error


def _passphrase(path: Path) -> str:
    own = f"{PASSPHRASE}_{path.stem.upper().replace('-', '_')}"
    if found := os.environ.get(own) or os.environ.get(PASSPHRASE):
        return found
    if sys.stdin.isatty():
        return getpass.getpass(f"passphrase of {path}: ")
    raise OperatorError("the key is encrypted and there is no passphrase", where=str(path), hint=f"set {PASSPHRASE}")


def _needs_cryptography(error: ImportError) -> OperatorError:
    return OperatorError(f"signing needs the package cryptography: {error}", hint=_INSTALL)


def _unusable(uri: str, error: Exception) -> OperatorError:
    hint = _INSTALL if isinstance(error, UnsupportedLibraryError) else "check that the key is the one that is meant"
    return OperatorError(f"the key cannot be used: {error}", where=uri, hint=hint)
