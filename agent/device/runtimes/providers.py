"""What Holdfast knows of each ONNX Runtime execution provider: a table of values, nothing native.

ONNX Runtime lists the devices of plugins and of a few built-in providers; of the others it tells only the name. What those
can drive, which option selects a device, where they keep what they compile and which options they silently ignore is
here, each row with the vendor's or ONNX Runtime's document. Options that make a provider faster are the profiles' to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.device.facts import BUILT_IN
from agent.device.planning.plan import Candidate

CPU_PROVIDER = "CPUExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

NO_PROVIDERS = frozenset({"AzureExecutionProvider"})
"""In the list of every wheel, but no device of this machine: it calls a web service."""

OWN_THREADS = frozenset({"XnnpackExecutionProvider"})
"""They compute in a thread pool of their own (the option `intra_op_num_threads`), so ONNX Runtime's is made small."""

Keeps = Literal["optimized-graph", "ep-context", "cache-folder", "nothing"]
"""What can be kept of a session for the next one: ONNX Runtime's optimized graph, a model of EPContext nodes
(https://onnxruntime.ai/docs/execution-providers/EP-Context-Design.html), or files that the provider itself manages."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider."""

    name: str
    """As ONNX Runtime spells it."""
    document: str
    """Where the options come from."""
    devices: Mapping[str, Mapping[str, str]]
    """By device type that it can drive: the options that select it, overridden by a candidate's own."""
    keeps: Keeps = "nothing"
    cache_options: Mapping[str, str] = field(default_factory=dict)
    """For `cache-folder`: the options that switch the cache on; `{folder}` stands for the folder."""
    known_options: frozenset[str] | None = None
    """Every option it has, for one that ignores names it does not know; None for one that refuses them by itself."""
    is_plugin: bool = False
    """The row is for the plugin of a provider whose classic form, inside a wheel, differs."""
    library: str = ""
    """A part of its plugin's file name by which it is recognised, where the provider takes its name from the registration."""
    assisted_by: tuple[str, ...] = ()
    """Providers of the same wheel that take the nodes that it leaves, before the CPU does."""
    runs_one_at_a_time: bool = False
    """Two runs at once crash or mix it up, and ONNX Runtime does not keep them apart (its `ConcurrentRunSupported`)."""

    def caching_in(self, folder: Path) -> dict[str, str]:
        """Return the options for the provider's own cache."""
        return {name: value.format(folder=folder) for name, value in self.cache_options.items()}


def provider_of(name: str, runtime: str = BUILT_IN) -> Provider:
    """Return what is known of a provider; for one that is not in the table, nothing but its name."""
    is_plugin = runtime.startswith("plugin:")
    row = _ROWS.get((name, is_plugin)) or _ROWS.get((name, not is_plugin))
    return row or Provider(name, document="", devices={})


def options_for(candidate: Candidate) -> dict[str, str]:
    """Return a candidate's options with those that select its device and, for a pool of the provider's own, its threads.

    What the candidate says itself stays as it is.
    """
    row = provider_of(candidate.provider, candidate.runtime)
    options = {**row.devices.get(candidate.device_type, {}), **dict(candidate.options)}
    if candidate.provider in OWN_THREADS:
        options.setdefault("intra_op_num_threads", str(candidate.threads))
    if candidate.provider == OPENVINO and candidate.device_type == "cpu":
        options["load_config"] = _with_threads(options.get("load_config", "{}"), candidate.threads)
    return options


def _with_threads(load_config: str, threads: int) -> str:
    """Add the number of threads to OpenVINO's configuration: it takes all cores otherwise. A file's path stays a path."""
    try:
        config = json.loads(load_config)
        config.setdefault("CPU", {}).setdefault("INFERENCE_NUM_THREADS", str(threads))
    except (ValueError, AttributeError):
        return load_config
    return json.dumps(config)


def unknown_options(candidate: Candidate) -> list[str]:
    """Return the names among a candidate's options that its provider would pass over in silence."""
    known = provider_of(candidate.provider, candidate.runtime).known_options
    return [] if known is None else [name for name, _ in candidate.options if name not in known]


def known_devices(name: str) -> tuple[str, ...]:
    """Return the device types that a built-in provider can drive; a stranger counts as a GPU."""
    return tuple(provider_of(name).devices) or ("gpu",)


def registration_name(library_stem: str) -> str:
    """Return the name to register a plugin's library under: the provider's, where that decides what it calls itself."""
    for provider in TABLE:
        if provider.library and provider.library in library_stem:
            return provider.name
    return library_stem


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ORT = "https://onnxruntime.ai/docs/execution-providers/"

TABLE: tuple[Provider, ...] = (
    Provider(
        CPU_PROVIDER,
        document="https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html",
        devices={"cpu": {}},
        keeps="optimized-graph",
        known_options=frozenset(),
    ),
    Provider(
        OPENVINO,
        document=_ORT + "OpenVINO-ExecutionProvider.html",
        devices={
            "npu": {"device_type": "NPU"},
            "gpu": {"device_type": "GPU"},
            "cpu": {"device_type": "CPU"},
        },
        # Its EPContext models of the CPU do not load again (seen with 1.24.1).
        keeps="cache-folder",
        cache_options={"cache_dir": "{folder}"},
    ),
    Provider(
        OPENVINO,
        document=_ORT + "OpenVINO-ExecutionProvider.html",
        is_plugin=True,
        devices={"npu": {}, "gpu": {}, "cpu": {}},
        keeps="ep-context",
        # Those of the library (1.8.1). It ignores the classic ones, such as `precision` and `num_of_threads`, with a warning that
        # tells how `load_config` says the same.
        known_options=_names("load_config reshape_input enable_causallm hint_enable_gqa dump_subgraphs"),
    ),
    Provider(
        "QNNExecutionProvider",
        document=_ORT + "QNN-ExecutionProvider.html",
        # Without a backend it refuses to start. On a host without a Hexagon the plugin calls its device a CPU and runs the HTP
        # backend in software, which is how models for it are compiled and checked.
        devices={
            "npu": {"backend_type": "htp"},
            "gpu": {"backend_type": "gpu"},
            "cpu": {"backend_type": "htp"},
        },
        keeps="ep-context",
        # Those of the document, and what the library of onnxruntime-qnn 2.7.0 has beside.
        known_options=_names(
            """
            backend_path backend_type device_id disable_file_mapped_weights dump_json_qnn_graph dump_qnn_ep_input_graph
            dump_qnn_ep_input_graph_dir dump_qnn_ir_dlc dump_qnn_ir_dlc_dir enable_block_quant_weight_optimization
            enable_dx12_shared_memory_allocator enable_framework_op_trace enable_htp_fp16_clamp_overflow
            enable_htp_fp16_precision enable_htp_graph_splitting enable_htp_monolithic_lstm enable_htp_prepare_and_load
            enable_htp_prepare_only enable_htp_shared_memory_allocator enable_htp_spill_fill_buffer
            enable_vtcm_backup_buffer_sharing extended_udma htp_arch htp_bf16_enable
            htp_graph_finalization_optimization_mode htp_graph_splitting_num_prepare_threads htp_performance_mode
            htp_reused_io_limit_mb htp_share_resource_optimization json_qnn_graph_dir num_graph_prepare_threads
            offload_graph_io_quantization
            op_packages profiling_file_path profiling_level qnn_context_priority qnn_ir_backend_path qnn_saver_path
            rpc_control_latency skip_backend_op_validation skip_qnn_version_check soc_model vtcm_mb
            """
        ),
        library="providers_qnn",
    ),
    Provider(
        "CoreMLExecutionProvider",
        document=_ORT + "CoreML-ExecutionProvider.html",
        # MLProgram is the format that Apple develops further; NeuralNetwork, the default, has fewer operators.
        devices={
            "npu": {"MLComputeUnits": "CPUAndNeuralEngine", "ModelFormat": "MLProgram"},
            "gpu": {"MLComputeUnits": "CPUAndGPU", "ModelFormat": "MLProgram"},
            "cpu": {"MLComputeUnits": "CPUOnly", "ModelFormat": "MLProgram"},
        },
        keeps="cache-folder",
        cache_options={"ModelCacheDirectory": "{folder}"},
    ),
    Provider(
        "DmlExecutionProvider",
        document=_ORT + "DirectML-ExecutionProvider.html",
        devices={"gpu": {}},  # an NPU only where ONNX Runtime lists it
        # dml_provider_factory.cc: with the number of an adapter, which ONNX Runtime gives for a device, it passes over
        # `device_filter` and `performance_preference`. Graph capture is an entry of the session, no option.
        known_options=frozenset({"device_id", "disable_metacommands"}),
        # "only one thread may call `Run` at a time", and sessions that Python makes may share the device's command queue
        # (onnxruntime issues 22147 and 25577).
        runs_one_at_a_time=True,
    ),
    Provider("CUDAExecutionProvider", document=_ORT + "CUDA-ExecutionProvider.html", devices={"gpu": {}}),
    Provider(
        "TensorrtExecutionProvider",
        document=_ORT + "TensorRT-ExecutionProvider.html",
        devices={"gpu": {}},
        # Not the timing cache: TensorRT rewrites it, and the engine alone is what takes minutes. Python's binding takes words
        # only: "should be 'True' or 'False'" (onnxruntime_pybind_state.cc).
        keeps="cache-folder",
        cache_options={"trt_engine_cache_enable": "True", "trt_engine_cache_path": "{folder}"},
        assisted_by=("CUDAExecutionProvider",),
    ),
    Provider(
        "NvTensorRTRTXExecutionProvider",
        document=_ORT + "TensorRTRTX-ExecutionProvider.html",
        devices={"gpu": {}},
        keeps="ep-context",
    ),
    Provider(
        "MIGraphXExecutionProvider",
        document=_ORT + "MIGraphX-ExecutionProvider.html",
        devices={"gpu": {}},
        keeps="cache-folder",
        cache_options={"migraphx_model_cache_dir": "{folder}"},
    ),
    Provider("ROCMExecutionProvider", document=_ORT + "ROCm-ExecutionProvider.html", devices={"gpu": {}}),
    Provider(
        "VitisAIExecutionProvider",
        document="https://ryzenai.docs.amd.com/en/latest/modelrun.html",
        devices={"npu": {}},
        keeps="cache-folder",
        cache_options={"cache_dir": "{folder}", "cache_key": "model"},
    ),
    Provider(
        "NnapiExecutionProvider",
        document=_ORT + "NNAPI-ExecutionProvider.html",
        devices={"npu": {}},  # which processor of the phone runs it is Android's choice
        known_options=frozenset(),
    ),
    Provider(
        "XnnpackExecutionProvider",
        document=_ORT + "Xnnpack-ExecutionProvider.html",
        devices={"cpu": {}},
        known_options=frozenset({"intra_op_num_threads"}),
    ),
    Provider(
        "RknpuExecutionProvider",
        document=_ORT + "community-maintained/RKNPU-ExecutionProvider.html",
        devices={"npu": {}},
        known_options=frozenset(),
        runs_one_at_a_time=True,  # rknpu_execution_provider.cc: one executor and its shapes for all threads, without a lock
    ),
    Provider(
        "WebGpuExecutionProvider",
        document=_ORT + "WebGPU-ExecutionProvider.html",
        devices={"gpu": {}},
        # Those of the document, and what the library of onnxruntime-ep-webgpu 0.4.0 has beside.
        known_options=_names(
            """
            preferredLayout enableGraphCapture enableInt64 multiRotaryCacheConcatOffset forceCpuNodeNames
            enablePIXCapture deviceId adapterIndex dawnBackendType powerPreference webgpuInstance webgpuDevice
            dawnProcTable preserveDevice validationMode maxStorageBufferBindingSize storageBufferCacheMode
            uniformBufferCacheMode queryResolveBufferCacheMode defaultBufferCacheMode enableRobustness
            kvCacheQuantizationBits maxNumPendingDispatches sessionBufferPoolGenerations
            """
        ),
    ),
    Provider(
        "ACLExecutionProvider",
        document=_ORT + "community-maintained/ACL-ExecutionProvider.html",
        devices={"cpu": {}},
        known_options=frozenset({"enable_fast_math"}),
    ),
    Provider(
        "DnnlExecutionProvider",
        document=_ORT + "oneDNN-ExecutionProvider.html",
        devices={"cpu": {}},
    ),
)

_ROWS = {(provider.name, provider.is_plugin): provider for provider in TABLE}
