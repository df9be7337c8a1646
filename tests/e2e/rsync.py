"""Stands in for rsync where it is not installed: of its options, those that the README uses, with the same meaning.

Copies files and folders (a folder without a trailing slash with its own name) into an existing destination on this machine.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

KNOWN = {"-a", "--ignore-existing", "--remove-source-files"}


def copy(source: Path, target: Path, options: set[str]) -> None:
    """Copy one file, under a temporary name first, as rsync does."""
    if "--ignore-existing" in options and target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.rsync")
    shutil.copy2(source, beside)
    beside.replace(target)
    if "--remove-source-files" in options:
        source.unlink()


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    options = {word for word in arguments if word.startswith("-")}
    *sources, destination = (word for word in arguments if not word.startswith("-"))
    if options - KNOWN or any(source.endswith("/") for source in sources) or not Path(destination).is_dir():
        sys.stderr.write(f"this stand-in cannot do that: {arguments}\n")
        return 1
    for source in map(Path, sources):
        files = [source] if source.is_file() else [each for each in sorted(source.rglob("*")) if each.is_file()]
        for each in files:
            copy(each, Path(destination) / each.relative_to(source.parent), options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
