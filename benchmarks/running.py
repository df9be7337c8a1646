"""The agent as its users run it: `holdfast run` as a process, with a configuration file and a state folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

STATUS_TIMEOUT_S = 120


class RunningAgent:
    """One `holdfast run`, a context manager that ends it."""

    def __init__(self, folder: Path, **sections: object) -> None:
        folder.mkdir(exist_ok=True)
        self.state = folder / "state"
        self._config = folder / "holdfast.yaml"
        self._log = folder / "log"
        self._config.write_text(
            yaml.safe_dump({"version": 1, "state_dir": str(self.state), "device": {"name": "bench"}, **sections})
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Core's process id."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log.read_text(errors="replace")

    def wait_for_log(self, text: str) -> None:
        """Wait until `text` stands in the log.

        Raises:
            RuntimeError: it ended, or took too long.
        """
        deadline_s = time.monotonic() + STATUS_TIMEOUT_S
        while text not in self.log():
            if time.monotonic() > deadline_s or (self._process and self._process.poll() is not None):
                raise RuntimeError(f"no {text!r} in the log:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(self._config)],
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
