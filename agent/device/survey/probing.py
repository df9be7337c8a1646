"""Core's side of the probe: asks children, and turns a crash, a hang or a lie into a finding or into an unusable device.

First what is there: the operating system's facts and the built-in runtime in one child, each other runtime in a child of its
own. Then whether it works: each device but the plain CPU makes a session in a child of its own and computes something
small. Two children at most run at a time.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from agent.childprocess import Child, Message, exit_text
from agent.clock import SystemClock
from agent.device.facts import BUILT_IN, EpDevice, Facts, Finding
from agent.device.hardware.gathering import gather
from agent.device.hardware.memory import most_bytes
from agent.device.runtimes.providers import OPENVINO
from agent.device.survey.probe import LEFT_NODES, RUNS_NONE
from agent.device.survey.tried import DeviceKind, Tried, kind_of
from agent.log import brief
from agent.usage import rss_bytes_of

DEFAULT_TIMEOUT_S = 20.0
"""A vendor's driver may take several seconds to wake; the CPU alone takes 0.3 s."""
TRY_TIMEOUT_S = 60.0
"""For the first session on a device: TensorRT on a Jetson takes half a minute to load before it compiles anything."""
ENDING_S = 5.0
"""For a child that has answered: some drivers take a while to leave."""
LOOK_S = 0.05
"""How often the stop event and the child's memory are looked at."""
MEMORY_SHARE = 0.5
"""Of the device's memory, which a child may take: drivers' libraries are large, and no profile is chosen yet that says more."""
AT_A_TIME = 2
"""Children that run at once: a driver's start is mostly waiting, but small boards have little memory."""

MOST_DEVICES = 32
"""Of one runtime: each device is tried in a process of its own, so a driver that lists thousands would stop the start."""
MOST_METADATA = 64
_PROVIDER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Its name becomes a part of conditions' and folders' names."""

CLASSIC_OPENVINO = (
    "The classic OpenVINO runs on every x86-64 processor: `pip install --no-deps --target FOLDER onnxruntime-openvino`, "
    "`folder:FOLDER` under `device: {runtimes: […]}` in the configuration, and `holdfast plan measure`"
)
"""What to do where OpenVINO's plugin has nothing to offer, unless another runtime brings the provider."""
NO_DEVICE_HERE = {
    "openvino": "its CPU device exists on Intel processors only, and a GPU or an NPU needs Intel's driver",
    "qnn": "it needs a Qualcomm chip and its drivers; on Linux it looks for /dev/fastrpc-cdsp",
    "tensorrt": "it needs an NVIDIA RTX card (Ampere or newer) and its driver",
    "webgpu": "it needs a GPU with its driver, on Linux also the Vulkan loader (libvulkan.so.1)",
}
"""Why a plugin that loads well may have nothing to offer, by a part of its id."""

_ERROR = re.compile(r"\[E:onnxruntime[^\]]*\]\s*([^\x1b\n]+)")
"""A line that ONNX Runtime or a provider writes to stderr; colours end it on a terminal."""
MOST_OF_A_LINE = 200
"""Its end tells; before it stand paths of the machine that built the library."""

_facts: TypeAdapter[Facts] = TypeAdapter(Facts)
_devices: TypeAdapter[tuple[EpDevice, ...]] = TypeAdapter(tuple[EpDevice, ...])

Answer: TypeAlias = Message | str
"""What a child said, or what became of it."""


def probe_facts(
    runtimes: Sequence[str] = (BUILT_IN,),
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    try_timeout_s: float = TRY_TIMEOUT_S,
    tried: Tried | None = None,
    role: str = "probe",
    stop: threading.Event | None = None,
    first: Callable[[Facts], None] = lambda _: None,
) -> Facts:
    """Return what is here and what of it works. Never raises for what a driver does.

    A runtime whose child crashes, hangs or talks nonsense offers no devices and is a finding with its last words. Where that
    is the built-in one, the facts are those that need no native code. A device that makes no session, crashes, hangs or
    computes wrongly is there, with the reason in `unusable`.

    Args:
        runtimes: Ids of `agent.device.runtimes.catalogue`; the built-in one is always asked.
        timeout_s: After this long a child that lists devices is killed.
        try_timeout_s: After this long a child that tries a device is killed.
        tried: What worked at an earlier start, which is believed for this one; None: everything is tried.
        role: Another child role, for tests.
        stop: When set, all children are killed within a tenth of a second, and the facts are as far as they came.
        first: Called from another thread with what is known before any driver but the built-in ones has answered: the facts with
            the plain CPU alone.
    """
    children = _Children(role, stop or threading.Event())
    others = [runtime for runtime in dict.fromkeys(runtimes) if runtime != BUILT_IN]
    questions: list[Message] = [{"is": "gather"}, *({"is": "list", "runtime": runtime} for runtime in others)]
    gathered, *listed = children.ask_all(questions, timeout_s, first=lambda answer: _tell(first, answer))
    facts = _read_facts(gathered)
    # What offers nothing comes last: what to do about it depends on what the others bring.
    for runtime, answer in sorted(zip(others, listed, strict=True), key=lambda pair: _offers_nothing(pair[1])):
        facts = _with_runtime(facts, runtime, answer)
    return facts if children.are_stopped else _with_tries(facts, children, try_timeout_s, tried)


def parse_facts(values: object) -> Facts:
    """Read facts from their JSON form (`Facts.to_json`).

    Raises:
        pydantic.ValidationError: `values` are no facts.
    """
    return _facts.validate_python(values)


class _Children:
    """Asks children, one question each."""

    def __init__(self, role: str, stop: threading.Event) -> None:
        self._role = role
        self._stop = stop
        self._is_leaving = threading.Event()
        self._clock = SystemClock()
        self._most_bytes = most_memory_bytes()

    @property
    def are_stopped(self) -> bool:
        return self._stop.is_set() or self._is_leaving.is_set()

    def ask_all(
        self, questions: Sequence[Message], timeout_s: float, *, first: Callable[[Answer], None] = lambda _: None
    ) -> list[Answer]:
        """Return the answers in the order of the questions; no child is left behind, not even by Ctrl-C.

        `first` gets the first question's answer as soon as it is there.
        """

        def ask(number: int, question: Message) -> Answer:
            answer = self._ask(question, timeout_s)
            if number == 0:
                first(answer)
            return answer

        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix=self._role) as pool:
            try:
                return list(pool.map(ask, itertools.count(), questions))
            except BaseException:
                self._is_leaving.set()
                raise

    def _ask(self, question: Message, timeout_s: float) -> Answer:
        if self.are_stopped:
            return "stopped before it was asked"
        answers: queue.SimpleQueue[Message | int] = queue.SimpleQueue()
        child = Child(self._role, on_message=answers.put, on_exit=answers.put)
        try:
            child.send(question)
            answer = self._wait(child, answers, timeout_s)
            if isinstance(answer, dict) and RUNS_NONE in str(answer.get("unusable")):
                self._wait(child, answers, ENDING_S)  # all that it wrote is here once it has ended
                answer["unusable"] = _with_drivers_words(str(answer["unusable"]), child.last_words)
        finally:
            child.kill()
        if answer is None:
            return child.with_last_words(f"gave no answer within {timeout_s:g} s and was killed")
        if isinstance(answer, str):
            return child.with_last_words(answer)
        if isinstance(answer, int):
            return child.with_last_words(f"{exit_text(answer)} before it answered")
        return brief(str(answer.get("text"))) if answer.get("is") == "failed" else answer

    def _wait(
        self, child: Child, answers: queue.SimpleQueue[Message | int], timeout_s: float
    ) -> Message | int | str | None:
        """Return the answer, the exit status, why it is to be killed, or None where it took too long."""
        deadline_s = self._clock.monotonic() + timeout_s
        while not self.are_stopped and (left_s := deadline_s - self._clock.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=min(LOOK_S, left_s))
            if (rss_bytes := rss_bytes_of(child.pid)) > self._most_bytes:
                took, allowed = rss_bytes >> 20, self._most_bytes >> 20
                return f"took {took} MiB of memory, where {allowed} MiB are allowed, and was killed"
        return None


def _with_drivers_words(text: str, stderr: str) -> str:
    """Add the last error on stderr, such as `[OpenVINO] Device NPU is not available`, to a reason that is none."""
    errors = [error.strip() for error in _ERROR.findall(stderr) if LEFT_NODES not in error]
    return f"{text}; it says: {errors[-1][-MOST_OF_A_LINE:]}" if errors else text


def most_memory_bytes() -> int:
    """Return how much a child may take."""
    return int(most_bytes() * MEMORY_SHARE)


def _tell(first: Callable[[Facts], None], answer: Answer) -> None:
    facts = _read_facts(answer)
    first(replace(facts, ep_devices=tuple(device for device in facts.ep_devices if device.is_plain_cpu)))


def _read_facts(answer: Answer) -> Facts:
    if isinstance(answer, str):
        return _without_runtime(f"the probe {answer}")
    try:
        facts = parse_facts(answer.get("facts"))
    except ValidationError as error:
        return _without_runtime(f"the probe's answer is no facts: {_first(error)}")
    devices, excess = _sound(facts.ep_devices)
    facts = replace(facts, ep_devices=devices)
    return _with_finding(facts, "runtime", excess) if excess else facts


def _without_runtime(text: str) -> Facts:
    facts = gather()
    return replace(facts, findings=(*facts.findings, Finding("runtime", text)))


def _with_runtime(facts: Facts, runtime: str, answer: Answer) -> Facts:
    """Add a runtime's devices, or a finding that says why there are none."""
    if isinstance(answer, str):
        return _with_finding(facts, runtime, answer)
    try:
        devices = _devices.validate_python(answer.get("devices"))
    except ValidationError as error:
        return _with_finding(facts, runtime, f"its answer is no list of devices: {_first(error)}")
    if not devices:
        return _with_finding(
            facts, runtime, f"it is registered and offers no device here: {_why_nothing(runtime, facts)}"
        )
    sound, excess = _sound(devices)
    own = tuple(replace(device, runtime=runtime, unusable=None) for device in sound)
    facts = replace(facts, ep_devices=(*_not_replaced(facts.ep_devices, own), *own))
    return _with_finding(facts, runtime, excess) if excess else facts


def _why_nothing(runtime: str, facts: Facts) -> str:
    reason = next((text for part, text in NO_DEVICE_HERE.items() if part in runtime), "its driver may be missing")
    is_brought = any(each.provider == OPENVINO for each in facts.ep_devices)
    return f"{reason}. {CLASSIC_OPENVINO}" if "openvino" in runtime and not is_brought else reason


def _offers_nothing(answer: Answer) -> bool:
    return isinstance(answer, dict) and not answer.get("devices")


def _sound(devices: Sequence[EpDevice]) -> tuple[tuple[EpDevice, ...], str]:
    """Return the devices that can be dealt with, their texts short and printable, and what was left out, if anything."""
    named = [device for device in devices if _PROVIDER.fullmatch(device.provider)]
    kept = named[:MOST_DEVICES]
    excess = ""
    if len(named) < len(devices):
        strange = next(device.provider for device in devices if device not in named)
        excess = f"{len(devices) - len(named)} devices are left out: `{brief(strange[:80])}` is no name of a provider"
    elif len(kept) < len(named):
        excess = f"it lists {len(named)} devices; the first {MOST_DEVICES} count"
    return tuple(_brief(device) for device in kept), excess


def _brief(device: EpDevice) -> EpDevice:
    return replace(
        device,
        device_type=brief(device.device_type),
        vendor=brief(device.vendor),
        name=brief(device.name),
        driver_version=brief(device.driver_version),
        library_version=brief(device.library_version),
        metadata=tuple((brief(name), brief(value)) for name, value in device.metadata[:MOST_METADATA]),
    )


def _not_replaced(devices: Iterable[EpDevice], newer: Sequence[EpDevice]) -> Iterable[EpDevice]:
    """Leave out what a newer device stands in for: a slower processor of the simulator, say (metadata `replaces`: a runtime)."""
    replaced = {
        (value, device.provider, device.device_type)
        for device in newer
        for name, value in device.metadata
        if name == "replaces"
    }
    return (device for device in devices if (device.runtime, device.provider, device.device_type) not in replaced)


def _with_finding(facts: Facts, probe: str, text: str) -> Facts:
    return replace(facts, findings=(*facts.findings, Finding(probe, text)))


def _with_tries(facts: Facts, children: _Children, timeout_s: float, tried: Tried | None) -> Facts:
    """Try each device once: of two cards that share a driver, one may be broken. Those that nothing tells apart share a try."""
    believed = tried.worked(facts) if tried else frozenset()
    kinds = [kind for kind in _kinds(facts) if kind not in believed]
    answers = children.ask_all([{"is": "try", **asdict(kind)} for kind in kinds], timeout_s)
    if children.are_stopped:
        return facts
    reasons = dict(zip(kinds, map(_reason, answers), strict=True))
    if tried:
        tried.remember(facts, believed | {kind for kind, reason in reasons.items() if reason is None})
    judged = (replace(device, unusable=reasons.get(kind_of(device, facts))) for device in facts.ep_devices)
    return replace(facts, ep_devices=tuple(judged))


def _kinds(facts: Facts) -> list[DeviceKind]:
    return list(dict.fromkeys(kind_of(device, facts) for device in facts.ep_devices if not device.is_plain_cpu))


def _reason(answer: Answer) -> str | None:
    if isinstance(answer, str):
        return f"trying it: the child {answer}"
    if answer.get("is") != "tried" or not isinstance(answer.get("unusable", ""), str | None):
        return f"trying it: the child talked nonsense: {str(answer)[:200]}"
    unusable: str | None = answer.get("unusable")
    return unusable if unusable is None else brief(unusable)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{first['loc']}: {first['msg']}"
