"""Core's side of the probe: starts the child, reads its facts, and turns a crash or a hang into a finding."""

from __future__ import annotations

import contextlib
import queue
import threading
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from agent.childprocess import Child, Message
from agent.clock import SystemClock
from agent.device.facts import Facts, Finding
from agent.device.hardware.gathering import gather

DEFAULT_TIMEOUT_S = 20.0
"""A vendor's driver may take several seconds to wake; the CPU alone takes 0.3 s."""
LOOK_S = 0.05
"""How often the stop event is looked at."""

_facts: TypeAdapter[Facts] = TypeAdapter(Facts)


def probe_facts(
    timeout_s: float = DEFAULT_TIMEOUT_S, *, role: str = "probe", stop: threading.Event | None = None
) -> Facts:
    """Return what the probe found. Never raises for what a driver does.

    When the child crashes, hangs or talks nonsense, the facts are those that need no native code, with a finding that
    carries its last words; `ep_devices` is then empty and no candidate can run until the probe works.

    Args:
        timeout_s: After this long the child is killed.
        role: Another child role, for tests.
        stop: When set, the child is killed within a tenth of a second; nobody wants the facts any more.
    """
    answers: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
    child = Child(role, on_message=answers.put, on_exit=answers.put)
    try:
        answer = _wait(answers, timeout_s, stop or threading.Event())
    finally:
        child.kill()
    if answer is None:
        return _without_runtime(f"the probe gave no answer within {timeout_s:g} s and was killed", child)
    if isinstance(answer, int):
        how = f"was killed by signal {-answer}" if answer < 0 else f"ended with status {answer}"
        return _without_runtime(f"the probe {how} before it answered", child)
    return _read(answer, child)


def _wait(answers: queue.SimpleQueue[Message | int], timeout_s: float, stop: threading.Event) -> Message | int | None:
    clock = SystemClock()
    deadline_s = clock.monotonic() + timeout_s
    while not stop.is_set() and (left_s := deadline_s - clock.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            return answers.get(timeout=min(LOOK_S, left_s))
    return None


def parse_facts(values: object) -> Facts:
    """Read facts from their JSON form (`Facts.to_json`).

    Raises:
        pydantic.ValidationError: `values` are no facts.
    """
    return _facts.validate_python(values)


def _read(answer: Message, child: Child) -> Facts:
    try:
        return parse_facts(answer.get("facts"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return _without_runtime(f"the probe's answer is no facts: {first['loc']}: {first['msg']}", child)


def _without_runtime(what: str, child: Child) -> Facts:
    words = child.last_words.strip()
    facts = gather()
    finding = Finding("runtime", f"{what}; its last words: {words}" if words else what)
    return replace(facts, findings=(*facts.findings, finding))
