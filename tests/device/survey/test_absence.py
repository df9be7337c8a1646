"""Never silently missing: what is gone or does not work any more is said until it is mended or accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.atomicfile import LARGEST_BYTES
from agent.clock import SystemClock
from agent.device.facts import Accelerator, Cpu, EpDevice, Facts
from agent.device.survey.absence import Absence, Record, accepted, compare
from agent.health.conditions import Conditions

CPU = EpDevice("CPUExecutionProvider", "cpu")
NPU = EpDevice("OpenVINOExecutionProvider", "npu", "Intel")
CHIP = Accelerator("npu", "Intel", "Intel NPU (Meteor Lake) [8086:7d1d]", "intel_vpu")
FULL = Facts(
    "linux", "6", "x86_64", "", Cpu("", "", frozenset(), 2, 4), 2**30, ep_devices=(CPU, NPU), accelerators=(CHIP,)
)
BROKEN = replace(FULL, ep_devices=(CPU, replace(NPU, unusable="no firmware")))
BARE = replace(FULL, ep_devices=(CPU,), accelerators=())
NPU_KEY, CHIP_KEY = "OpenVINOExecutionProvider-npu", "intel-npu-8086-7d1d"


class Agent:
    """What core does with it, over several starts."""

    def __init__(self, path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        self.absence, self.conditions = Absence(self.path), Conditions(SystemClock())

    def sees(self, facts: Facts) -> dict[str, str]:
        for action in self.absence.look(facts):
            self.conditions.apply(action)
        return {condition.name: condition.text for condition in self.conditions}


@pytest.fixture
def agent(tmp_path):
    return Agent(tmp_path / "accelerators.json")


def test_first_start_misses_nothing(agent):
    """A device that never had one must not be told that it lacks one."""
    assert agent.sees(BARE) == {}
    assert agent.sees(FULL) == {}


def test_what_is_gone_is_missing_at_every_start_until_it_is_back(agent):
    """A driver's update took the NPU away: said at the first start, and at the tenth as well."""
    agent.sees(FULL)
    for _ in range(3):
        agent.start()
        found = agent.sees(BARE)
        assert set(found) == {f"accelerator-missing/{NPU_KEY}", f"accelerator-missing/{CHIP_KEY}"}
        assert "holdfast device accept" in found[f"accelerator-missing/{NPU_KEY}"]

    assert agent.sees(FULL) == {}


def test_what_is_there_and_does_not_work_says_why(agent):
    """Known or new: somebody paid for it, and it computes nothing."""
    expected = {f"accelerator-unusable/{NPU_KEY}": f"{NPU_KEY} is here and cannot be used: no firmware"}
    assert agent.sees(BROKEN) == expected
    assert agent.sees(FULL) == {}
    assert agent.sees(BROKEN) == expected


def test_operator_accepts_what_is(agent):
    """A card that was sold is expected no more, and one that may stay unused is not complained of, until it works again."""
    agent.sees(FULL)
    Absence(agent.path).write(accepted(replace(BROKEN, accelerators=())))
    agent.start()
    assert agent.sees(replace(BROKEN, accelerators=())) == {}
    assert agent.sees(BARE) == {}, "what does not work may go as well"
    assert agent.sees(FULL) == {}
    assert f"accelerator-unusable/{NPU_KEY}" in agent.sees(BROKEN), "it has worked since"


def test_accepting_while_the_agent_runs_counts_at_its_next_look(agent):
    """The command writes the same file, and the agent keeps no copy of it."""
    agent.sees(FULL)
    assert agent.sees(BARE)
    Absence(agent.path).write(accepted(BARE))
    assert agent.sees(BARE) == {}


def test_one_of_two_equal_cards_is_missed(agent):
    """They have one name, and two were paid for."""
    two = replace(FULL, accelerators=(CHIP, CHIP))
    agent.sees(two)
    assert set(agent.sees(FULL)) == {f"accelerator-missing/{CHIP_KEY}-2"}


def test_a_driver_that_does_not_load_changes_no_name(agent):
    """The card's model comes from its driver, its number does not: one that is there is not missing."""
    card = Accelerator("gpu", "NVIDIA", "NVIDIA GeForce RTX 3060 [10de:2504]", "nvidia")
    agent.sees(replace(BARE, accelerators=(card,)))
    assert agent.sees(replace(BARE, accelerators=(replace(card, name="NVIDIA GPU [10de:2504]", driver=""),))) == {}


def test_another_runtime_that_works_is_enough():
    """Two runtimes bring the same provider; what one of them cannot, the other can."""
    both = replace(FULL, ep_devices=(CPU, NPU, replace(NPU, runtime="folder:/x", unusable="too old")))
    assert compare(Record(), both).unusable == {}


def test_one_of_two_devices_that_breaks_or_goes_is_called_by_its_name(agent):
    """The other works on, and nobody would look."""
    fast, slow = (EpDevice("DmlExecutionProvider", "gpu", name=name) for name in ("RTX 3060", "UHD (R) 770"))
    agent.sees(replace(BARE, ep_devices=(CPU, fast)))
    both = replace(BARE, ep_devices=(CPU, fast, slow))
    assert agent.sees(both) == {}
    broken = replace(both, ep_devices=(CPU, replace(fast, unusable="device lost"), slow))
    assert set(agent.sees(broken)) == {"accelerator-unusable/DmlExecutionProvider-gpu-rtx-3060"}
    assert set(agent.sees(replace(BARE, ep_devices=(CPU, slow)))) == {
        "accelerator-missing/DmlExecutionProvider-gpu-rtx-3060"
    }
    assert agent.sees(both) == {}


def test_what_a_provider_could_drive_elsewhere_is_not_missed_here():
    """The classic wheels tell no devices: their GPU and NPU are tried everywhere, and on a plain box are simply not there."""
    guess = EpDevice("OpenVINOExecutionProvider", "npu", runtime="folder:/x", unusable="no such device")
    assert compare(Record(), replace(BARE, ep_devices=(CPU, guess))).unusable == {}
    assert compare(Record(), replace(BARE, ep_devices=(CPU, guess), accelerators=(CHIP,))).unusable
    assert compare(Record(), replace(BARE, ep_devices=(CPU, replace(guess, device_type="cpu")))).unusable


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"present": 3}', b"[" * 99_999, b"{}" + b" " * LARGEST_BYTES, None], ids=range(6)
)
def test_a_damaged_record_begins_anew(agent, caplog, content):
    """What it held is forgotten and the log says so; the agent starts."""
    agent.path.mkdir() if content is None else agent.path.write_bytes(content)
    assert agent.sees(FULL) == {}
    assert "cannot be read; it begins anew" in caplog.text
    if content is None:
        assert "cannot be written down" in caplog.text
    else:
        assert set(agent.sees(BARE)) == {f"accelerator-missing/{NPU_KEY}", f"accelerator-missing/{CHIP_KEY}"}


def test_nothing_is_written_where_nothing_changed(agent, monkeypatch):
    """Every start would wear the flash otherwise."""
    agent.sees(FULL)
    monkeypatch.setattr("agent.atomicfile.write", lambda *_: pytest.fail("it was written"))
    agent.sees(FULL)
    agent.sees(BARE)
