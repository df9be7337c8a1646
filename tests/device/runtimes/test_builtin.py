from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
import yaml

from agent.device.planning.plan import Candidate
from agent.device.runtimes import ortdevices, ortsession, providerlibrary
from agent.device.runtimes.builtin import BuiltInRuntime
from agent.device.runtimes.catalogue import open_runtime
from agent.device.runtimes.providers import (
    TABLE,
    Provider,
    known_devices,
    options_for,
    registration_name,
    unknown_options,
)
from agent.device.runtimes.runtime import Assignment, Opening
from agent.errors import CandidateError
from agent.resources import device_profiles


def test_cpu_is_a_device_and_a_web_service_is_none() -> None:
    """Every wheel lists Azure's provider, which calls a server: no device of this machine."""
    found = {device.provider for device in open_runtime("built-in").devices()}
    assert "CPUExecutionProvider" in found
    assert "AzureExecutionProvider" not in found


def test_plain_cpu_is_the_built_in_runtimes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a folder brings it too; one from before 1.23 tells no devices, and its CPU was believed without a try."""
    monkeypatch.setattr(ortdevices, "ep_devices", list)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    assert {device.provider for device in BuiltInRuntime("folder:/opt/gpu").devices()} == {"CUDAExecutionProvider"}
    assert {device.provider for device in BuiltInRuntime().devices()} >= {"CPUExecutionProvider"}


def test_providers_without_a_device_list_get_theirs_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic OpenVINO, CoreML and CUDA wheels list a name only."""
    names = ["CoreMLExecutionProvider", "CUDAExecutionProvider", "StrangeExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    found = [(device.provider, device.device_type) for device in open_runtime("built-in").devices()]
    assert [kind for name, kind in found if name == "CoreMLExecutionProvider"] == ["cpu", "gpu", "npu"]
    assert ("CUDAExecutionProvider", "gpu") in found
    assert ("StrangeExecutionProvider", "gpu") in found
    assert found.count(("CPUExecutionProvider", "cpu")) == 1


def test_device_is_described_by_what_stays() -> None:
    """A plan is keyed by this: Windows numbers a device anew at each boot, and a library's path is none of its traits."""
    hardware = SimpleNamespace(
        type=SimpleNamespace(name="GPU"),
        vendor="Intel",
        metadata={"LUID": "81234", "DxgiAdapterNumber": "0", "Description": "Arc B580", "Discrete": "1"},
    )
    ep_metadata = {"version": "1.8.1", "library_path": "/opt/x.so", "ov_device": "GPU"}
    device = SimpleNamespace(ep_name="OpenVINOExecutionProvider", ep_metadata=ep_metadata, device=hardware)
    described = ortdevices.describe(device, runtime="plugin:x", library_version="1.8.1")
    assert (described.device_type, described.vendor, described.name) == ("gpu", "Intel", "Arc B580")
    assert described.metadata == (("Discrete", "1"), ("ov_device", "GPU"))
    assert (described.driver_version, described.library_version, described.runtime) == ("", "1.8.1", "plugin:x")


def adapter(name: str, pci_bus_id: str = "", kind: str = "GPU", **told: str) -> SimpleNamespace:
    named = {key: value for key, value in (("Description", name), ("pci_bus_id", pci_bus_id)) if value}
    metadata = {**named, **told}
    hardware = SimpleNamespace(
        type=SimpleNamespace(name=kind), vendor="V", vendor_id=0x8086, device_id=0x56A5, metadata=metadata
    )
    return SimpleNamespace(ep_name="DmlExecutionProvider", ep_metadata={}, device=hardware)


INTEGRATED, DISCRETE, AT_1, AT_3 = adapter("UHD 770"), adapter("RTX 3060"), adapter("X", "01:0"), adapter("X", "03:0")
NAMELESS = adapter("")


@pytest.mark.parametrize(
    ("here", "device", "expected"),
    [
        pytest.param([INTEGRATED, DISCRETE], "RTX 3060", DISCRETE, id="by its name"),
        pytest.param([DISCRETE], "RTX 3060", DISCRETE, id="the one that is left"),
        pytest.param([INTEGRATED], "RTX 3060", None, id="gone"),
        pytest.param([AT_1, AT_3], "X 03:0", AT_3, id="one of two equal cards"),
        pytest.param([AT_1], "X 03:0", None, id="its twin is not it"),
        pytest.param([AT_3], "X 03:0", AT_3, id="the twin is gone"),
        pytest.param([INTEGRATED, DISCRETE], "", INTEGRATED, id="any"),
        pytest.param([NAMELESS, DISCRETE], "[8086:56a5]", NAMELESS, id="Linux tells no name"),
    ],
)
def test_session_is_made_on_the_device_that_the_candidate_means(
    monkeypatch: pytest.MonkeyPatch, here: list[SimpleNamespace], device: str, expected: SimpleNamespace | None
) -> None:
    """By the provider's name alone ONNX Runtime would take the other card, in silence."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["DmlExecutionProvider"])
    monkeypatch.setattr(ortdevices, "ep_devices", lambda: here)
    runtime, candidate = BuiltInRuntime(), Candidate("DmlExecutionProvider", "gpu", "fp16", 1, device=device)
    if expected is not None:
        assert runtime._devices_for(candidate) == [expected]
        return
    with pytest.raises(CandidateError, match=f"offers no gpu {device} here; it offers: ") as caught:
        runtime._devices_for(candidate)
    assert here[0].device.metadata["Description"] in str(caught.value)


@pytest.mark.parametrize(
    ("told", "strongest"),
    [
        pytest.param([{"Discrete": "0"}, {"Discrete": "1"}], 1, id="a card before the processor's graphics"),
        pytest.param(
            [
                {"Discrete": "1", "DxgiHighPerformanceIndex": "10"},
                {"Discrete": "1", "DxgiHighPerformanceIndex": "2"},
                {"Discrete": "0", "DxgiHighPerformanceIndex": "0"},
            ],
            1,
            id="of two cards the one that Windows puts first",
        ),
        pytest.param([{"pci_bus_id": "0000:65:00.0"}, {"pci_bus_id": "0000:01:00.0"}], 1, id="on Linux by the bus"),
        pytest.param([{"pci_bus_id": "0000:00:02.0"}, {"pci_bus_id": "0000:03:00.0"}], 1, id="Arc before Intel's own"),
        pytest.param([{}, {}], 0, id="nothing told"),
    ],
)
def test_of_several_devices_the_strongest_is_taken(told: list[dict[str, str]], strongest: int) -> None:
    """ONNX Runtime lists them in no order: a laptop's plan would be for another GPU after each restart."""
    devices = [adapter("", **each) for each in told]
    found = ortdevices.matching(devices, Candidate("DmlExecutionProvider", "gpu", "fp16", 1))
    assert found == [devices[strongest]]


@pytest.mark.parametrize(
    ("provider", "is_alone"),
    [("DmlExecutionProvider", True), ("RknpuExecutionProvider", True), ("CPUExecutionProvider", False)],
)
def test_runs_that_would_crash_each_other_take_turns(
    provider: str, is_alone: bool, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelines share a session. DirectML's document forbids two runs at once, and nothing in ONNX Runtime keeps them apart."""
    candidate = Candidate(provider, "gpu", "fp32", 1)
    options = ortsession._session_options(candidate, ortsession.AS_IT_IS)
    session = onnxruntime.InferenceSession(small_model, options, providers=["CPUExecutionProvider"])
    made = ortsession.OrtSession(session, candidate, small_model, is_tracing=False)
    stub = SimpleNamespace(run=lambda *_: [ortsession._one_at_a_time[provider].locked()])
    monkeypatch.setattr(made, "_session", stub)
    assert made.run({}) == {"pooled": is_alone}


def test_library_that_does_not_load_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime says on stderr only that libcudnn is missing; the person in front of `plan explain` has to know."""
    library = tmp_path / "capi" / providerlibrary._file_name("onnxruntime_providers_cuda")
    library.parent.mkdir()
    library.write_bytes(b"no library")
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    candidate = Candidate("CUDAExecutionProvider", "gpu", "fp16", 1)
    with pytest.raises(CandidateError, match=f"its library does not load: {library.name}: ."):
        ortsession._check_provider(["CPUExecutionProvider"], Assignment(), candidate, tmp_path)
    library.unlink()
    with pytest.raises(CandidateError, match="runs none of this model"):
        ortsession._check_provider(["CPUExecutionProvider"], Assignment(), candidate, tmp_path)


@pytest.mark.parametrize(("cuda_version", "times"), [("13.0", 1), ("", 0)])
def test_wheel_for_cuda_loads_nvidias_libraries_first(
    cuda_version: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip puts them where no loader looks; and a wheel without CUDA has nothing to load."""
    loaded: list[bool] = []
    monkeypatch.setattr(onnxruntime, "cuda_version", cuda_version)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append(True))
    BuiltInRuntime("folder:/opt/gpu")
    assert len(loaded) == times


@pytest.mark.parametrize("provider", TABLE, ids=lambda each: f"{each.name}{each.is_plugin}")
def test_table_names_its_sources_and_is_whole(provider: Provider) -> None:
    assert provider.name.endswith("ExecutionProvider")
    assert provider.document.startswith("https://")
    assert set(provider.devices) <= {"cpu", "gpu", "npu"}
    assert provider.devices
    assert (provider.keeps == "cache-folder") == bool(provider.cache_options)
    for options in (*provider.devices.values(), provider.cache_options):
        assert provider.known_options is None or set(options) <= provider.known_options


def test_candidates_own_options_win_over_the_tables() -> None:
    npu = Candidate("QNNExecutionProvider", "npu", "int8", 1)
    assert options_for(npu) == {"backend_type": "htp"}
    own = (("backend_type", "gpu"), ("soc_model", "60"))
    assert options_for(replace(npu, options=own)) == dict(own)


@pytest.mark.parametrize(
    ("load_config", "expected"),
    [
        pytest.param(None, {"CPU": {"INFERENCE_NUM_THREADS": "3"}}, id="nothing said"),
        pytest.param(
            '{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}, "AUTO": {}}',
            {"CPU": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": "3"}, "AUTO": {}},
            id="something else said",
        ),
        pytest.param('{"CPU": {"INFERENCE_NUM_THREADS": "1"}}', {"CPU": {"INFERENCE_NUM_THREADS": "1"}}, id="said"),
    ],
)
def test_openvino_keeps_to_the_candidates_threads(load_config: str | None, expected: dict[str, object]) -> None:
    """Left alone it takes every core, whatever share of them this model has."""
    said = (("load_config", load_config),) if load_config else ()
    options = options_for(Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 3, said))
    assert json.loads(options["load_config"]) == expected


def test_openvino_reads_a_configuration_file_as_it_is() -> None:
    said = (("load_config", "/etc/openvino.json"),)
    options = options_for(Candidate("OpenVINOExecutionProvider", "cpu", "fp32", 3, said))
    assert options["load_config"] == "/etc/openvino.json"


def test_plugin_and_classic_form_of_a_provider_differ() -> None:
    """OpenVINO's plugin is given a device, and ignores the options that the classic wheel takes for it."""
    classic = Candidate("OpenVINOExecutionProvider", "npu", "int8", 1, (("precision", "FP16"),))
    plugin = replace(classic, runtime="plugin:onnxruntime_ep_openvino")
    assert options_for(classic)["device_type"] == "NPU"
    assert "device_type" not in options_for(plugin)
    assert (unknown_options(classic), unknown_options(plugin)) == ([], ["precision"])


@pytest.mark.parametrize("path", sorted(device_profiles().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_profiles_use_options_and_devices_that_their_providers_have(path: Path) -> None:
    """An option that is refused at opening would take a whole kind of device out of the running."""
    for spec in yaml.safe_load(path.read_text())["candidates"]:
        if not spec["provider"].endswith("ExecutionProvider"):
            continue
        options = tuple((name, "") for name in spec.get("options", {}))
        candidate = Candidate(spec["provider"], spec.get("device_type", "cpu"), "fp32", 1, options)
        assert unknown_options(candidate) == []
        assert candidate.device_type in known_devices(candidate.provider)


def test_tensorrt_leaves_the_rest_to_cuda_unless_it_must_run_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node on the CPU between two engines costs two copies over the bus."""
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    candidate = Candidate("TensorrtExecutionProvider", "gpu", "fp16", 1)
    assert ortsession._assistants(candidate) == [("CUDAExecutionProvider", {})]
    required = replace(candidate, session_options=(("session.disable_cpu_ep_fallback", "1"),))
    assert ortsession._assistants(required) == []


def test_provider_that_takes_its_name_from_the_registration_gets_its_own() -> None:
    """Qualcomm's would else be called whatever a person named it, and no profile would match."""
    assert registration_name("libonnxruntime_providers_qnn") == "QNNExecutionProvider"
    assert registration_name("libmy_provider") == "libmy_provider"
    assert known_devices("NobodyKnowsExecutionProvider") == ("gpu",)


def test_option_that_a_provider_would_ignore_is_refused(cpu: Candidate, small_model: Path) -> None:
    """A typing error would else be measured, and stored, as if it were the option."""
    candidate = replace(cpu, options=(("intra_op_num_thread", "2"),))
    with pytest.raises(CandidateError, match="CPUExecutionProvider has no option intra_op_num_thread") as caught:
        open_runtime("built-in").open(Opening(small_model, candidate))
    assert "https://" in str(caught.value.hint)


def test_pool_of_a_providers_own_gets_the_candidates_threads() -> None:
    """Two pools of all cores would fight: XNNPACK's document asks for one thread in ONNX Runtime's."""
    candidate = Candidate("XnnpackExecutionProvider", "cpu", "fp32", 3)
    assert options_for(candidate) == {"intra_op_num_threads": "3"}
    assert ortsession._session_options(candidate, ortsession.AS_IT_IS).intra_op_num_threads == 1


def test_threads_do_not_spin_unless_the_candidate_says_so(cpu: Candidate) -> None:
    key = "session.intra_op.allow_spinning"
    options = ortsession._session_options(cpu, ortsession.AS_IT_IS)
    assert options.get_session_config_entry(key) == "0"
    spinning = replace(cpu, session_options=((key, "1"),))
    assert ortsession._session_options(spinning, ortsession.AS_IT_IS).get_session_config_entry(key) == "1"


def test_assignment_tells_nodes_parts_and_operators(cpu: Candidate, small_model: Path) -> None:
    assignment = open_runtime("built-in").open(Opening(small_model, cpu)).assignment
    assert sum(assignment.nodes.values()) == sum(assignment.operators["CPUExecutionProvider"].values())
    assert assignment.partitions == {"CPUExecutionProvider": 1}
    assert "GlobalAveragePool" in assignment.operators["CPUExecutionProvider"]


def test_parts_of_a_mixed_graph_are_told_where_they_are_known() -> None:
    """A provider that takes nodes one by one does not tell how they hang together, so nothing is made up."""

    def subgraph(name: str, *operators: str) -> SimpleNamespace:
        nodes = [SimpleNamespace(op_type=operator) for operator in operators]
        return SimpleNamespace(ep_name=name, get_nodes=lambda: nodes)

    record = [
        subgraph("NPU", "Conv", "Relu"),
        subgraph("NPU", "Conv"),
        subgraph("CPU", "Cast"),
        subgraph("CPU", "TopK"),
    ]
    options = SimpleNamespace(get_session_config_entry=lambda _: "1")
    session = SimpleNamespace(get_provider_graph_assignment_info=lambda: record, get_session_options=lambda: options)
    assignment = ortsession._assignment(session)
    assert assignment.nodes == {"NPU": 3, "CPU": 2}
    assert assignment.partitions == {"NPU": 2}
    assert assignment.operators == {"NPU": {"Conv": 2, "Relu": 1}, "CPU": {"Cast": 1, "TopK": 1}}


def test_trace_is_written_on_demand(cpu: Candidate, small_model: Path, tmp_path: Path, picture: object) -> None:
    session = open_runtime("built-in").open(Opening(small_model, cpu, trace=tmp_path / "trace"))
    session.run({"image": picture})  # type: ignore[dict-item]
    trace = session.end_trace()
    assert trace is not None
    assert trace.parent == tmp_path
    assert "Conv" in trace.read_text()
    assert session.end_trace() is None
    assert open_runtime("built-in").open(Opening(small_model, cpu)).end_trace() is None
