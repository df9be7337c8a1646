"""What the operating system's files say of each kind of device."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from agent.device.facts import Camera, Cpu, ThermalZone
from agent.device.hardware import cgroup, cpu
from agent.device.hardware.cpu import from_sysctl, from_windows, usable_cores
from agent.device.hardware.gathering import gather

CASES = [
    pytest.param("epyc-zen4", "AMD", "AMD EPYC", "avx512_vnni", 2, 2, id="epyc"),
    pytest.param("atom-x86", "Intel", "Intel(R) Celeron(R) J4105 CPU @ 1.50GHz", "sse4_2", 4, 4, id="atom"),
    pytest.param("i5-haswell", "Intel", "Intel(R) Core(TM) i5-4300U CPU @ 1.90GHz", "avx2", 2, 1, id="quota"),
    pytest.param("raspberry-pi-4", "ARM", "Cortex-A72 ×4", "neon", 4, 4, id="pi4"),
    pytest.param("raspberry-pi-5", "ARM", "Cortex-A76 ×4", "dotprod", 4, 4, id="pi5"),
    pytest.param("rk3588", "ARM", "Cortex-A76 ×4 + Cortex-A55 ×4", "dotprod", 8, 2, id="affinity"),
    pytest.param("graviton3", "ARM", "Neoverse-V1 ×4", "i8mm", 4, 4, id="graviton"),
]


@pytest.mark.parametrize(("name", "vendor", "model", "feature", "physical", "usable"), CASES)
def test_processor(device_facts, name, vendor, model, feature, physical, usable):
    """The profile and the number of threads hang on these."""
    found = device_facts(name).cpu

    assert (found.vendor, found.model) == (vendor, model)
    assert feature in found.features
    assert found.physical_cores == physical
    assert usable_cores(found) == usable


def test_features_that_a_processor_lacks_are_not_claimed(device_facts):
    """A kernel chosen for an instruction that is not there would be a crash."""
    assert not {"avx", "avx2"} & device_facts("atom-x86").cpu.features
    assert "dotprod" not in device_facts("raspberry-pi-4").cpu.features
    assert "i8mm" not in device_facts("raspberry-pi-5").cpu.features
    assert {"sve", "bf16", "i8mm", "dotprod"} <= device_facts("graviton3").cpu.features


def test_a_feature_that_only_some_cores_have_does_not_count(device_tree):
    """Threads move between big and little cores."""
    root = device_tree("rk3588")
    info = root / "proc/cpuinfo"
    info.write_text(info.read_text().replace("asimddp", "", 1))

    assert "dotprod" not in gather(root, system="linux", architecture="aarch64").cpu.features


def test_board_memory_temperature_and_cameras(device_facts):
    """A camera's second node carries metadata, not pictures, and must not be offered."""
    facts = device_facts("raspberry-pi-4")

    assert facts.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert facts.memory_bytes == 3885372 * 1024
    assert facts.memory_limit_bytes == 512 * 2**20
    assert facts.thermal_zones == (ThermalZone("cpu-thermal", 48.199),)
    assert facts.cameras == (Camera("/dev/video0", "HD Pro Webcam C920"),)
    assert facts.findings == ()


def test_board_comes_from_dmi_without_placeholders(device_facts):
    """`To Be Filled By O.E.M.` names no board."""
    assert device_facts("atom-x86").board == "J4105-ITX"
    assert device_facts("graviton3").board == "Amazon EC2 c7g.xlarge"


def test_device_tree_strings_end_with_nul(device_tree):
    """The kernel ends the model with a NUL, which must not reach a match or a terminal."""
    root = device_tree("raspberry-pi-5")
    (root / "proc/device-tree/model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")

    assert gather(root, system="linux").board == "Raspberry Pi 5 Model B Rev 1.0"


def test_no_limit_in_cgroup_v1_is_no_limit(device_facts):
    """Version 1 writes a huge number; the quota there is of the mount, since the group's own path is not mounted."""
    facts = device_facts("i5-haswell")

    assert facts.memory_limit_bytes is None
    assert facts.cpu.quota_cores == 1.5


def test_lowest_limit_of_any_ancestor_holds(tmp_path):
    """A service inside a limited slice is limited by the slice."""
    own, above = (tmp_path / "sys/fs/cgroup" / path for path in ("a.slice/b.service", "a.slice"))
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/a.slice/b.service\n")
    (own / "cpu.max").write_text("400000 100000\n")
    (above / "cpu.max").write_text("50000 100000\n")
    (own / "memory.max").write_text("max\n")
    (above / "memory.max").write_text("1000000\n")

    assert cgroup.quota_cores(tmp_path) == 0.5
    assert cgroup.memory_limit_bytes(tmp_path) == 1_000_000


def test_nothing_readable_gives_a_device_all_the_same(tmp_path):
    """A hardened container may hide /proc and /sys; the agent must still start."""
    facts = gather(tmp_path, system="linux", architecture="x86_64")

    assert (facts.cpu.physical_cores, usable_cores(facts.cpu), facts.memory_bytes) == (1, 1, 0)


@pytest.mark.parametrize("path", ["proc/cpuinfo", "proc/self/status", "proc/self/cgroup", "proc/meminfo"])
def test_garbage_in_a_file_is_a_finding_at_most(device_tree, path):
    """No two kernels agree; whatever one writes, the other facts are wanted."""
    root = device_tree("raspberry-pi-4")
    (root / path).write_bytes(b"processor : \xff\xfe\nMemTotal:\nCpus_allowed_list: what\n0::\nCPU part: zz\n::::")

    facts = gather(root, system="linux", architecture="aarch64")

    assert facts.board == "Raspberry Pi 4 Model B Rev 1.4"
    assert all(finding.text for finding in facts.findings)


def test_fingerprint_is_the_same_in_every_process():
    """Sets of strings are ordered differently in each process; a plan stored by one must be found by the next."""
    code = "from agent.device.hardware.gathering import gather; print(gather().fingerprint)"
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }

    assert runs == {gather().fingerprint + "\n"}


def test_fingerprint_ignores_what_comes_and_goes(device_facts):
    """A warm chip or an unplugged camera must not make the device measure again; another processor must."""
    facts = device_facts("raspberry-pi-4")
    warm = replace(facts, thermal_zones=(), cameras=(), memory_bytes=facts.memory_bytes - 70_000)
    other = replace(facts, cpu=replace(facts.cpu, physical_cores=3))

    assert warm.fingerprint == facts.fingerprint
    assert other.fingerprint != facts.fingerprint


def test_macos_on_apple_silicon():
    """Constructed sysctl lines; there is no Mac here."""
    found = from_sysctl(
        "machdep.cpu.brand_string: Apple M2\nhw.physicalcpu: 8\nhw.logicalcpu: 8\nhw.optional.AdvSIMD: 1\n"
        "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\nhw.optional.arm.FEAT_SME: 0\n"
    )

    assert found == Cpu("Apple", "Apple M2", frozenset({"neon", "dotprod", "i8mm"}), 8, 8)


def test_windows_says_what_it_knows():
    """Windows names AVX2 but no VNNI; what it does not name stays unclaimed."""
    values = {"VendorIdentifier": "GenuineIntel", "ProcessorNameString": "Intel(R) N100 "}

    found = from_windows(values.__getitem__, lambda number: number in (37, 38, 39, 40))

    assert (found.vendor, found.model) == ("Intel", "Intel(R) N100")
    assert found.features == {"sse4_1", "sse4_2", "avx", "avx2"}


def test_one_thread_at_least_whatever_the_quota():
    """A tenth of a core still runs one thread."""
    tenth = Cpu("", "", frozenset(), 4, 8, quota_cores=0.1)

    assert usable_cores(tenth) == 1
    assert cpu.usable_cores(replace(tenth, quota_cores=3.0, allowed_cores=2)) == 2
