"""The high-water mark: the newest versions that this device has trusted, in a file of their own.

TUF refuses what is older than the metadata on disk. After a power cut that metadata may be gone, and then a replayed older
repository would be accepted. This file is written before metadata is used, so that it is never behind:

    accept_versions(claims, …)      role versions of root, timestamp, snapshot and targets
    accept_release(channel, n)      the release number of each channel
    raise_time_floor(moment)        time never goes below this

It refuses whatever is lower, with one exception, the recovery from a fast-forward attack of the TUF specification, §5.3.11:
where a newer root has taken away so many keys that the metadata which set a mark would no longer verify, that mark falls.
So the mark refuses exactly what TUF refuses on a disk that lost nothing: the version of a snapshot is what a *timestamp*
says and falls with the timestamp's keys, that of the targets is what a *snapshot* says. Root versions and release numbers
never fall. Delegated roles have no marks: the repository that Holdfast writes has none.

A damaged file is set aside, which its checksum tells: one flipped bit could lower a mark, or raise it beyond all that will
ever be signed. `trust.py` then teaches the new one what the verified metadata on disk says.
One process at a time, by the lock on the state folder; one thread.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from agent import atomicfile
from agent.errors import StateError, UntrustedError
from agent.update.settings import ChannelName

_log = logging.getLogger(__name__)

FILE_NAME = "high-water.json"
MAX_BYTES = 1_000_000
"""Larger than any real one by far; a longer file is damage."""

IsStanding = Callable[[str, Collection[str]], bool]
"""Given a role and the ids of the keys that signed its version: would that still verify under the root of now?"""


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A version of a role as verified metadata states it, and the ids of the keys whose signatures proved it."""

    version: int
    signed_by: tuple[str, ...] = ()


class _Mark(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Field(ge=1)]
    signed_by: tuple[str, ...] = ()


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True)

    roles: dict[str, _Mark] = {}
    releases: dict[ChannelName, Annotated[int, Field(ge=1)]] = {}
    time_floor: AwareDatetime | None = None


class HighWater:
    """The marks in `<folder>/high-water.json`. Every change is durable before the call returns.

    Raises:
        StateError: the file is there and cannot be read, or a damaged one cannot be set aside.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self.is_new = True
        """No marks were found: what the metadata on disk says is still to be learnt."""
        self._content = self._load()

    @property
    def time_floor(self) -> datetime | None:
        """The newest moment that is known to have passed, aware, UTC."""
        return self._content.time_floor

    def version(self, role: str) -> int:
        """Return the mark of a role; 0 where there is none."""
        mark = self._content.roles.get(role)
        return mark.version if mark else 0

    def release(self, channel: str) -> int:
        """Return the newest release number of a channel that was accepted; 0 where there is none."""
        return self._content.releases.get(channel, 0)

    def accept_versions(self, claims: Mapping[str, Claim], is_standing: IsStanding) -> None:
        """Raise the marks to the claims. Nothing changes where one of them is refused.

        Raises:
            UntrustedError: a version is lower than a mark that still stands.
            StateError: the disk is full or fails.
        """
        for role, claim in claims.items():
            mark = self._content.roles.get(role)
            if mark and claim.version < mark.version and is_standing(role, mark.signed_by):
                raise UntrustedError(
                    f"version {claim.version} is offered, version {mark.version} was trusted here before",
                    role=role,
                    hint="somebody replays an older repository, or the repository was restored from a backup: "
                    f"publish newer versions. If this device is meant to follow another repository, remove {self._path.parent}",
                )
        self._set_marks(claims)

    def learn_versions(self, claims: Mapping[str, Claim]) -> None:
        """Take from verified metadata on disk what is higher than the marks; refuse nothing."""
        self._set_marks({role: claim for role, claim in claims.items() if claim.version > self.version(role)})
        self.is_new = False

    def accept_release(self, channel: str, number: int) -> None:
        """Raise a channel's release number. The same number again is fine.

        Raises:
            UntrustedError: the number is lower than one that was accepted before.
            StateError: the disk is full or fails.
        """
        known = self.release(channel)
        if number < known:
            raise UntrustedError(
                f"release {number} is offered, release {known} was accepted here before",
                role=f"channels/{channel}.json",
                hint="release numbers only rise, also for a rollback: publish the older bundle as a new release",
            )
        if number > known:
            self._replace(releases={**self._content.releases, channel: number})

    def raise_time_floor(self, moment: datetime) -> None:
        """Remember that `moment` (aware) has passed. An earlier one than before changes nothing."""
        if self.time_floor is None or moment > self.time_floor:
            self._replace(time_floor=moment)

    def _set_marks(self, claims: Mapping[str, Claim]) -> None:
        marks = {role: _Mark(version=claim.version, signed_by=claim.signed_by) for role, claim in claims.items()}
        self._replace(roles={**self._content.roles, **marks})

    def _replace(self, **changes: object) -> None:
        content = self._content.model_copy(update=changes)
        if content == self._content:
            return
        value = content.model_dump(mode="json")
        try:
            atomicfile.write(self._path, json.dumps({"sha256": _checksum(value), **value}, indent=1).encode())
        except OSError as error:
            raise StateError(
                f"cannot be written: {error.strerror or error}",
                where=str(self._path),
                hint="free space or repair the disk; what runs keeps running",
            ) from error
        self._content = content

    def _load(self) -> _Content:
        try:
            with atomicfile.open_file(self._path) as file:
                text = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return _Content()
        except OSError as error:
            raise StateError(f"cannot be read: {error.strerror or error}", where=str(self._path)) from error
        try:
            if len(text) > MAX_BYTES:
                raise ValueError(f"longer than {MAX_BYTES} bytes")
            content = _parse(text)
        except (ValueError, RecursionError) as error:
            self._set_aside(error)
            return _Content()
        self.is_new = False
        return content

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(f"{FILE_NAME}.damaged")
        _log.error(
            "high-water mark damaged (%s): set aside as %s, rebuilt from the trusted metadata on disk",
            str(error).splitlines()[0],
            aside,
        )
        try:
            self._path.replace(aside)
            atomicfile.sync_folder(aside.parent)
        except OSError as problem:
            raise StateError(
                f"is damaged and cannot be set aside: {problem.strerror or problem}", where=str(self._path)
            ) from problem


def _parse(text: bytes) -> _Content:
    """Raise ValueError for everything that `HighWater` did not write."""
    value = json.loads(text)
    if not isinstance(value, dict) or value.pop("sha256", None) != _checksum(value):
        raise ValueError("does not match its checksum")
    return _Content.model_validate(value)


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
