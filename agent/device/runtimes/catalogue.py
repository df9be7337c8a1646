"""Which runtimes are here, and one of them by its id.

A runtime's id is a string that says enough for any process to open it: `built-in`; `plugin:<module or library>`, a provider
that is registered at run time; `folder:<path>`, another ONNX Runtime wheel that was installed with
`pip install --no-deps --target <path>`; or `<scheme>:<location>` of another package, by the entry-point group
`holdfast.runtimes`. `find_runtimes` only looks, imports nothing native and is safe in core. `open_runtime` is for child
processes: drivers may crash there.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agent.device.facts import BUILT_IN
from agent.errors import OperatorError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from agent.device.runtimes.runtime import Runtime

ENTRY_POINTS = "holdfast.runtimes"
FORMS = "built-in, plugin:<module or library>, folder:<path>"

PLUGIN_MODULES = (
    "onnxruntime_ep_openvino",  # Intel CPU, GPU and NPU
    "onnxruntime_qnn",  # Qualcomm HTP and GPU (a plugin since 2.0)
    "onnxruntime_ep_nv_tensorrt_rtx",  # NVIDIA RTX: https://nvidia.github.io/TensorRT-RTX-EP-ABI/integration-guide.html
    "onnxruntime_ep_amdgpu",  # AMD GPUs: https://github.com/onnxruntime/onnxruntime-ep-amdgpu
    "onnxruntime_ep_webgpu",  # any GPU with Vulkan, Direct3D 12 or Metal
)
"""Python packages that bring a provider's library, as https://onnxruntime.ai/docs/execution-providers/plugin-ep-packaging.html
asks: with `get_library_path()` and `get_ep_names()`. The narrower come first."""

_opened: dict[str, Runtime] = {}
_opening = threading.Lock()


def find_runtimes(named: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the ids of the runtimes that are here: the built-in one, plugins that are installed, and those named.

    Args:
        named: Ids from the operator's file or a profile; checked as far as that needs no native code.

    Raises:
        OperatorError: an id of no known form, or with a path where nothing is.
    """
    installed = [f"plugin:{module}" for module in PLUGIN_MODULES if _is_module(module)]
    for runtime_id in named:
        _check(runtime_id)
    return tuple(dict.fromkeys([BUILT_IN, *installed, *named]))


def located(runtime_id: str, folder: Path) -> str:
    """Return the id with an absolute path, where it holds a relative one: a runtime is the same whoever names it from where.

    A location with no sign of a path is a name, of a package or of something that ships; after `folder:` all are paths.
    """
    scheme, colon, location = runtime_id.partition(":")
    is_path = scheme == "folder" or any(sign in location for sign in "/\\~.")
    if not (colon and location and is_path):
        return runtime_id
    return f"{scheme}:{folder / Path(location).expanduser()}"


def open_runtime(runtime_id: str) -> Runtime:
    """Open a runtime in this process, once; later calls return the same.

    Raises:
        OperatorError: an id of no known form, or with a path where nothing is.
        CandidateError: it cannot be loaded: a library that is none, or made for another ONNX Runtime.
        OtherRuntimeError: this process already holds another ONNX Runtime; a process of its own can open it.
    """
    with _opening:
        if runtime_id not in _opened:
            _opened[runtime_id] = _open(runtime_id)
        return _opened[runtime_id]


def _open(runtime_id: str) -> Runtime:
    _check(runtime_id)
    scheme, _, location = runtime_id.partition(":")
    match scheme:
        case "built-in":
            from agent.device.runtimes.folder import import_installed

            import_installed()
            from agent.device.runtimes.builtin import BuiltInRuntime

            return BuiltInRuntime()
        case "plugin":
            from agent.device.runtimes.folder import import_installed

            import_installed()
            from agent.device.runtimes.plugin import open_plugin

            return open_plugin(location, runtime_id)
        case "folder":
            from agent.device.runtimes.folder import import_folder

            import_folder(Path(location))
            from agent.device.runtimes.builtin import BuiltInRuntime

            return BuiltInRuntime(runtime_id)
        case _:
            return _open_foreign(scheme, runtime_id)


def _check(runtime_id: str) -> None:
    scheme, colon, location = runtime_id.partition(":")
    match scheme:
        case "built-in" if not colon:
            return
        case "plugin" if location:
            _check_plugin(runtime_id, location)
        case "folder" if location:
            _check_folder(runtime_id, Path(location))
        case _ if colon and location and any(each.name == scheme for each in _entry_points()):
            if Path(location).is_absolute() and not Path(location).exists():
                raise OperatorError("there is no such file", where=runtime_id, hint="correct the path")
        case _:
            raise OperatorError("this is no runtime", where=runtime_id, hint="known: " + _known())


def _check_plugin(runtime_id: str, location: str) -> None:
    if _is_path(location):
        if not Path(location).is_file():
            raise OperatorError(
                "there is no such library", where=runtime_id, hint="install the provider, or correct the path"
            )
    elif not _is_module(location):
        raise OperatorError(
            f"the package {location} is not installed",
            where=runtime_id,
            hint="install it beside Holdfast, or name its library by its path",
        )


def _check_folder(runtime_id: str, folder: Path) -> None:
    if not (folder / "onnxruntime" / "__init__.py").is_file():
        raise OperatorError(
            "there is no ONNX Runtime in this folder",
            where=runtime_id,
            hint=f"pip install --no-deps --target {folder} onnxruntime-openvino (or another ONNX Runtime wheel)",
        )


def _is_path(location: str) -> bool:
    return not location.isidentifier()


def _is_module(name: str) -> bool:
    try:
        return name.isidentifier() and importlib.util.find_spec(name) is not None
    except ValueError:  # a module in sys.modules without a spec, such as a test's
        return True


def _open_foreign(scheme: str, runtime_id: str) -> Runtime:
    entry_point = next(each for each in _entry_points() if each.name == scheme)
    try:
        open_function = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise OperatorError(
            f"the package that brings `{scheme}:` cannot be loaded: {error}",
            where=runtime_id,
            hint=f"install {entry_point.value.partition(':')[0]} again",
        ) from error
    runtime: Runtime = open_function(runtime_id.partition(":")[2])
    return runtime


def _known() -> str:
    return ", ".join([FORMS, *sorted({f"{each.name}:…" for each in _entry_points()})])


def _entry_points() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points  # brings the e-mail parser: 2 MB that only foreign runtimes pay

    return entry_points(group=ENTRY_POINTS)
