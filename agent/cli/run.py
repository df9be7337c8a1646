"""`holdfast run`: the agent itself, in the foreground; a service manager starts this command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

log = logging.getLogger(__name__)


def run(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")] = None,
    exit_when_finished: Annotated[
        bool, typer.Option("--exit-when-finished", help="End when every source has ended and every event is out.")
    ] = False,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log JSON lines, whatever stderr is.")] = False,
) -> None:
    """Run the pipelines of the configuration until stopped."""
    from agent.app import run as run_agent
    from agent.config import file as configfile
    from agent.log import configure

    if json_logs:
        configure(verbose=logging.getLogger().isEnabledFor(logging.DEBUG), as_json=True)
    configuration = configfile.read(config)
    for warning in configuration.warnings:
        log.warning("%s", warning)
    run_agent(configuration.settings, exit_when_finished=exit_when_finished)
