"""Stand-in until agent.device.runtimes.builtin is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.device.runtimes.runtime import Assignment, Opening, RuntimeSession
from agent.inference.session import open_session


class _Plain:
    def __init__(self, opening: Opening) -> None:
        session = open_session(opening.model_path, opening.candidate)
        self.inputs, self.outputs = session.inputs, session.outputs
        self.metadata: Mapping[str, str] = session.metadata
        operators: Counter[str] = Counter()
        for subgraph in session._session.get_provider_graph_assignment_info():  # noqa: SLF001
            operators.update(node.op_type for node in subgraph.get_nodes())
        name = "CPUExecutionProvider"
        self.assignment = Assignment(session.nodes, {name: 1}, {name: dict(operators)})
        self.was_prepared = False
        self.run: Any = session.run

    def end_trace(self) -> Path | None:
        return None


def open_plain(opening: Opening) -> RuntimeSession:
    """See above."""
    return _Plain(opening)
