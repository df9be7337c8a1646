"""What static INT8 from our builder is worth: its speed against fp32 run in turns, and what the task loses.

Dense convolutions gain on a processor whose instructions multiply eight-bit integers four at a time (AVX512-VNNI, AVX-VNNI, Arm's
dot products); depthwise ones gain little, and stand here without a goal: the plan decides. One thread each, so that the
caller's CPU time is the run's time without what other processes took. The networks of dense convolutions have random weights,
hence no task; what a task loses is measured on models that have one, and on what the builder lets through its gate.

Then what it saves to keep what ONNX Runtime made of a model: loading it again from the plan's folder against from the bundle.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from agent.bundle.reader import Bundle
from agent.clock import SystemClock
from agent.device.hardware.cpu import read_cpu
from agent.device.hardware.gathering import this_system
from agent.device.hardware.sysfiles import SYSTEM_ROOT
from agent.device.planning.plan import Candidate
from agent.inference.golden import blank_sample, read_sample
from agent.inference.model import Model, open_model
from benchmarks.parts import Parts
from benchmarks.table import Figure, Goal, Line, Missing

ROUNDS, QUICK_ROUNDS = 9, 3
ROUND_S = 1.0
FEWEST_RUNS = 5
DOT_PRODUCTS = frozenset({"avx512_vnni", "avx_vnni", "dotprod", "i8mm"})


def lines(parts: Parts) -> Iterator[Line]:
    """Dense networks with a goal, depthwise ones without; then what a task loses in what the builder lets through."""
    rounds = QUICK_ROUNDS if parts.is_quick else ROUNDS
    has_dot_products = bool(read_cpu(SYSTEM_ROOT, this_system()).features & DOT_PRODUCTS)
    dense = {"SqueezeNet": parts.squeezenet_variants, "ResNet-50": parts.resnet_variants}
    depthwise = {"UltraFace": parts.ultraface_variants, "YOLOX-Nano": parts.yolox_variants}
    for name, bundle in (dense | depthwise).items():
        parts.say(f"INT8 of {name} against fp32")
        goal = Goal("ratio", "≥", 2.0) if name in dense and has_dot_products else None
        yield _speed(name, bundle, rounds, goal)
    yield _loss("UltraFace", parts.ultraface_variants)
    parts.say("INT8 of YOLOX-Nano under the builder's gate")
    yield _speed("YOLOX-Nano within its gate", parts.yolox_gated, rounds, None)
    yield _loss("YOLOX-Nano within its gate", parts.yolox_gated)
    for name, bundle in (dense | depthwise).items():
        yield _loading(name, bundle, parts, rounds)


def _loading(name: str, bundle: Bundle, parts: Parts, rounds: int) -> Line:
    """Load in turns; the first of both is left out: it reads the file from the disk, and prepares."""
    candidate = Candidate("CPUExecutionProvider", "cpu", "fp32", 1)
    folder = parts.folder / f"prepared-{name}"
    folder.mkdir()
    pairs = [
        [open_model(bundle, candidate, prepared=prepared).session.load_ms for prepared in (folder, None)]
        for _ in range(rounds + 1)
    ][1:]
    return Figure(
        f"loading {name} as prepared", "ms", [pair[0] for pair in pairs], Goal("ratio", "≤", 0.53),
        [pair[1] for pair in pairs], "from the bundle", "with the check of its CRC-32",
    )  # fmt: skip


def _speed(name: str, bundle: Bundle, rounds: int, goal: Goal | None) -> Line:
    title = f"INT8 of {name}, speed"
    if bundle.manifest.variant("int8") is None:
        return Missing(title, _why_not(bundle))
    models = [open_model(bundle, Candidate("CPUExecutionProvider", "cpu", name, 1)) for name in ("int8", "fp32")]
    pairs = [_median_ms(bundle, models) for _ in range(rounds + 1)][1:]  # the first warms up
    int8_ms, fp32_ms = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    sizes = [variant.model.size_bytes for variant in map(bundle.manifest.variant, ("int8", "fp32")) if variant]
    return Figure(
        title, "runs/s", [1000 / ms for ms in int8_ms], goal, [1000 / ms for ms in fp32_ms], "fp32",
        f"one thread, {rounds} rounds in turns; median {median(int8_ms):.2f} ms against {median(fp32_ms):.2f} ms, "
        f"{sizes[0] / sizes[1]:.2f} of the size",
    )  # fmt: skip


def _loss(name: str, bundle: Bundle) -> Line:
    """The builder's own figure, on all golden samples."""
    title = f"INT8 of {name}, task metric lost"
    variant = bundle.manifest.variant("int8")
    if variant is None or variant.accuracy is None:
        return Missing(title, _why_not(bundle))
    found = variant.accuracy
    note = f"{found.metric} {found.value:.3f} where fp32 has {found.value + found.drop:.3f}, on frames that calibrated nothing"
    return Figure(title, "points", [found.drop * 100], Goal("value", "≤", 1.0), (), "", note)


def _why_not(bundle: Bundle) -> str:
    return next((each.reason for each in bundle.manifest.refused if each.name == "int8"), "the bundle has no int8")


def _median_ms(bundle: Bundle, models: list[Model]) -> list[float]:
    """Return each model's median CPU time of a run over `ROUND_S`, run in turns."""
    clock, golden = SystemClock(), bundle.manifest.golden
    sample = read_sample(bundle, golden[0], 0, clock) if golden else blank_sample(bundle.manifest.input, clock)
    runs = [(model.infer, model.prepare(sample)) for model in models]
    times_ms: list[list[float]] = [[] for _ in runs]
    began_s = time.monotonic()
    while time.monotonic() - began_s < ROUND_S or len(times_ms[0]) < FEWEST_RUNS:
        for (infer, inputs), times in zip(runs, times_ms, strict=True):
            infer(inputs)  # the other one's weights are in the caches: this brings ours back
            run_began_s = time.thread_time()
            infer(inputs)
            times.append((time.thread_time() - run_began_s) * 1000)
    return [median(times) for times in times_ms]
