"""What one candidate compiled or optimised, kept in a folder of its own so that the next session loads in a fraction.

Three kinds (`providers.Keeps`): ONNX Runtime's optimized graph, loaded with optimization off; a model of EPContext nodes;
and the folder in which a provider keeps its own cache. All are made the same way: a draft session writes into a
temporary sibling, an index with every file's size and checksum comes last, and a rename makes it the folder, so builders that
meet do not harm each other and a power cut leaves nothing half. The session that serves is then loaded from the folder.

A cache, never an error: what is damaged is deleted and made again; what does not load is made again, and where that does not
load either, the model itself is used from then on; a disk that is full or read-only is logged and done without. Nothing in here
is taken from outside this device.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from agent import atomicfile, scratch
from agent.bundle.manifest import TensorSpec
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import Provider, provider_of
from agent.device.runtimes.runtime import Assignment, RuntimeSession
from agent.errors import BundleError, CandidateError

log = logging.getLogger(__name__)

INDEX = "index.json"
MODEL = "model.onnx"
WEIGHTS = "weights.bin"
BLOCK_BYTES = 1 << 18
LARGE_WEIGHT_BYTES = 1 << 20
"""Larger weights go beside the optimized graph, where they are mapped and not parsed; a file of protobuf ends at 2 GiB."""


@dataclass(frozen=True, slots=True)
class Variation:
    """How a session is made otherwise than from the model as it is."""

    model_path: Path | None = None
    is_optimized: bool = False
    """The graph was optimized before: doing it again would cost what was saved."""
    optimized_path: Path | None = None
    """Where ONNX Runtime is to write the graph after optimizing it."""
    session_options: Mapping[str, str] = field(default_factory=dict)
    provider_options: Mapping[str, str] = field(default_factory=dict)
    is_draft: bool = False
    """Made for what it writes, and closed again."""


AS_IT_IS = Variation()


@dataclass(frozen=True, slots=True)
class Index:
    """What lies in a folder, and what the draft session knew of the whole model: a compiled one has forgotten it."""

    made_of: str
    """The model and the candidate: a folder that was put in another's place would answer with that one's weights."""
    files: dict[str, tuple[int, int]]
    """Size and CRC-32 by the path within the folder: against rot. Whoever could forge a file here could forge the index."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, str]
    nodes: dict[str, int]
    partitions: dict[str, int]
    operators: dict[str, dict[str, int]]
    is_useless: bool = False
    """Nothing came of preparing, or what came did not load: the model itself is used, and nothing is tried again."""


SessionT = TypeVar("SessionT", bound=RuntimeSession)
Make = Callable[[Variation], SessionT]

_index: TypeAdapter[Index] = TypeAdapter(Index)


def open_or_make(folder: Path, candidate: Candidate, make: Make[SessionT], *, model: str = "") -> SessionT:
    """Return a session from `folder`, which is filled first where it is missing, damaged or of another model.

    Args:
        folder: This candidate's own; its parents are made.
        candidate: Says what can be kept.
        make: Makes a session of a variation.
        model: The model's file name; in a bundle, its SHA-256.

    Raises:
        BundleError: the model is none.
        CandidateError: the provider cannot run it, prepared or not.
    """
    provider = provider_of(candidate.provider, candidate.runtime)
    if provider.keeps == "nothing":
        return make(AS_IT_IS)
    made_of = f"{model} {candidate.prepared_name}"
    index = read_whole(folder, made_of)
    if index is not None and index.is_useless:
        return make(AS_IT_IS)
    if index is not None and (session := _load(folder, index, provider, make)):
        session.was_prepared = True
        return session
    replaces = index is not None
    return _prepare_and_load(folder, provider, make, made_of, replaces=replaces) or make(AS_IT_IS)


def read_whole(folder: Path, made_of: str) -> Index | None:
    """Return the index of a folder whose every file is as it was written. What is damaged is deleted, and logged."""
    if not folder.exists():  # asked first: a builder may finish between this look and the next
        return None
    try:
        index = _index.validate_json(atomicfile.read(folder / INDEX))
        damaged = _damaged(folder, index) if index.made_of == made_of else f"made of {index.made_of}"
    except (OSError, ValidationError):
        damaged = INDEX
    if damaged is None:
        return index
    log.warning("the prepared model in %s is damaged (%s) and is made again", folder, damaged)
    _delete(folder)
    return None


def _damaged(folder: Path, index: Index) -> str | None:
    """Return the first file that is not as it was written; None where all are."""
    if (folder / MODEL).exists() and MODEL not in index.files:
        return MODEL
    return next((name for name, (size, digest) in index.files.items() if not _is(folder / name, size, digest)), None)


def _prepare_and_load(
    folder: Path, provider: Provider, make: Make[SessionT], made_of: str, *, replaces: bool
) -> SessionT | None:
    """Fill the folder and load from it, which proves it. What proves useless is marked, or each start would try again."""
    index = _prepare(folder, provider, make, made_of, replaces=replaces)
    if index is None or index.is_useless:
        return None
    before = _stamps(folder)
    session = _load(folder, index, provider, make)
    if session is None and (folder / INDEX).exists():  # else another process took it away
        _mark_useless(folder, index)
    elif session is None:
        log.info("what was prepared in %s is gone already", folder)
    elif _stamps(folder) != before:  # as OpenVINO does for its CPU device (seen with 1.24.1)
        log.info("%s writes its cache anew at each load, so none is kept in %s", provider.name, folder)
        _mark_useless(folder, index)
    return session


def _load(folder: Path, index: Index, provider: Provider, make: Make[SessionT]) -> SessionT | None:
    """Return a session from what is prepared; None where it does not load. It stays: a device may only be away."""
    before = _stamps(folder)
    try:
        session = make(_loading(folder, provider))
    except (BundleError, CandidateError) as error:
        log.warning("the prepared model in %s does not load: %s", folder, error.message)
        return None
    if (session.inputs, session.outputs) != (index.inputs, index.outputs):
        log.warning("the prepared model in %s has other inputs or outputs than the model", folder)
        return None
    if _stamps(folder) != before:
        _seal_again(folder, index)
    session.metadata = index.metadata
    session.assignment = Assignment(index.nodes, index.partitions, index.operators)
    return session


def _prepare(folder: Path, provider: Provider, make: Make[SessionT], made_of: str, *, replaces: bool) -> Index | None:
    """Fill the folder; None where that cannot be done here and now. What is there goes once its successor is made."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _workshop(folder) as workshop:
            index = _draft(workshop, provider, make, made_of)
            if replaces:
                _delete(folder)
            return _publish(workshop, folder, index)
    except OSError as error:
        log.warning("nothing can be kept in %s, so every start prepares the model anew: %s", folder, error)
    except (BundleError, CandidateError) as error:
        free_mib = _free_mib(folder.parent)  # a full disk is "Protobuf serialization failed" to ONNX Runtime
        log.warning(
            "a prepared model for %s cannot be made: %s; its disk has %s MiB free", folder, error.message, free_mib
        )
    return None


def _free_mib(folder: Path) -> int | str:
    try:
        return shutil.disk_usage(folder).free >> 20
    except OSError:
        return "unknown"


def _draft(workshop: Path, provider: Provider, make: Make[SessionT], made_of: str) -> Index:
    """Let a session write into the workshop, and describe what came of it."""
    session = make(_drafting(workshop, provider))
    assignment = session.assignment
    inputs, outputs, metadata = session.inputs, session.outputs, dict(session.metadata)
    del session  # some write their cache when they close
    files = _sealed_files(workshop)
    is_model = provider.keeps != "cache-folder"
    return Index(
        made_of=made_of,
        files=files,
        inputs=inputs,
        outputs=outputs,
        metadata=metadata,
        nodes=dict(assignment.nodes),
        partitions=dict(assignment.partitions),
        operators={name: dict(counts) for name, counts in assignment.operators.items()},
        is_useless=not files or (is_model and MODEL not in files),
    )


def _drafting(folder: Path, provider: Provider) -> Variation:
    """Return the variation that makes a session write into `folder`."""
    match provider.keeps:
        case "optimized-graph":
            entries = {
                "session.optimized_model_external_initializers_file_name": WEIGHTS,
                "session.optimized_model_external_initializers_min_size_in_bytes": str(LARGE_WEIGHT_BYTES),
            }
            return Variation(optimized_path=folder / MODEL, session_options=entries, is_draft=True)
        case "ep-context":
            # The way of ModelCompiler, but with the record of which nodes went where: a compiled model has one left.
            entries = {
                "ep.context_enable": "1",
                "ep.context_file_path": str(folder / MODEL),
                "ep.context_embed_mode": "0",
                "ep.context_model_external_initializers_file_name": WEIGHTS,  # of the nodes that are left to others
            }
            return Variation(session_options=entries, is_draft=True)
        case _:
            return Variation(provider_options=provider.caching_in(folder), is_draft=True)


def _loading(folder: Path, provider: Provider) -> Variation:
    """Return the variation that makes a session of what lies in `folder`."""
    match provider.keeps:
        case "optimized-graph":
            return Variation(model_path=folder / MODEL, is_optimized=True)
        case "ep-context":
            return Variation(model_path=folder / MODEL)
        case _:
            return Variation(provider_options=provider.caching_in(folder))


def _publish(workshop: Path, folder: Path, index: Index) -> Index:
    """Make the workshop the folder. Another builder that was faster has made the same: its folder stays.

    So does a damaged one that may not be deleted, since it is another user's; it must not be loaded.
    """
    atomicfile.write(workshop / INDEX, _index.dump_json(index))
    try:
        workshop.rename(folder)
    except OSError:
        if (found := read_whole(folder, index.made_of)) is None:
            raise
        return found
    atomicfile.sync_folder(folder.parent)
    return index


def _mark_useless(folder: Path, index: Index) -> None:
    """Put a mark in place of what is there: the model itself is used from now on."""
    useless = replace(index, files={}, is_useless=True)
    _delete(folder)
    with contextlib.suppress(OSError), _workshop(folder) as workshop:
        _publish(workshop, folder, useless)


def _workshop(folder: Path) -> AbstractContextManager[Path]:
    """Give an empty sibling of `folder` that no other process takes for abandoned; gone afterwards, unless renamed."""
    return scratch.folder(_prefix(folder), folder.parent)


def _delete(folder: Path) -> None:
    """Delete the folder at once for everybody: by a rename, since another process may look while files go."""
    with contextlib.suppress(OSError):
        aside = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
        folder.rename(aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)


def _seal_again(folder: Path, index: Index) -> None:
    """Index anew what the provider has renewed by itself, as TensorRT does with an engine of another version."""
    with contextlib.suppress(OSError):
        atomicfile.write(folder / INDEX, _index.dump_json(replace(index, files=_sealed_files(folder))))


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what tells that a file was written again: cheap, where reading an engine of a gigabyte is not."""
    stamps: dict[str, tuple[int, int]] = {}
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # another process deletes a damaged folder
            status = path.stat()
            stamps[str(path)] = (status.st_size, status.st_mtime_ns)
    return stamps


def _files(folder: Path) -> list[Path]:
    """Return the files; none of what another process deletes meanwhile (`Path.rglob` would raise)."""
    paths = (Path(place) / name for place, _, names in os.walk(folder) for name in names if name != INDEX)
    return sorted(path for path in paths if path.is_file())


def _sealed_files(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.relative_to(folder).as_posix(): _sealed(path) for path in _files(folder)}


def _prefix(folder: Path) -> str:
    return f".{folder.name}."


def _sealed(path: Path) -> tuple[int, int]:
    """Write a file through to the disk; return its size and CRC-32."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        checksum = _checksum(file)
        return file.tell(), checksum


def _is(path: Path, size: int, checksum: int) -> bool:
    if not stat.S_ISREG(path.lstat().st_mode):  # a link leads out of the folder, and a pipe would be waited for
        return False
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size == size and _checksum(file) == checksum


def _checksum(file: BinaryIO) -> int:
    """Return the CRC-32 of the rest of a file: a SHA-256 of a model takes as long as loading it."""
    checksum = 0
    while block := file.read(BLOCK_BYTES):
        checksum = zlib.crc32(block, checksum)
    return checksum
