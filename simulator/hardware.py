"""A hardware file: accelerators that do not exist, and what is wrong with them. The format of simulator/hardware/*.yaml.

Takes a YAML file; gives `Hardware`. Refuses unknown keys, two devices of one name, and times that are no
times, each with file:line:column. Also the switch beside the file by which a test pulls a device out, or breaks it, while
other processes use it: a marker file that every session looks at before each run.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from agent import resources, yamlfile
from agent.device.profiles.profile import Provider
from agent.errors import ConfigurationError, Problem

Milliseconds = Annotated[float, Field(ge=0)]
ByVariant = Annotated[
    dict[str, Milliseconds],
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, dict) else {"any": value}),
]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]

Trouble = Literal["unplugged", "crashes", "hangs", "slow"]
"""What a marker file may say: every run fails and nothing is listed; every run kills its process; every run blocks; every
run takes `slow_factor` times as long."""
TROUBLES: tuple[Trouble, ...] = get_args(Trouble)


SMALL_NODES = 3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Speed(_Strict):
    """What a device takes for one run."""

    run_ms: ByVariant
    """Milliseconds, or those of each variant (one that is not listed takes the first's). At least this long: the computation
    itself is real and may take longer."""
    cpu_ms: Milliseconds = 0.0
    """Of that, how long the driver keeps a core of the host busy."""
    parallel: Count = 1
    """Runs that it works on at one time; more wait for each other."""
    slows_after: Count | None = None
    """From this run of a session on it is `slow_factor` times slower: it has become hot."""
    slow_factor: Annotated[float, Field(gt=1)] = 3.0

    def run_ms_of(self, variant: str) -> float:
        """Return the milliseconds of one run of a variant."""
        return self.run_ms.get(variant, next(iter(self.run_ms.values())))


class VirtualCpu(_Speed):
    """A processor slower than the one that simulates it. It takes the place of the built-in runtime's."""


class Accelerator(_Speed):
    """One device of one provider."""

    provider: Provider
    """A real one's name, or one of your own such as `VirtualNpuExecutionProvider`."""
    device_type: Literal["gpu", "npu", "cpu"] = "npu"
    vendor: str = ""
    name: str
    driver_version: str = ""
    supported_ops: frozenset[str] | None = None
    """It takes the nodes of these operator types (as they are after ONNX Runtime's optimisation); all where none is given."""
    unsupported_ops: frozenset[str] = frozenset()
    """It takes none of these."""
    error: Annotated[float, Field(ge=0)] = 0.0
    """Noise on float outputs: the standard deviation of each number, relative to its size. Seeded."""
    compile_s: Seconds = 0.0
    """Making a session takes this long, unless it finds what an earlier one left in the prepared folder."""
    memory_mb: Annotated[int, Field(ge=0)] = 0
    """A session takes this much of the host's."""

    absent_driver: str | None = None
    """It is listed, and every session fails with this text."""
    crash_on_register: bool = False
    """Opening the runtime kills the process."""
    hang_on_register: bool = False
    crash_on_compile: bool = False
    hang_on_compile: bool = False
    fails_on_compile: str | None = None
    """No session can be made, with this text."""
    wrong_results: Literal["negated", "zeros", "nan"] | None = None
    """What it makes of float outputs."""
    wrong_after: Count | None = None
    """Only from this run of a session on."""
    spares_small: bool = True
    """Models of `SMALL_NODES` nodes at most compile at once and without trouble, and give right results. That is how most bad
    devices are, and what the probe tries is such a model; without this, the probe finds the trouble."""
    dies_after: Count | None = None
    """This run of a session fails, and from then on all runs and new sessions, until it is plugged in again."""
    crashes_after: Count | None = None
    """This run of a session kills its process; a new session works again."""
    hangs_after: Count | None = None
    """This run of a session never ends; a new session works again."""
    leaks_mb: Annotated[float, Field(ge=0)] = 0.0
    """Memory that each run keeps."""

    def takes(self, operator: str) -> bool:
        """Whether nodes of this type run on it."""
        listed = self.supported_ops is None or operator in self.supported_ops
        return listed and operator not in self.unsupported_ops


class Hardware(_Strict):
    """The devices of one virtual runtime. All are registered in one process, as those of one vendor's library are."""

    version: str = "1.0"
    """Of the runtime that brings them."""
    cpu: VirtualCpu | None = None
    """A slower processor in place of this machine's; the built-in runtime's is then not used."""
    accelerators: tuple[Accelerator, ...] = ()
    seed: int = 1
    """Of the noise."""

    @model_validator(mode="after")
    def _tells_devices_apart(self) -> Self:
        if any((each.provider, each.device_type) == ("CPUExecutionProvider", "cpu") for each in self.accelerators):
            raise ValueError("the plain CPU provider stands under `cpu:`, not under `accelerators:`")
        names = [_slug(each.name) for each in self.accelerators]
        if again := next((each.name for each in self.accelerators if names.count(_slug(each.name)) > 1), None):
            raise ValueError(f"two accelerators are called {again!r}: nothing would tell which is meant")
        return self


def hardware_file(location: str) -> Path:
    """Return the file that is meant: one that ships, by its name such as `intel-laptop`, else a path.

    Raises:
        ConfigurationError: it is a name, and none of that name ships.
    """
    if any(sign in location for sign in "/\\."):
        return Path(location)
    shipped = {path.stem: path for path in sorted((resources.root() / "simulator" / "hardware").glob("*.yaml"))}
    if location in shipped:
        return shipped[location]
    message, hint = "no hardware file of this name ships", f"known: {', '.join(shipped)}; a path ends in .yaml"
    raise ConfigurationError([Problem(location, "", message, hint)])


def load_hardware(path: Path) -> Hardware:
    """Read a hardware file.

    Raises:
        ConfigurationError: it is none; every problem has its line.
    """
    return yamlfile.validate(Hardware, yamlfile.load(path), str(path))


def unplug(hardware_file: Path, name: str) -> None:
    """Pull a device out: from now on it is not listed, and what runs on it fails."""
    set_trouble(hardware_file, name, "unplugged")


def plug(hardware_file: Path, name: str) -> None:
    """Put a device back, or end whatever trouble it has."""
    with contextlib.suppress(FileNotFoundError):
        marker(hardware_file, name).unlink()


def set_trouble(hardware_file: Path, name: str, trouble: Trouble) -> None:
    """Break a device for every process that uses it, from its next run on."""
    path = marker(hardware_file, name)
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(trouble)
    beside.replace(path)  # a session that looks at this moment reads the old word or the new one


def trouble_of(marker_file: Path) -> Trouble | None:
    """Return what a device's marker file says; None where there is none."""
    try:
        word = marker_file.read_text()
    except FileNotFoundError:
        return None
    return next((known for known in TROUBLES if known == word), None)


def marker(hardware_file: Path, name: str) -> Path:
    """Return where the trouble of a device is written, such as `usb-stick.yaml.trouble/edge-tpu`."""
    return hardware_file.with_name(f"{hardware_file.name}.trouble") / _slug(name)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
