"""What candidates compiled: kept for those that may run, removed for the others, never an error."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.device.planning import preparedmodels
from agent.device.planning.plan import Candidate, Plan

CANDIDATES = tuple(Candidate("CPUExecutionProvider", "cpu", name, 1) for name in ("fp32", "int8", "fp16", "int4"))
PLAN = Plan("f" * 16, "d" * 64, "1.31.1", "p", CANDIDATES[0], "", (), "2026-11-20T09:00:00Z", ranked=CANDIDATES)


def key(number: int) -> str:
    return replace(PLAN, runtime_version=f"1.{number:02}").key


def fill(folder: Path, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "engine.bin").write_bytes(b"compiled")
    os.utime(folder, (1e9 - age, 1e9 - age))
    return folder


def test_the_best_three_of_a_plan_are_kept_and_the_best_on_another_device(tmp_path):
    """The choice, and what takes over when it fails: without compiling while nobody is served."""
    elsewhere = replace(CANDIDATES[3], device="the second GPU")
    ranked = (*CANDIDATES, elsewhere)
    for candidate in ranked:
        fill(tmp_path / PLAN.key / candidate.prepared_name)

    preparedmodels.keep_best(tmp_path, replace(PLAN, ranked=ranked))

    kept = {each.name for each in (tmp_path / PLAN.key).iterdir()}
    assert kept == {each.prepared_name for each in (*CANDIDATES[:3], elsewhere)}


def test_each_of_several_devices_has_a_folder_of_its_own_and_the_only_one_keeps_its_old_name():
    """What one card's driver compiled is not the other's; and an update must not throw away what took minutes to compile."""
    gpu = Candidate("DmlExecutionProvider", "gpu", "fp16", 1)
    assert gpu.prepared_name == "fp16-eb4d88841962"
    assert len({each.prepared_name for each in (gpu, replace(gpu, device="a"), replace(gpu, device="b"))}) == 3


def test_the_newest_eight_plans_are_kept_and_the_one_in_use(tmp_path):
    """Every release and every driver makes a new plan; their engines would fill the disk in a year."""
    for age in range(12):
        fill(tmp_path / key(age), age)

    preparedmodels.forget(tmp_path, in_use={key(11)})

    assert sorted(each.name for each in tmp_path.iterdir()) == [key(age) for age in (*range(8), 11)]


def test_what_is_no_plan_is_left_alone(tmp_path, caplog):
    """A link that somebody put there leads to something else, and the root itself may be one, to a disk that others use too."""
    elsewhere = fill(tmp_path / "elsewhere" / "precious", age=20)
    root = tmp_path / "prepared"
    (tmp_path / "disk").mkdir()
    root.symlink_to(tmp_path / "disk")
    (root / key(12)).symlink_to(elsewhere)
    photos = fill(root / "photos", age=30)
    of_others = fill(root / PLAN.key / "photos")
    for age in range(9):
        fill(root / key(age), age)

    preparedmodels.forget(root, in_use={PLAN.key})
    preparedmodels.keep_best(root, PLAN)

    assert caplog.text == ""
    assert all((each / "engine.bin").exists() for each in (root / key(12), elsewhere, photos, of_others))
    assert not (root / key(8)).exists()


@pytest.mark.parametrize(
    "act", [lambda root: preparedmodels.forget(root, ()), lambda root: preparedmodels.keep_best(root, PLAN)]
)
def test_a_folder_that_is_not_there_is_no_error(tmp_path, act):
    """It is a cache, and may be deleted at any time."""
    act(tmp_path / "gone")


def test_what_cannot_be_removed_costs_disk_and_not_service(tmp_path, monkeypatch, caplog):
    """Windows holds on to files that a worker has open."""

    def held(_: Path) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr("shutil.rmtree", held)
    fill(tmp_path / PLAN.key / CANDIDATES[3].prepared_name)

    preparedmodels.keep_best(tmp_path, PLAN)

    assert "cannot be removed" in caplog.text
