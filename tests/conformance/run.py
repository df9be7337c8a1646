"""Run theupdateframework/tuf-conformance against the client that ships: over HTTP, then over MQTT.

    HOLDFAST_TUF_CONFORMANCE=<folder of a checkout> python tests/conformance/run.py [--via http|mqtt] [pytest's arguments]

The suite is neither vendored nor on the package index: bring a checkout (113 tests at eec841c). Further environment:

    HOLDFAST_TUF_CONFORMANCE_PYTHON   a Python that has what the checkout's pyproject.toml pins; default: this one

The tests of expiry need the program `faketime`, the run over MQTT `mosquitto`. Exit code 0 also where there is no checkout,
with a line that says so; 1 where a test did not pass, expected or not; 2 where something is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

from bridge import bridge

from agent.clock import SystemClock
from agent.errors import UnavailableError

REPOSITORY = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("tuf_client.py")
WAYS: dict[str, Callable[[Path], contextlib.AbstractContextManager[str]]] = {
    "http": lambda _folder: contextlib.nullcontext(""),
    "mqtt": bridge,
}
"""How the client gets to the suite's server; each gives the value of HOLDFAST_TUF_VIA (tuf_client.py)."""


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--via", choices=WAYS)
    options, for_pytest = parser.parse_known_args()
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
    results: list[tuple[bool, str]] = []
    for way in [options.via] if options.via else WAYS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                results.append(run(way, Path(checkout), Path(folder), for_pytest))
            except UnavailableError as error:
                print(f"tuf-conformance over {way}: {error}", file=sys.stderr)
                return 2
    for _, text in results:
        print(text)
    return 0 if all(is_good for is_good, _ in results) else 1


def run(way: str, checkout: Path, folder: Path, for_pytest: list[str]) -> tuple[bool, str]:
    """Run the suite once; return whether every test passed, and a line for people.

    Raises:
        UnavailableError: there is no such way here.
    """
    # The suite splits its entry point at spaces and hands on its environment: one file with no arguments is safest.
    entry_point, report = folder / "client", folder / "report.xml"
    entry_point.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" "{CLIENT}" "$@"\n')
    entry_point.chmod(0o755)
    python = os.environ.get("HOLDFAST_TUF_CONFORMANCE_PYTHON", sys.executable)
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", "tuf_conformance", f"--entrypoint={entry_point}"]
    clock = SystemClock()
    begun_s = clock.monotonic()
    with WAYS[way](folder / way) as via:
        subprocess.run(
            [*command, f"--junitxml={report}", *for_pytest],
            cwd=checkout,
            env={**os.environ, "HOLDFAST_TUF_VIA": via},
            check=False,
        )
    total, passed = count(report)
    text = f"tuf-conformance over {way}: {passed} of {total} tests passed in {clock.monotonic() - begun_s:.0f} s"
    return 0 < total == passed, text


def count(report: Path) -> tuple[int, int]:
    """Return how many tests there were and how many passed; an expected failure has not passed."""
    if not report.exists():
        return 0, 0
    tests = list(ET.parse(report).iter("testcase"))
    return len(tests), sum(all(test.find(ill) is None for ill in ("failure", "error", "skipped")) for test in tests)


if __name__ == "__main__":
    sys.exit(main())
