"""`pipelines.yaml` after `--set`: what a release changes in devices' pipelines, as a person wrote it.

    door:
      min_score: 0.6
      labels: [person]

A device ignores what it does not know; the person who writes it is told.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from agent import yamlfile
from agent.update.documents import PipelineOverrides


class _Strict(PipelineOverrides):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _File(BaseModel):
    pipelines: dict[str, _Strict]


def read_overrides(path: Path) -> dict[str, PipelineOverrides]:
    """Read the file: pipeline name → what changes.

    Raises:
        ConfigurationError: with every problem, its line and its key.
    """
    document = yamlfile.load(path)
    positions = {("pipelines", *key): position for key, position in document.positions.items()}
    whole = yamlfile.Document({"pipelines": document.data}, positions)
    found = yamlfile.validate(_File, whole, str(path)).pipelines
    return {name: PipelineOverrides(**values.model_dump()) for name, values in found.items()}
