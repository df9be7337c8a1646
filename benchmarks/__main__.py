"""`python -m benchmarks [NAME…] [--quick]`: measure, and print one table of every number that was promised."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path

from benchmarks.parts import MissingPartError, Parts, load, machine
from benchmarks.table import Line, Missing, render

Measure = Callable[[Parts], Iterable[Line]]

BENCHMARKS: Mapping[str, str] = {
    "throughput": "frames a second, CPU a frame and memory against loops written by hand",
    "latency": "what the pipeline adds to a frame's own work, at a camera's pace",
    "repair": "the built UltraFace against the file as shipped",
    "planning": "the plan's choice against the best found by exhaustive search, and what planning takes",
    "quantization": "static INT8 from the builder against fp32: speed, and what the task loses",
    "outbox": "recording against raw SQLite",
    "core": "memory of core with a camera and a broker, CPU when nothing happens, draining to a real broker",
    "delta": "bytes on the wire for a new version of a file that devices hold",
    "switch": "frames lost and the pause when a running worker switches to another bundle",
    "removal": "an accelerator that goes away while it is used: how soon the next one serves, and what is lost",
    "growth": "a worker's memory over 200,000 frames",
    "transfer": "a release over MQTT against a plain mover, far away, and beside events",
    "update": "what a check that finds nothing new and the way back to a stored bundle cost on the wire",
}


def main() -> None:
    """Measure what was asked for, all by default."""
    listing = "\n".join(f"  {name:12} {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog=listing, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and frames; notes say how many")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"unknown: {', '.join(unknown)}\n{listing}")
    found: list[Line] = []
    before, before_load = machine(), load()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        _keep_bytecode(Path(folder))
        parts = Parts(Path(folder), chosen.quick, lambda text: print(f"… {text}", file=sys.stderr, flush=True))
        for name in chosen.names or BENCHMARKS:
            found += _measure(name, parts)
    print(render(found, f"{before}, load {before_load} before and {load()} after"))


def _keep_bytecode(folder: Path) -> None:
    """Let every process find compiled modules, as it does where a package was installed: compiling takes 5 MiB."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")


def _measure(name: str, parts: Parts) -> list[Line]:
    """Return a benchmark's lines, or one that says why there are none: the other benchmarks go on."""
    measure: Measure = import_module(f"benchmarks.{name}").lines
    found: list[Line] = []
    try:
        for line in measure(parts):
            parts.say("  ".join(cell for cell in line.cells() if cell))
            found.append(line)
    except MissingPartError as error:
        found.append(Missing(name, str(error)))
    except Exception as error:  # noqa: BLE001  one benchmark that fails must not take the table with it
        traceback.print_exc()
        found.append(Missing(name, f"failed with {type(error).__name__}"))
    return found


if __name__ == "__main__":
    main()
