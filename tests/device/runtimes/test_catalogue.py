from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from agent.device.runtimes import catalogue
from agent.device.runtimes.catalogue import PLUGIN_MODULES, find_runtimes, open_runtime
from agent.errors import CandidateError, OperatorError, OtherRuntimeError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Return a function that puts a package on the path, as if pip had."""

    def make(name: str, content: str) -> str:
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(content)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        importlib.invalidate_caches()
        return name

    return make


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that pretends that a package brings the scheme `virtual:`."""

    def bring(value: str) -> None:
        points = [EntryPoint(name="virtual", value=value, group=catalogue.ENTRY_POINTS)]
        monkeypatch.setattr(catalogue, "_entry_points", lambda: points)

    return bring


def test_built_in_comes_first_and_nothing_twice(tmp_path: Path) -> None:
    library = tmp_path / "provider.so"
    library.touch()
    found = find_runtimes([f"plugin:{library}", "built-in", f"plugin:{library}"])
    assert found[0] == "built-in"
    assert [each for each in found if str(library) in each] == [f"plugin:{library}"]
    assert found.count("built-in") == 1


def test_installed_plugins_are_found_and_not_imported(installed: Callable[..., str]) -> None:
    """Core looks for them: what a vendor's package does at import may crash."""
    name = installed("onnxruntime_ep_webgpu", "raise SystemExit('imported')")
    assert name in PLUGIN_MODULES
    assert f"plugin:{name}" in find_runtimes()


@pytest.mark.parametrize(
    ("runtime_id", "words"),
    [
        pytest.param("banana", "no runtime", id="no scheme"),
        pytest.param("", "no runtime", id="empty"),
        pytest.param("built-in:x", "no runtime", id="built-in elsewhere"),
        pytest.param("gpu:thing", "no runtime", id="unknown scheme"),
        pytest.param("plugin:", "no runtime", id="plugin without a place"),
        pytest.param("folder:", "no runtime", id="folder without a place"),
        pytest.param("plugin:/no/such/provider.so", "no such library", id="missing library"),
        pytest.param("plugin:no_such_package", "not installed", id="missing package"),
        pytest.param("folder:/no/such/folder", "no ONNX Runtime in this folder", id="missing folder"),
    ],
)
def test_what_is_no_runtime_is_refused_with_the_next_step(runtime_id: str, words: str) -> None:
    """A typing error in the operator's file must not pass as a device without accelerator."""
    for look in (lambda: find_runtimes([runtime_id]), lambda: open_runtime(runtime_id)):
        with pytest.raises(OperatorError, match=words) as caught:
            look()
        assert caught.value.where == runtime_id
        assert caught.value.hint


def test_another_package_brings_a_scheme(foreign: Callable[[str], None], installed: Callable[..., str]) -> None:
    """The simulator's virtual accelerators come this way, so that the agent does not import it."""
    installed("brings_virtual", "def open_runtime(location):\n    return ['opened', location]")
    foreign("brings_virtual:open_runtime")
    assert "virtual:some/hardware.yaml" in find_runtimes(["virtual:some/hardware.yaml"])
    assert open_runtime("virtual:some/hardware.yaml") == ["opened", "some/hardware.yaml"]
    with pytest.raises(OperatorError) as caught:
        find_runtimes(["other:x"])
    assert "virtual:" in str(caught.value.hint)


def test_scheme_whose_package_is_broken_is_the_operators_to_repair(foreign: Callable[[str], None]) -> None:
    foreign("no_such_package_at_all:open_runtime")
    with pytest.raises(OperatorError, match="cannot be loaded") as caught:
        open_runtime("virtual:x")
    assert "no_such_package_at_all" in str(caught.value.hint)


def test_runtime_is_opened_once_in_a_process() -> None:
    """A library can be registered once; sessions of one model share it."""
    assert open_runtime("built-in") is open_runtime("built-in")


def test_library_that_is_none_is_refused_in_the_loaders_words(tmp_path: Path) -> None:
    library = tmp_path / "provider.so"
    library.write_text("this is no library")
    with pytest.raises(CandidateError, match=r"cannot be registered: .*provider\.so") as caught:
        open_runtime(f"plugin:{library}")
    assert caught.value.hint


def test_package_that_brings_no_library_is_refused(installed: Callable[..., str]) -> None:
    name = installed("brings_nothing", "")
    with pytest.raises(CandidateError, match="does not bring its library.*get_library_path"):
        open_runtime(f"plugin:{name}")


def test_second_onnx_runtime_needs_a_process_of_its_own(tmp_path: Path) -> None:
    """Two native libraries of one name in a process would mix their symbols."""
    open_runtime("built-in")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    with pytest.raises(OtherRuntimeError, match="already holds"):
        open_runtime(f"folder:{tmp_path}")


def test_wheel_for_another_python_is_refused_by_its_import(tmp_path: Path, in_child: Callable[..., Any]) -> None:
    (tmp_path / "wheel" / "onnxruntime").mkdir(parents=True)
    (tmp_path / "wheel" / "onnxruntime" / "__init__.py").write_text("raise ImportError('made for cp39')")
    code = """
from agent.device.runtimes.catalogue import open_runtime
from agent.errors import CandidateError
try:
    open_runtime(f"folder:{sys.argv[1]}")
except CandidateError as error:
    answer = str(error)
"""
    assert "made for cp39" in in_child(code, tmp_path / "wheel")


def test_core_side_looks_without_native_code() -> None:
    """Core calls these; a driver's crash must not be core's."""
    code = (
        "import sys, agent.device.planning.plan, agent.device.runtimes.providers\n"
        "from agent.device.runtimes.catalogue import find_runtimes\n"
        "find_runtimes()\n"
        "print(sorted({'onnxruntime', 'numpy', 'cv2', 'importlib.metadata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
