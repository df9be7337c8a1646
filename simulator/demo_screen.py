"""What the demo shows: a Status and a consumer's account, as Rich renderables. Pure: no clock, no state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from agent.device.facts import Facts
from agent.device.planning.plan import Outcome
from agent.pipeline.messages import PipelineBeat
from agent.status import ModelStatus, PipelineStatus, Status
from simulator.consumer import Account

MIB = 1024 * 1024


def screen(status: Status, account: Account, story: Sequence[str], note: str) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [_facts(status.facts), _plans(status.models), _pipelines(status.pipelines)]
    parts.append(_events(status, account))
    if story:
        parts.append(Panel("\n".join(story), title="signed releases, over the same broker"))
    parts.append(Text(note, style="dim"))
    for condition in status.conditions:
        style = {"error": "bold red", "warning": "yellow", "info": "dim"}[condition.severity]
        parts.append(Text(f"{condition.severity}: {condition.name}: {condition.text}", style=style))
    return Group(*parts)


def _facts(facts: Facts | None) -> RenderableType:
    if facts is None:
        return Panel("looking at the hardware …", title="device")
    features = " ".join(sorted(facts.cpu.features & _TELLING)) or "no vector features that matter"
    lines = [
        f"{facts.os} · {facts.architecture} {facts.board}".rstrip(),
        f"{facts.cpu.model} · {facts.cpu.physical_cores} cores · {features}",
        f"memory {facts.memory_bytes // MIB} MiB · ONNX Runtime {facts.runtime_version} · "
        + ", ".join(sorted({f"{device.provider} ({device.device_type})" for device in facts.ep_devices})),
    ]
    return Panel("\n".join(lines), title=f"device {facts.fingerprint}")


_TELLING = frozenset(
    {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "neon", "dotprod", "i8mm", "sve"}
)


def _plans(models: Iterable[ModelStatus]) -> RenderableType:
    table = Table(title="plan: measured on this device", expand=True, title_justify="left")
    for column in ("model", "candidate"):
        table.add_column(column, no_wrap=True)
    for column in ("p50 ms", "p99 ms", "CPU ms", "MiB"):
        table.add_column(column, justify="right")
    table.add_column("verdict", ratio=1)
    for model in models:
        chosen = model.plan.chosen if model.plan else None
        for outcome in model.outcomes:
            is_chosen = outcome.candidate == chosen
            table.add_row(
                model.name, *_outcome_cells(outcome), _verdict(model, outcome), style="bold" if is_chosen else ""
            )
        if model.trying is not None:
            table.add_row(model.name, model.trying.label, "", "", "", "", "measuring …", style="cyan")
    return table


def _outcome_cells(outcome: Outcome) -> tuple[str, str, str, str, str]:
    measured = outcome.measurement
    if measured is None:
        return outcome.candidate.label, "", "", "", ""
    return (
        outcome.candidate.label,
        f"{measured.p50_ms:.2f}",
        f"{measured.p99_ms:.2f}",
        f"{measured.cpu_ms_per_run:.2f}",
        f"{measured.peak_rss_bytes // MIB}",
    )


def _verdict(model: ModelStatus, outcome: Outcome) -> str:
    if outcome.refusal:
        return f"refused: {outcome.refusal}"
    if model.plan is None or outcome.candidate != model.plan.chosen:
        return ""
    nodes = " ".join(f"{provider}:{count}" for provider, count in (model.nodes or {}).items())
    return f"chosen · {nodes or 'starting'}" + (" · measured earlier" if model.plan_is_stored else "")


def _pipelines(pipelines: Iterable[PipelineStatus]) -> RenderableType:
    table = Table(title="pipelines: time per stage, p50 / p99 ms", expand=True, title_justify="left")
    table.add_column("pipeline", no_wrap=True)
    for column in ("samples", "dropped", "events"):
        table.add_column(column, justify="right")
    for stage in _STAGES:
        table.add_column(stage, justify="right")
    for pipeline in pipelines:
        beat = pipeline.beat
        if beat is None:
            table.add_row(pipeline.name, "starting", style="dim")
            continue
        dropped = " ".join(f"{cause} {count}" for cause, count in beat["dropped"].items() if count) or "0"
        table.add_row(
            pipeline.name,
            str(beat["samples"]),
            dropped,
            str(beat["events"]),
            *(_stage(beat, stage) for stage in _STAGES),
        )
    return table


_STAGES = ("preprocess", "infer", "decode", "track", "rules", "age")


def _stage(beat: PipelineBeat, stage: str) -> str:
    times = beat["stages"].get(stage)
    return f"{times['p50_ms']:.2f} / {times['p99_ms']:.2f}" if times and times["count"] else ""


def _events(status: Status, account: Account) -> RenderableType:
    outbox, link = status.outbox, status.link
    lost = sum((outbox.lost or {}).values())
    title = (
        f"events: {outbox.recorded} recorded · {outbox.delivered} delivered · {outbox.queued} waiting · {lost} lost · "
        f"consumer has {len(account.ids)} · broker {link.state} {('MQTT ' + link.protocol) if link.protocol else ''}"
    )
    table = Table(title=title, expand=True, title_justify="left")
    for column in ("seq", "time", "pipeline", "event", "what"):
        table.add_column(column, no_wrap=True)
    for event in account.events[-8:]:
        table.add_row(*(Text(cell) for cell in _event_cells(event)))  # names are an operator's: no markup
    return table


def _event_cells(event: dict[str, Any]) -> tuple[str, str, str, str, str]:
    data = event["data"]
    what = str(data.get("label", ""))
    if "score" in data:
        what += f" {data['score']:.2f}"
    if "track_id" in data:
        what += f" #{data['track_id']}"
    if "value" in data:
        what += f" {data['value']:g}"
    if data.get("replayed"):
        what += " (kept while the broker was away)"
    words = [
        event["type"].rsplit(".", 1)[-1],
        data.get("phase"),
        "·",
        data.get("rule"),
    ]  # a report of losses has no rule
    kind = " ".join(word for word in words if word)
    return str(data["seq"]), event["time"][11:23], event["source"].rsplit("/", 1)[-1], kind, what.strip()
