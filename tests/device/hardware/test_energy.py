"""The processor's energy counters, on constructed files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.device.hardware.energy import package_energy_uj, spent_mj


@pytest.fixture
def zones(tmp_path: Path):
    """Return a function that sets a zone's counter; parts of a package are there too."""

    def put(zone: str, energy_uj: int) -> None:
        folder = tmp_path / "sys/class/powercap" / zone
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")

    put("intel-rapl:0:0", 77)
    put("intel-rapl-mmio:0", 88)
    return put


def test_packages_count_and_their_parts_do_not(zones, tmp_path):
    """`intel-rapl:0:0` is a part of `intel-rapl:0`; both together would count the cores twice."""
    zones("intel-rapl:0", 1_000_000)
    zones("intel-rapl:1", 2_000_000)

    before = package_energy_uj(tmp_path)
    zones("intel-rapl:0", 1_500_000)
    zones("intel-rapl:1", 2_250_000)

    assert before == {"intel-rapl:0": 1_000_000, "intel-rapl:1": 2_000_000}
    assert spent_mj(tmp_path, before, package_energy_uj(tmp_path)) == pytest.approx(750.0)


def test_a_counter_that_wrapped_is_no_negative_energy(zones, tmp_path):
    """At 100 W it wraps every 44 minutes."""
    zones("intel-rapl:0", 262_143_000_000)
    before = package_energy_uj(tmp_path)
    zones("intel-rapl:0", 171_150)

    assert spent_mj(tmp_path, before, package_energy_uj(tmp_path)) == pytest.approx(500.0)


@pytest.mark.parametrize("range_uj", ["", "0", "262143328850"])
def test_a_counter_that_went_back_is_no_number(zones, tmp_path, range_uj):
    """After a suspend it begins anew: an energy below nothing would be the best of all, one of a whole range the worst."""
    zones("intel-rapl:0", 1_000_000)
    before = package_energy_uj(tmp_path)
    zones("intel-rapl:0", 7)
    (tmp_path / "sys/class/powercap/intel-rapl:0/max_energy_range_uj").write_text(range_uj)

    assert spent_mj(tmp_path, before, package_energy_uj(tmp_path)) is None


def test_where_nothing_can_be_read_there_is_no_number(zones, tmp_path):
    """Only root may read it, and a virtual machine has none: CPU time then stands for it."""
    assert package_energy_uj(tmp_path) == {}
    assert spent_mj(tmp_path, {}, {}) is None
    assert spent_mj(tmp_path, {"intel-rapl:0": 1}, {}) is None
