"""A crash before any single write leaves a repository that devices accept: the old state or the new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import atomicfile
from agent.errors import OperatorError, StateError
from bundles.release.creation import open_repository
from bundles.release.repository import Repository
from bundles.release.rotation import replace_key
from tests.bundles.release.conftest import Judge


class Crash(BaseException):
    """What no `except Exception` can catch, as a power cut."""


class Writes:
    """Counts durable writes and fails at the one that is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fails_at: int | None = None
        self.error: BaseException = Crash()
        real = atomicfile.write

        def write(path: Path, content: bytes) -> None:
            if self.count == self.fails_at:
                raise self.error
            self.count += 1
            real(path, content)

        monkeypatch.setattr(atomicfile, "write", write)

    def of(self, operation: Callable[[], object], fails_at: int | None = None) -> int:
        """Run an operation that is to fail at one write; return how many there were."""
        self.count, self.fails_at = 0, fails_at
        try:
            operation()
        except (Crash, StateError):
            assert fails_at is not None
        return self.count


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def copy_of(repository: Repository, name: str) -> Repository:
    folder = repository.folder.with_name(name)
    shutil.copytree(repository.folder, folder)
    return open_repository(folder)


OPERATIONS = {
    "publish": lambda repository: repository.publish("stable", "tiny", "2", percent=25),
    "rollback": lambda repository: repository.rollback("stable", "2", "why"),
    "refresh": lambda repository: repository.refresh(valid_days=3),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_crash_at_each_write_leaves_the_old_state_or_the_new(
    filled: Repository, writes: Writes, judge: Judge, name: str
):
    """Devices may look at any moment."""
    before = judge.channel(filled.folder)
    whole = copy_of(filled, "whole")
    total = writes.of(lambda: OPERATIONS[name](whole))
    assert total >= 2
    after = whole.channel("stable")
    for number in range(total):
        broken = copy_of(filled, f"broken-{number}")
        writes.of(lambda broken=broken: OPERATIONS[name](broken), number)
        writes.fails_at = None
        seen = Judge(filled.folder.with_name(f"device-{number}"), judge._root).channel(broken.folder)
        assert seen.assignments in (before.assignments, after.assignments)
        if broken.outcome().is_live:
            OPERATIONS[name](broken)
        else:  # it was signed, and `show` says what finishes it
            assert "refresh" in broken.outcome().next_step
            broken.refresh()
        assert judge.channel(broken.folder).assignments[0].bundle == after.assignments[0].bundle
        judge = Judge(filled.folder.with_name(f"next-{number}"), judge._root)


def test_crash_at_each_write_of_add_can_be_repeated(filled: Repository, writes: Writes, judge: Judge, make_bundle):
    """What lies there from before is taken, or written again."""
    bundle = make_bundle("3")
    total = writes.of(lambda: copy_of(filled, "whole").add(bundle))
    assert total >= 5
    for number in range(total):
        broken = copy_of(filled, f"broken-{number}")
        writes.of(lambda broken=broken: broken.add(bundle), number)
        writes.fails_at = None
        Judge(filled.folder.with_name(f"device-{number}"), judge._root).channel(broken.folder)
        broken.add(bundle)
        broken.refresh()
        assert broken.bundle("tiny", "3")


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_crash_at_each_write_of_a_key_rotation_locks_no_device_out(
    filled: Repository, writes: Writes, judge: Judge, role: str, tmp_path: Path
):
    """Old and new keys sign together, so that no order of files is wrong for anybody."""
    from bundles.release.keys import generate

    generate(tmp_path / "new.pem")
    total = writes.of(lambda: replace_key(copy_of(filled, "whole"), role, new=tmp_path / "new.pem"))
    assert total >= 2
    for number in range(total):
        broken = copy_of(filled, f"broken-{number}")
        writes.of(lambda broken=broken: replace_key(broken, role, new=tmp_path / "new.pem"), number)
        Judge(filled.folder.with_name(f"device-{number}"), judge._root).channel(broken.folder)


def finish(repository: Repository) -> None:
    """What `show` says to do."""
    step = repository.outcome().next_step or ""
    if "release sign" in step:
        repository.sign()
    elif "release refresh" in step:
        repository.refresh()


def test_crash_at_each_write_after_a_lost_key_can_be_finished(
    filled: Repository, writes: Writes, judge: Judge, tmp_path: Path
):
    """The old key cannot sign any more, so devices wait for a moment; they are never locked out."""
    from bundles.release.keys import generate

    judge.updater(filled.folder)
    generate(tmp_path / "new.pem")
    (tmp_path / "keys" / "targets.pem").unlink()
    total = writes.of(lambda: replace_key(copy_of(filled, "whole"), "targets", new=tmp_path / "new.pem"))
    for number in range(total):
        broken = copy_of(filled, f"broken-{number}")
        writes.of(lambda broken=broken: replace_key(broken, "targets", new=tmp_path / "new.pem"), number)
        writes.fails_at = None
        repository = open_repository(broken.folder, key_files=[tmp_path / "new.pem"])
        finish(repository)
        assert repository.outcome().is_live
        Judge(filled.folder.with_name(f"device-{number}"), judge._root).channel(broken.folder)


def test_crash_at_each_write_of_init_can_be_finished(writes: Writes, tmp_path: Path, clock):
    """The first minute counts too; the keys that were made stay."""
    from bundles.release.creation import create

    total = writes.of(lambda: create(tmp_path / "whole", tmp_path / "k", clock=clock))
    for number in range(total):
        folder, keys = tmp_path / f"repo-{number}", tmp_path / f"keys-{number}"
        writes.of(lambda folder=folder, keys=keys: create(folder, keys, clock=clock), number)
        writes.fails_at = None
        try:
            create(folder, keys, clock=clock)
        except OperatorError as error:
            if "release show" not in error.hint:
                raise
            finish(open_repository(folder, key_folders=[keys], clock=clock))
        Judge(tmp_path / f"device-{number}", (folder / "metadata" / "1.root.json").read_bytes()).updater(folder)


def test_full_disk_at_each_write_is_said_and_changes_nothing_for_devices(
    filled: Repository, writes: Writes, judge: Judge
):
    """ENOSPC is an answer with a next step, never half a release."""
    writes.error = OSError(28, "No space left on device")
    before = judge.channel(filled.folder)
    total = writes.of(lambda: OPERATIONS["publish"](copy_of(filled, "whole")))
    for number in range(total):
        broken = copy_of(filled, f"broken-{number}")
        writes.count, writes.fails_at = 0, number
        with pytest.raises(StateError, match="No space left"):
            OPERATIONS["publish"](broken)
        assert judge.channel(broken.folder) == before
