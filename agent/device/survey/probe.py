"""The probe: short-lived children that ask the operating system and the runtimes what is here, each one question.

Drivers that they wake may crash or hang; that is why each question has a process of its own. `agent.device.survey.probing` is the
parent's side. Questions: `gather` (the operating system's facts and the built-in runtime's devices), `list` (another
runtime's devices), `try` (can one device make a session, and does it compute?).
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent import resources
from agent.childprocess import Message, answer_once
from agent.device.facts import BUILT_IN, Facts, Finding
from agent.device.hardware.gathering import gather
from agent.device.planning.plan import Candidate
from agent.errors import HoldfastError

if TYPE_CHECKING:
    from agent.device.runtimes.runtime import Runtime, RuntimeSession

NO_FALLBACK = ("session.disable_cpu_ep_fallback", "1")
LEFT_NODES = "fallback to CPU EP has been explicitly disabled"
"""How ONNX Runtime says that a provider did not take every node."""
RUNS_NONE = "runs none of this model"
"""How a runtime of ours says that a provider took no node. Why, the provider's library writes to stderr."""


def main() -> None:
    """Answer one question and end. A parent that goes away ends this process too."""
    answer_once(answer)


def answer(question: Message) -> Message:
    """Answer `gather`, `list` or `try`."""
    match question.get("is"):
        case "gather":
            return {"is": "facts", "facts": with_runtime(gather()).to_json()}
        case "list":
            return list_devices(str(question["runtime"]))
        case "try":
            provider, kind, runtime, device = (
                str(question[name]) for name in ("provider", "device_type", "runtime", "device")
            )
            candidate = Candidate(provider, kind, "probe", 1, runtime=runtime, device=device)
            return {"is": "tried", "unusable": try_device(candidate)}
    return {"is": "failed", "text": f"no question: {question}"}


def with_runtime(facts: Facts) -> Facts:
    """Add what the built-in runtime offers. One that cannot be imported is a finding; one that crashes takes us along."""
    try:
        from agent.device.runtimes.catalogue import open_runtime

        runtime = open_runtime(BUILT_IN)
        return replace(facts, runtime_version=runtime.version, ep_devices=runtime.devices())
    except Exception as error:  # noqa: BLE001  whatever a driver's binding throws, the other facts are wanted
        return replace(facts, findings=(*facts.findings, Finding("runtime", _text(error))))


def list_devices(runtime_id: str) -> Message:
    """Open another runtime and list its devices."""
    try:
        from agent.device.runtimes.catalogue import open_runtime

        return {"is": "devices", "devices": [asdict(device) for device in open_runtime(runtime_id).devices()]}
    except Exception as error:  # noqa: BLE001  a vendor's library may throw anything
        return {"is": "failed", "text": _text(error)}


def try_device(candidate: Candidate) -> str | None:
    """Make a session for the tiny model, run it once and compare; return what is wrong, None where nothing is."""
    from agent.device.runtimes.catalogue import open_runtime

    try:
        return _compute(_open_probe(open_runtime(candidate.runtime), candidate))
    except Exception as error:  # noqa: BLE001  a vendor's library may throw anything
        return _text(error)


def _open_probe(runtime: Runtime, candidate: Candidate) -> RuntimeSession:
    """Open the model in float, and where that is refused in int8.

    Some NPUs compute in integers only: to Qualcomm's plugin Hexagon v68 (QCS6490) is such a one, and opens no float graph at
    all (seen with 2.7.0 and `soc_model` 93). A GPU computes in float.
    """
    try:
        return _open(runtime, candidate, resources.probe_model())
    except HoldfastError:
        if candidate.device_type != "gpu":
            with contextlib.suppress(HoldfastError):
                return _open(runtime, candidate, resources.probe_model(is_quantized=True))
        raise


def _open(runtime: Runtime, candidate: Candidate, path: Path) -> RuntimeSession:
    """Open a model that the provider runs whole, or at least a node of: the quantizing at its border may be the CPU's."""
    from agent.device.runtimes.runtime import Opening

    try:
        return runtime.open(Opening(path, replace(candidate, session_options=(NO_FALLBACK,))))
    except HoldfastError as error:
        if LEFT_NODES not in str(error):
            raise
        # A provider that turns the layout round (XNNPACK) leaves its transpositions to the CPU; some node must be its own.
        session = runtime.open(Opening(path, candidate))
        if not session.assignment.nodes.get(candidate.provider):
            raise
        return session


def _compute(session: RuntimeSession) -> str | None:
    from agent.device.runtimes import probemodel

    return probemodel.difference(session.run({probemodel.INPUT: probemodel.given()})[probemodel.OUTPUT])


def _text(error: Exception) -> str:
    return error.message if isinstance(error, HoldfastError) else f"{type(error).__name__}: {error}"
