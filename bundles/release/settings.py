"""`repository.yaml`: what the operator's tools remember about a repository. Not signed, not secret, not served."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from agent import atomicfile, yamlfile

FILE = "repository.yaml"
Days = Annotated[float, Field(gt=0, le=36500)]


class ExpiryDays(BaseModel):
    """For how long each role's metadata is believed, in days.

    Root and targets are signed by people with offline keys: a year is a date in the calendar, not a chore. Snapshot and
    timestamp are signed by a server: the timestamp's seven days are how long a hostile broker can hide a release before
    the device says so, and how long the server may be down before devices take nothing new (what runs goes on running).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Days = 365
    targets: Days = 365
    snapshot: Days = 30
    timestamp: Days = 7


class RepositorySettings(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    expires_days: ExpiryDays = ExpiryDays()
    signers: dict[str, str] = {}
    """Key id → URI of what signs with it: `file2:/safe/targets.pem`, `awskms:…`, `hsm:…`."""


def read(folder: Path) -> RepositorySettings:
    """Read the settings; defaults where there is no file (a mirror, a copy that only serves).

    Raises:
        ConfigurationError: with every problem, its line and its key.
    """
    path = folder / FILE
    if not path.exists():
        return RepositorySettings()
    return yamlfile.validate(RepositorySettings, yamlfile.load(path), str(path))


def write(folder: Path, settings: RepositorySettings) -> None:
    """Replace the file."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=True)
    atomicfile.write(folder / FILE, f"# Written by `holdfast release`; may be edited.\n{text}".encode())
