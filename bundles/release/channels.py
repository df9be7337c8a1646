"""What a channel's document becomes when an operator publishes, promotes or goes back. Pure: documents in, documents out.

Release numbers only rise: every change takes the document's next one, for the document and for each assignment that it
touches. Older assignments stay behind newer ones as long as some device can still be selected by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

from pydantic import ValidationError

from agent.errors import OperatorError
from agent.update.documents import (
    MAX_CHANNEL_BYTES,
    Assignment,
    BundleReference,
    ChannelDocument,
    PipelineOverrides,
    Rollback,
)

_INTERRUPTED = "if a command was interrupted, `holdfast release refresh REPO` finishes it"


def publish(
    document: ChannelDocument | None,
    bundle: BundleReference,
    *,
    channel: str,
    issued: datetime,
    percent: int = 100,
    groups: Sequence[str] = (),
    not_before: datetime | None = None,
    window: str | None = None,
    pipelines: Mapping[str, PipelineOverrides] | None = None,
) -> ChannelDocument:
    """Put a new assignment in front.

    Its seed is the channel and the release number: each release tries its luck on other devices.
    """
    release = document.release + 1 if document else 1
    with _checked():
        assignment = Assignment(
            release=release,
            bundle=bundle,
            percent=percent,
            seed=f"{channel}/{release}",
            groups=tuple(groups),
            not_before=not_before,
            window=window,
            pipelines=dict(pipelines or {}),
        )
    return _document(channel, release, issued, [assignment, *(document.assignments if document else ())])


def promote(
    document: ChannelDocument, percent: int, *, issued: datetime, version: str | None = None
) -> ChannelDocument:
    """Give the newest assignment (or the newest of `version`) to more devices; whoever has it keeps it.

    Raises:
        OperatorError: no such assignment, or `percent` is not more than now.
    """
    chosen = _newest(document, version)
    if percent <= chosen.percent:
        hint = f"take a release back with `holdfast release rollback`; {_INTERRUPTED}"
        message = f"{chosen.bundle.version} is at {chosen.percent} % already, {percent} % is not more"
        raise OperatorError(message, where=document.channel, hint=hint)
    release = document.release + 1
    raised = chosen.model_copy(update={"percent": percent, "release": release})
    assignments = [raised if each is chosen else each for each in document.assignments]
    return _document(document.channel, release, issued, assignments)


def rollback(
    document: ChannelDocument, to: BundleReference, reason: str, *, issued: datetime, from_version: str | None = None
) -> ChannelDocument:
    """Give back the bundle `to` to exactly the devices that were given `from_version` (default: the newest one's).

    A window and a not-before do not count any more: going back is urgent.

    Raises:
        OperatorError: no such assignment, or it is that version already.
    """
    front = _newest(document, from_version)
    if front.bundle.name != to.name or front.bundle.version == to.version:
        message = f"the channel runs {front.bundle.name} {front.bundle.version}; that is no way back to {to.version}"
        raise OperatorError(
            message, where=document.channel, hint=f"name another version of the same bundle; {_INTERRUPTED}"
        )
    release = document.release + 1
    known = next((each.pipelines for each in document.assignments if each.bundle == to), {})
    change = {
        "release": release,
        "bundle": to,
        "not_before": None,
        "window": None,
        "pipelines": known,
        "rollback": Rollback(from_version=front.bundle.version, reason=reason),
    }
    back = [each.model_copy(update=change) if each.bundle == front.bundle else each for each in document.assignments]
    return _document(document.channel, release, issued, back)


def encode(document: ChannelDocument) -> bytes:
    """Return the document as canonical JSON, checked once more as a device will.

    Raises:
        OperatorError: a value in it is not allowed, or it is too large.
    """
    values = document.model_dump(mode="json", exclude_none=True)
    with _checked():
        ChannelDocument.model_validate(values)
    content = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if len(content) > MAX_CHANNEL_BYTES:
        message = f"the channel's document has {len(content)} bytes, devices take {MAX_CHANNEL_BYTES}"
        raise OperatorError(message, where=document.channel, hint="say less in --set, or promote older releases")
    return content


def decode(content: bytes, where: str) -> ChannelDocument:
    """Parse a channel's document.

    Raises:
        OperatorError: it is none.
    """
    try:
        return ChannelDocument.model_validate_json(content)
    except ValidationError as error:
        hint = "bring the file back from a copy of the repository"
        raise OperatorError(f"is no channel document: {error}", where=where, hint=hint) from error


@contextmanager
def _checked() -> Iterator[None]:
    """Say of every value that is not allowed which one it is."""
    try:
        yield
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:5])
        raise OperatorError(f"the release is not valid: {problems}", hint="correct the option or the file") from error


def _newest(document: ChannelDocument, version: str | None) -> Assignment:
    for each in document.assignments:
        if version is None or each.bundle.version == version:
            return each
    known = ", ".join(each.bundle.version for each in document.assignments) or "nothing"
    raise OperatorError(f"assigns no version {version}", where=document.channel, hint=f"it assigns {known}")


def _document(channel: str, release: int, issued: datetime, assignments: Sequence[Assignment]) -> ChannelDocument:
    kept = _reachable(assignments)
    if len(kept) > 64:
        hint = "promote an older release to 100 % first"
        raise OperatorError("would assign more than 64 releases at once", where=channel, hint=hint)
    with _checked():
        return ChannelDocument(channel=channel, release=release, issued=issued, assignments=kept)


def _reachable(assignments: Sequence[Assignment]) -> tuple[Assignment, ...]:
    """Drop each assignment that no device can get, since a newer one selects all of its devices."""
    kept: list[Assignment] = []
    for each in assignments:
        if not kept or (each.percent > 0 and not any(_covers(newer, each) for newer in kept)):
            kept.append(each)
    return tuple(kept)


def _covers(newer: Assignment, older: Assignment) -> bool:
    """Whether whoever the older one selects is selected by the newer one first; times gate when, never which."""
    is_wider = not newer.groups or (bool(older.groups) and set(older.groups) <= set(newer.groups))
    has_all = newer.percent == 100 or (newer.seed == older.seed and newer.percent >= older.percent)
    return is_wider and has_all
