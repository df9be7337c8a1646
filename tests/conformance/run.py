"""Run theupdateframework/tuf-conformance against the client that ships.

    HOLDFAST_TUF_CONFORMANCE=<folder of a checkout> python tests/conformance/run.py [pytest's arguments]

The suite is neither vendored nor on the package index: bring a checkout. Further environment:

    HOLDFAST_TUF_CONFORMANCE_PYTHON   a Python that has what the checkout's pyproject.toml pins; default: this one
    HOLDFAST_TUF_VIA                  see tuf_client.py

The tests of expiry need the program `faketime`. Exit code 0 also where there is no checkout, with a line that says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("tuf_client.py")


def main(arguments: list[str]) -> int:
    """Return pytest's exit code; 0 where there is nothing to run."""
    checkout = os.environ.get("HOLDFAST_TUF_CONFORMANCE")
    if not checkout:
        print(
            "tuf-conformance: skipped, HOLDFAST_TUF_CONFORMANCE names no checkout of theupdateframework/tuf-conformance"
        )
        return 0
    if not (Path(checkout) / "tuf_conformance" / "conftest.py").is_file():
        print(f"tuf-conformance: {checkout} (HOLDFAST_TUF_CONFORMANCE) is no checkout of it", file=sys.stderr)
        return 2
    if shutil.which("faketime") is None:
        print("tuf-conformance: needs the program `faketime` (Debian package of that name)", file=sys.stderr)
        return 2
    python = os.environ.get("HOLDFAST_TUF_CONFORMANCE_PYTHON", sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        # The suite splits its entry point at spaces and hands on its environment: one file with no arguments is safest.
        entry_point = Path(folder) / "client"
        entry_point.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" "{CLIENT}" "$@"\n')
        entry_point.chmod(0o755)
        command = [python, "-m", "pytest", "-p", "no:cacheprovider", "tuf_conformance", f"--entrypoint={entry_point}"]
        return subprocess.run([*command, *arguments], cwd=checkout, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
