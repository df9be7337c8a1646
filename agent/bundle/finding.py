"""Where the bundle is that somebody names: one that ships with Holdfast, or a folder."""

from __future__ import annotations

from pathlib import Path

from agent import resources
from agent.errors import BundleError


def find_bundle(name: str) -> Path:
    """Return the folder that `name` means: a plain name that ships with Holdfast, else a path.

    Raises:
        BundleError: there is neither.
    """
    is_plain = not any(sign in name for sign in "/\\~.")
    if is_plain and (shipped := resources.shipped_bundle(name)).is_dir():
        return shipped
    if (folder := Path(name).expanduser()).exists():
        return folder
    raise BundleError(
        "there is no such folder, and no bundle of this name ships with Holdfast",
        where=name,
        hint="name the folder of a built bundle (`holdfast bundle build` makes one), or `parcels` or `bearing`",
    )
