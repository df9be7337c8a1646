"""Small text files that a kernel shows under /proc and /sys, below a root that tests replace by a recorded tree."""

from __future__ import annotations

from pathlib import Path

SYSTEM_ROOT = Path("/")


def read(root: Path, relative: str) -> str | None:
    """Return the file's text without the NUL that ends a device-tree string; None where it is missing or unreadable."""
    try:
        return (root / relative).read_bytes().decode(errors="replace").rstrip("\0\n ")
    except OSError:
        return None


def read_number(root: Path, relative: str) -> int | None:
    """Return the file's text as an integer; None where it is no integer."""
    try:
        return int(read(root, relative) or "")
    except ValueError:
        return None


def folders(root: Path, relative: str, prefix: str) -> list[Path]:
    """Return the entries of a folder whose name is `prefix` and a number, in the order of the numbers."""
    try:
        entries = list((root / relative).iterdir())
    except OSError:
        return []
    numbered = {int(entry.name[len(prefix) :]): entry for entry in entries if _is_numbered(entry.name, prefix)}
    return [numbered[number] for number in sorted(numbered)]


def _is_numbered(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and name[len(prefix) :].isdecimal()


def properties(root: Path, relative: str) -> dict[str, str]:
    """Return a file of `KEY=value` lines, such as a device's `uevent`; empty where it is missing."""
    lines = (read(root, relative) or "").splitlines()
    return {key: value for key, equals, value in (line.partition("=") for line in lines) if equals}
