"""From the operator's words to facts and a profile."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from agent.device.facts import EpDevice
from agent.device.hardware.gathering import gather
from agent.device.survey import recognition
from agent.device.survey.recognition import recognise

PLAIN = (
    "name: plain\ndescription: any\nruntimes: [{runtime!r}]\n"
    "candidates:\n  - provider: CPUExecutionProvider\n    variants: [fp32]\n"
)
FAST = (
    "name: fast\ndescription: with an X\naccelerator: XExecutionProvider\n"
    "candidates:\n  - provider: XExecutionProvider\n    device_type: npu\n    variants: [fp32]\n"
)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Profiles of which one names a plugin's library, and a probe whose plugin offers an NPU; all runtimes asked for."""
    library = tmp_path / "libx.so"
    library.touch()
    (tmp_path / "plain.yaml").write_text(PLAIN.format(runtime=f"plugin:{library}"))
    (tmp_path / "fast.yaml").write_text(FAST)
    asked: list[tuple[str, ...]] = []

    def probe(runtimes, *_, **__):
        asked.append(runtimes)
        devices = (EpDevice("XExecutionProvider", "npu"),) if f"plugin:{library}" in runtimes else ()
        return replace(gather(), ep_devices=(EpDevice("CPUExecutionProvider", "cpu"), *devices))

    monkeypatch.setattr(recognition, "probe_facts", probe)
    monkeypatch.setattr("agent.resources.device_profiles", lambda: tmp_path)
    return asked


def test_a_profiles_own_runtimes_are_asked_and_may_change_the_profile(asked):
    """Which profile fits is known after a first look only; what its plugin shows is looked at again."""
    facts, selection = recognise()

    assert selection.profile.name == "plain+fast"
    assert [each.provider for each in facts.ep_devices] == ["CPUExecutionProvider", "XExecutionProvider"]
    assert len(asked) == 2
    assert set(asked[0]) < set(asked[1])


def test_a_stop_ends_it_after_the_first_look(asked):
    """Nobody wants the facts any more."""
    stop = threading.Event()
    stop.set()
    recognise(stop=stop)

    assert len(asked) == 1
