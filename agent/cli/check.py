"""One check of `holdfast doctor`: what was looked at, how it is, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent.config.view import mask
from agent.errors import HoldfastError

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    name: str
    verdict: Verdict
    text: str
    advice: str | None = None


def failed(name: str, error: HoldfastError) -> Check:
    """Return the check that an error makes."""
    text = error.message if error.where is None else f"{error.where}: {error.message}"
    return Check(name, "fail", mask(text), error.hint)
