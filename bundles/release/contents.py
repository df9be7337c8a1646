"""Which files a repository's devices may ask for: the one list that verification and export both follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tuf.api.metadata import TargetFile

from agent.errors import OperatorError
from agent.update.documents import (
    BundleReference,
    ChannelDocument,
    TransferDocument,
    channel_path,
    manifest_path,
    transfer_path,
)
from bundles.release import channels
from bundles.release.targetfiles import TargetFolder


@dataclass(frozen=True, slots=True)
class ChannelContent:
    """A channel, and the bundles that it assigns."""

    target: TargetFile
    document: ChannelDocument

    def bundles(self) -> tuple[BundleReference, ...]:
        """Return each bundle once."""
        return tuple(dict.fromkeys(assignment.bundle for assignment in self.document.assignments))


def channel_contents(
    listed: dict[str, TargetFile], files: TargetFolder, names: Sequence[str] | None = None
) -> Iterator[ChannelContent]:
    """Give the named channels, or all.

    Raises:
        OperatorError: there is no such channel, or its document is damaged.
    """
    known = [path[len("channels/") : -len(".json")] for path in sorted(listed) if path.startswith("channels/")]
    for name in known if names is None else names:
        target = listed.get(channel_path(name))
        if target is None:
            raise OperatorError(f"there is no channel `{name}`", hint=f"known: {', '.join(known) or 'none yet'}")
        yield ChannelContent(target, channels.decode(files.read(target), target.path))


def bundle_targets(listed: dict[str, TargetFile], bundle: BundleReference) -> tuple[TargetFile, TargetFile]:
    """Return the manifest and the transfer document of a bundle that a channel assigns.

    Raises:
        OperatorError: they are not listed, or the manifest is not the one that the channel names.
    """
    found = [listed.get(path(bundle.name, bundle.version)) for path in (manifest_path, transfer_path)]
    manifest, transfer = found
    if manifest is None or transfer is None:
        hint = "add the bundle again"
        raise OperatorError(f"{bundle.name} {bundle.version} is assigned and not in the repository", hint=hint)
    if manifest.hashes["sha256"] != bundle.manifest_sha256:
        message = f"{bundle.name} {bundle.version} is assigned with another manifest than the repository has"
        raise OperatorError(message, hint="publish it again")
    return manifest, transfer


def read_transfer(files: TargetFolder, target: TargetFile) -> TransferDocument:
    """Read a transfer document.

    Raises:
        OperatorError: it is damaged.
    """
    try:
        return TransferDocument.model_validate_json(files.read(target))
    except ValueError as error:
        hint = "bring the file back from a copy of the repository"
        raise OperatorError(f"is no transfer document: {error}", where=target.path, hint=hint) from error
