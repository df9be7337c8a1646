"""Keys: private halves stay private, whatever signs goes one way, and mistakes are said."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner

from agent.errors import OperatorError
from bundles.release import keys
from bundles.release.creation import create, open_repository
from bundles.release.keys import Keyring


def test_private_key_is_readable_by_its_owner_only_and_never_overwritten(tmp_path: Path):
    """It is the one file that must not leak, or vanish."""
    keys.generate(tmp_path / "root.pem")
    assert stat.S_IMODE((tmp_path / "root.pem").stat().st_mode) == 0o600
    with pytest.raises(OperatorError, match="a key already"):
        keys.generate(tmp_path / "root.pem")
    assert b"PRIVATE" not in (tmp_path / "root.pub").read_bytes()


def test_encrypted_key_signs_with_its_passphrase_only(tmp_path: Path, monkeypatch):
    """A stolen laptop is not a stolen key."""
    public = keys.generate(tmp_path / "targets.pem", "correct horse")
    ring = Keyring([tmp_path])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(OperatorError, match=f"set {keys.PASSPHRASE}"):
        ring.signer(public)
    monkeypatch.setenv(keys.PASSPHRASE, "wrong")
    with pytest.raises(OperatorError, match="wrong passphrase"):
        ring.signer(public)
    monkeypatch.setenv(f"{keys.PASSPHRASE}_TARGETS", "correct horse")
    public.verify_signature(ring.signer(public).sign(b"x"), b"x")


def test_folders_of_keys_may_move(tmp_path: Path):
    """The `.pem` beside the `.pub` counts, not the place where it was made."""
    public = keys.generate(tmp_path / "a" / "root.pem")
    (tmp_path / "a").rename(tmp_path / "b")
    assert Keyring([tmp_path / "b"]).signer(public) is not None
    (tmp_path / "b" / "root.pem").unlink()
    assert Keyring([tmp_path / "b"]).signer(public) is None


def test_damaged_and_missing_keys_are_said(tmp_path: Path):
    """With the file and the next step."""
    for make, message in [
        (lambda: Keyring([tmp_path / "nowhere"]), "no such folder"),
        (lambda: Keyring(files=[tmp_path / "no.pem"]), "no such key"),
    ]:
        with pytest.raises(OperatorError, match=message):
            make()
    (tmp_path / "bad.pub").write_text("{}")
    with pytest.raises(OperatorError, match="is no public key"):
        Keyring(files=[tmp_path / "bad.pub"])
    public = keys.generate(tmp_path / "k" / "k.pem")
    (tmp_path / "k" / "k.pem").write_text("garbage")
    with pytest.raises(OperatorError, match="no private key"):
        Keyring([tmp_path / "k"]).signer(public)
    keys.generate(tmp_path / "other" / "k.pem")
    (tmp_path / "other" / "k.pem").rename(tmp_path / "k" / "k.pem")
    with pytest.raises(OperatorError, match="does not match"):
        Keyring([tmp_path / "k"]).signer(public)


class KeyService(CryptoSigner):
    """A cloud's key service as securesystemslib sees it: a scheme of its own, the key elsewhere."""

    kept: CryptoSigner

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):
        if priv_key_uri == "kms:down":
            raise ConnectionError("the service does not answer")
        return cls.kept


def test_key_service_signs_by_the_same_path_as_a_file(tmp_path: Path, monkeypatch):
    """An HSM or a cloud's key is a URI in the public key file, nothing else."""
    KeyService.kept = CryptoSigner.generate_ecdsa()
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "kms", KeyService)
    (tmp_path / "keys").mkdir()
    public = KeyService.kept.public_key
    keys.write_public_key(tmp_path / "keys" / "targets.pub", public, "kms:alias/targets")
    repository, outcome = create(tmp_path / "repo", tmp_path / "keys")
    assert outcome.is_live and not (tmp_path / "keys" / "targets.pem").exists()
    assert repository.root().roles["targets"].keyids == [public.keyid]
    assert open_repository(tmp_path / "repo").settings.signers[public.keyid] == "kms:alias/targets"
    with pytest.raises(OperatorError, match="does not answer"):
        Keyring(recorded={public.keyid: "kms:down"}).signer(public)


def test_importing_from_an_unknown_service_names_the_known_ones():
    """A typo in the scheme."""
    with pytest.raises(OperatorError, match=r"awskms:.*hsm:|hsm:.*awskms:") as caught:
        keys.import_key("asw:key")
    assert caught.value.hint
    with pytest.raises(OperatorError, match="cannot be used"):
        keys.import_key("awskms:alias/x")


def test_missing_library_names_the_extra(tmp_path: Path, monkeypatch):
    """The agent alone needs no cryptography; whoever signs does."""
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(OperatorError, match=r"securesystemslib\[crypto\]"):
        keys.generate(tmp_path / "root.pem")


def test_public_key_file_is_plain_tuf(tmp_path: Path):
    """Others can read it with any TUF tool."""
    public = keys.generate(tmp_path / "root.pem")
    document = json.loads((tmp_path / "root.pub").read_text())
    assert document["keyid"] == public.keyid and document["keytype"] == document["scheme"] == "ed25519"


@pytest.mark.parametrize("algorithm", ["ed25519", "EC"])
def test_key_that_openssl_made_is_taken(tmp_path: Path, need_tool, algorithm: str):
    """Whoever has keys already keeps them; ECDSA is what HSMs give."""
    more = ["-pkeyopt", "ec_paramgen_curve:P-256"] if algorithm == "EC" else []
    (tmp_path / "keys").mkdir()
    private = tmp_path / "keys" / "root.pem"
    subprocess.run([need_tool("openssl"), "genpkey", "-algorithm", algorithm, *more, "-out", private], check=True)
    content = private.read_bytes()
    repository, outcome = create(tmp_path / "repo", tmp_path / "keys")
    assert outcome.is_live and private.read_bytes() == content
    assert repository.root().roles["root"].keyids == [keys.read_public_key(private)[0].keyid]
