"""What a channel says now: the document of desired state, signed, of the right channel, never older than the last one."""

from __future__ import annotations

import contextlib

from pydantic import ValidationError

from agent.errors import OperatorError, UntrustedError
from agent.update.documents import MAX_CHANNEL_BYTES, ChannelDocument, channel_path
from agent.update.verification.highwater import HighWater
from agent.update.verification.trust import Trust


def read_channel(trust: Trust, high_water: HighWater, channel: str) -> ChannelDocument:
    """Refresh the metadata and return the channel's document. Its release number is on disk before anyone uses it.

    `high_water` is the one of `trust`.

    Raises:
        UntrustedError: metadata or document are not what was signed, of another channel, or an older release.
        UnavailableError: the repository cannot be reached, or has no such channel.
        OperatorError: the document is signed but makes no sense; or the provisioned root.json does not.
        StateError: the disk is full or fails.
    """
    if not high_water.release(channel):
        _learn_release(trust, high_water, channel)
    trust.refresh()
    document = _parse(trust.target(channel_path(channel), MAX_CHANNEL_BYTES), channel)
    high_water.accept_release(channel, document.release)
    return document


def _learn_release(trust: Trust, high_water: HighWater, channel: str) -> None:
    """Rebuild a lost release number from the document that was trusted last, unless that one was refused."""
    content = trust.remembered(channel_path(channel))
    if content is not None:
        with contextlib.suppress(OperatorError, UntrustedError):
            high_water.accept_release(channel, _parse(content, channel).release)


def _parse(content: bytes, channel: str) -> ChannelDocument:
    path = channel_path(channel)
    try:
        document = ChannelDocument.model_validate_json(content)
    except ValidationError as error:
        raise OperatorError(
            f"is signed but cannot be understood: {_first_problem(error)}",
            where=path,
            hint="publish a corrected one, or update Holdfast on this device if the repository is of a newer kind",
        ) from error
    if document.channel != channel:
        raise UntrustedError(
            f"is the document of channel {document.channel!r}, not of {channel!r}",
            role=path,
            hint="somebody with a signing key swapped two documents: publish the right one",
        )
    return document


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
