"""Certificates for TLS tests: a CA, a broker, clients; made by the program `openssl`, valid for two days."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, PEM."""

    cert: Path
    key: Path


class Certificates:
    """A CA in a folder, with the broker's certificate for 127.0.0.1 and localhost.

    Raises:
        FileNotFoundError: `openssl` is not installed.
        subprocess.CalledProcessError: it refused; its words are in `stderr`.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.ca = folder / "ca.crt"
        self._ca_key = folder / "ca.key"
        _openssl(
            "req", "-x509", *_NEW_KEY, "-days", "2", "-subj", "/CN=Holdfast test CA",
            "-keyout", str(self._ca_key), "-out", str(self.ca),
        )  # fmt: skip
        self.server = self.issue("127.0.0.1", "subjectAltName=IP:127.0.0.1,DNS:localhost")

    def issue(self, name: str, *extensions: str, days: int = 2) -> KeyPair:
        """Return a certificate for `name` (its CN); `days` 0 makes one that has expired already."""
        pair = KeyPair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        request, extra = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        extra.write_text("\n".join(extensions) + "\n")
        _openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(request))
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self._ca_key), "-CAcreateserial",
            "-days", str(days), "-extfile", str(extra), "-out", str(pair.cert),
        )  # fmt: skip
        return pair


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
