"""What a person is asked to sign, in words: how a pending change differs from what is published.

A threshold of two is worth something only where the second person reads before signing; nobody reads metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tuf.api.metadata import Root, TargetFile, Targets

from agent.errors import OperatorError
from agent.update.documents import Assignment
from bundles.release import channels
from bundles.release.metadata import ROLES, is_signed
from bundles.release.repository import Repository


def changes(repository: Repository) -> tuple[str, ...]:
    """Return one line for each difference between what waits for signatures and what is published.

    Raises:
        OperatorError: a pending file is damaged, a document that it lists is missing, or what stands as published is not
            signed as it must be.
    """
    lines: list[str] = []
    metadata = repository.metadata
    versions = metadata.versions("root")
    before = repository.root() if versions else None
    if root := metadata.pending_of(Root):
        lines += _root_changes(before, root.signed)
    if targets := metadata.pending_of(Targets):
        published = metadata.targets()
        # Compared with what the threshold has signed: else a first signer could slip something in as "published".
        # Under the root before too: a change of keys that was interrupted leaves targets of the old keys.
        roots = [metadata.read(Root, version).signed for version in versions[-2:]]
        if published and not any(is_signed(each, "targets", published) for each in roots):
            hint = "do not sign; take metadata/ from the server or from your own copy"
            message = "the published targets are not signed by enough people"
            raise OperatorError(message, where=str(metadata.published), hint=hint)
        lines += _target_changes(repository, published.signed.targets if published else {}, targets.signed.targets)
    return tuple(lines)


def describe(assignment: Assignment) -> str:
    """Return one line, such as `release 7: parcels 1.3 (manifest 5f1c…) to 25 % of groups lab`."""
    text = f"release {assignment.release}: {assignment.bundle.name} {assignment.bundle.version}"
    text += f" (manifest {assignment.bundle.manifest_sha256[:16]}) to {assignment.percent} %"
    if assignment.groups:
        text += f" of groups {', '.join(assignment.groups)}"
    if assignment.not_before:
        text += f", not before {assignment.not_before:%Y-%m-%d %H:%M %Z}"
    if assignment.window:
        text += f", in {assignment.window} UTC"
    if assignment.pipelines:
        text += f", with settings for {', '.join(assignment.pipelines)}"
    if assignment.rollback:
        text += f", back from {assignment.rollback.from_version}: {assignment.rollback.reason}"
    return text


def _root_changes(before: Root | None, after: Root) -> Iterator[str]:
    for role in ROLES:
        old = before.roles[role] if before else None
        old_keys = old.keyids if old else []
        for keyid in after.roles[role].keyids:
            if keyid not in old_keys:
                yield f"{role}: new key {keyid}"
        for keyid in old_keys:
            if keyid not in after.roles[role].keyids:
                yield f"{role}: key {keyid} is revoked"
        if old is None or old.threshold != after.roles[role].threshold:
            yield f"{role}: needs {after.roles[role].threshold} signatures"


def _target_changes(
    repository: Repository, before: Mapping[str, TargetFile], after: Mapping[str, TargetFile]
) -> Iterator[str]:
    for path, target in after.items():
        if before.get(path) == target:
            continue
        verb = "changes" if path in before else "is new"
        yield f"{path} {verb} (SHA-256 {target.hashes['sha256']})"
        if path.startswith("channels/"):
            document = channels.decode(repository.read_target(target), path)
            yield from (f"  {describe(assignment)}" for assignment in document.assignments)
    for path in before:
        if path not in after:
            yield f"{path} is removed"
