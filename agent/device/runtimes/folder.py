"""Which ONNX Runtime this process holds: the one that Holdfast is installed with, or another wheel in a folder of its own.

A process can hold one: their native libraries have the same names. The first that is opened stays.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from agent.errors import CandidateError, OtherRuntimeError

_folders: list[Path] = []
"""The folder whose ONNX Runtime was imported, if any."""


def import_installed() -> None:
    """Make sure that this process holds the installed ONNX Runtime.

    Raises:
        OtherRuntimeError: it holds another.
        CandidateError: it cannot be imported.
    """
    if _folders:
        raise _other(_folders[0])
    _import("the ONNX Runtime that Holdfast is installed with")


def import_folder(folder: Path) -> None:
    """Import the ONNX Runtime of `folder`, before any other.

    Raises:
        OtherRuntimeError: this process holds another.
        CandidateError: it cannot be imported: made for another Python or system.
    """
    folder = folder.resolve()
    if "onnxruntime" in sys.modules:
        if _folders == [folder]:
            return
        raise _other(Path(sys.modules["onnxruntime"].__file__ or "").parent.parent)
    sys.path.insert(0, str(folder))
    _folders.append(folder)
    _import(f"the ONNX Runtime in {folder}")
    loaded = Path(sys.modules["onnxruntime"].__file__ or "").resolve()
    if not loaded.is_relative_to(folder):  # an import hook, as in a frozen program, went before the path
        raise CandidateError(f"ONNX Runtime came from {loaded}, not from {folder}", where=str(folder))


def _import(what: str) -> None:
    try:
        importlib.import_module("onnxruntime")
    except Exception as error:
        raise CandidateError(
            f"{what} cannot be imported: {type(error).__name__}: {error}",
            hint="install the wheel for this system and this version of Python again",
        ) from error


def _other(held: Path) -> OtherRuntimeError:
    return OtherRuntimeError(
        f"this process already holds the ONNX Runtime of {held}", hint="open this one in a process of its own"
    )
