"""What commands that look at the hardware take from the operator's file, which may be missing: they come before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agent.errors import ConfigurationError
from agent.settings import Settings

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The configuration file; else the first of the search path, if there is one."),
]


def runtimes_of(settings: Settings, more: Sequence[str]) -> tuple[str, ...]:
    """Return the runtimes of the operator's file and those of the command line, whose paths start in the working folder."""
    from agent.device.runtimes.catalogue import located

    return tuple(dict.fromkeys((*settings.device.runtimes, *(located(each, Path.cwd()) for each in more))))


def settings_if_any(config: Path | None) -> Settings:
    """Return the settings of the named file, else of the first that is found, else the defaults.

    Raises:
        ConfigurationError: the file is named and missing, or wrong.
    """
    from agent.config import file as configfile

    if config is None:
        try:
            config = configfile.find()
        except ConfigurationError:
            return Settings()
    return configfile.read(config, for_run=False).settings
