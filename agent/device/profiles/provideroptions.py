"""The options that execution providers and ONNX Runtime's sessions know, so that a misspelt one is found before a device runs it.

Most providers ignore what they do not know: a typing error costs speed or accuracy and nobody is told. The table holds
what a profile may set, each with its document; `CHOSEN_BY_HOLDFAST` are those that follow from the device, the
candidate's threads or the folder for prepared models. The order of `PROVIDERS` is the order in which accelerators are
tried: a vendor's own provider before one that serves everybody's hardware, a compiler before a library of kernels, and one
that compiles in seconds before one that takes minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent import yamlfile

Check = Callable[[str], str | None]
"""Takes a value; returns what was expected instead, None where the value is good."""
Complaint = tuple[str, str | None]
"""What is wrong, and a hint."""

PLAIN_CPU = "CPUExecutionProvider"

_CUDA_GRAPH = "it wants inputs that stay at one address and runs from one thread only, and Holdfast gives neither"
"""ONNX Runtime, "CUDA Execution Provider", section "Using CUDA Graphs": bound inputs and outputs, no concurrent runs."""

CHOSEN_BY_HOLDFAST: Mapping[str, str] = {
    "backend_path": "write `backend_type`: the library's path differs from system to system",
    "cache_dir": "Holdfast keeps compiled models in its own state folder",
    "device_filter": "write the candidate's `device_type`",
    "device_id": "write the candidate's `device_type`",
    "device_type": "write the candidate's `device_type`",
    "enable_cuda_graph": _CUDA_GRAPH,
    "intra_op_num_threads": "write the candidate's `threads`",
    "migraphx_model_cache_dir": "Holdfast keeps compiled models in its own state folder",
    "ModelCacheDirectory": "Holdfast keeps compiled models in its own state folder",
    "num_of_threads": "write the candidate's `threads`",
    "nv_runtime_cache_path": "Holdfast keeps compiled models in its own state folder",
    "performance_preference": "each GPU is a candidate of its own, and the best is taken",
    "trt_cuda_graph_enable": _CUDA_GRAPH,
    "trt_engine_cache_enable": "Holdfast keeps compiled models in its own state folder",
    "trt_engine_cache_path": "Holdfast keeps compiled models in its own state folder",
    "trt_timing_cache_enable": "Holdfast keeps compiled models in its own state folder",
    "trt_timing_cache_path": "Holdfast keeps compiled models in its own state folder",
}


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one provider."""

    document: str
    """Where its options are described."""
    options: Mapping[str, Check] = field(default_factory=dict)


def complaint(provider: str, option: str, value: str) -> Complaint | None:
    """Return what is wrong with a provider's option; None where it is good, or the provider is none that is known here."""
    if provider not in PROVIDERS:
        return None
    if option not in PROVIDERS[provider].options and option in CHOSEN_BY_HOLDFAST:
        return "is not for a profile to set", CHOSEN_BY_HOLDFAST[option]
    return _complaint(f"{provider} has no option `{option}`", option, value, PROVIDERS[provider])


def meant_by(provider: str) -> str | None:
    """Return the known provider that differs from this name in upper and lower case only; None where it is spelt right."""
    known = next((name for name in PROVIDERS if name.lower() == provider.lower()), provider)
    return None if known == provider else known


def session_complaint(option: str, value: str) -> Complaint | None:
    """Return what is wrong with an entry of ONNX Runtime's session configuration; None where it is good."""
    return _complaint(f"ONNX Runtime has no session entry `{option}`", option, value, SESSION)


def _complaint(unknown: str, option: str, value: str, known: Known) -> Complaint | None:
    check = known.options.get(option)
    if check is None:
        meant = yamlfile.nearest(option, sorted(known.options))
        return unknown, f"did you mean `{meant}`? See {known.document}" if meant else f"see {known.document}"
    expected = check(value)
    return (f"found `{value}`, expected {expected}", f"see {known.document}") if expected else None


def one_of(*words: str) -> Check:
    """Return a check for one of these words, as they are spelt."""
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def whole_number(value: str) -> str | None:
    """Return None for a number without sign, point or unit."""
    return None if re.fullmatch(r"[0-9]+", value) else "a whole number"


def shapes(value: str) -> str | None:
    """Return None for shapes by input, such as `images:1x3x320x320,mask:1x1`."""
    one = r"[^:,]+:[0-9]+(x[0-9]+)*"
    return None if re.fullmatch(rf"{one}(,{one})*", value) else "shapes such as `images:1x3x320x320`"


def _anything(value: str) -> str | None:
    return None if value else "a value"


_SWITCH = one_of("0", "1")
_TRUTH = one_of("True", "False")  # what Python's bindings take; `1` is refused by some of them
_ARENA = one_of("kNextPowerOfTwo", "kSameAsRequested")

_OPENVINO_PROPERTIES: Mapping[str, Check] = {
    "PERFORMANCE_HINT": one_of("LATENCY", "THROUGHPUT"),
    "EXECUTION_MODE_HINT": one_of("ACCURACY", "PERFORMANCE"),
    "INFERENCE_PRECISION_HINT": one_of("f32", "f16", "bf16"),
    "NUM_STREAMS": whole_number,
    "CACHE_MODE": one_of("OPTIMIZE_SIZE", "OPTIMIZE_SPEED"),
    "MODEL_PRIORITY": one_of("LOW", "MEDIUM", "HIGH", "DEFAULT"),
    "NPU_QDQ_OPTIMIZATION": one_of("YES", "NO"),
    "COMPILATION_NUM_THREADS": whole_number,
}


def openvino_config(value: str) -> str | None:
    """Return None for `load_config`'s JSON: properties by device, such as `{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}`."""
    try:
        devices = json.loads(value)
    except ValueError as error:
        return f"JSON: {error}"
    if not isinstance(devices, dict) or not all(isinstance(each, dict) for each in devices.values()):
        return 'properties by device, such as `{"CPU": {"INFERENCE_PRECISION_HINT": "f32"}}`'
    for device, properties in devices.items():
        if expected := one_of("CPU", "GPU", "NPU")(device):
            return f"{expected} in place of {device}"
        for name, setting in properties.items():
            if name not in _OPENVINO_PROPERTIES:
                return f"one of {', '.join(_OPENVINO_PROPERTIES)} in place of {name}"
            if expected := _OPENVINO_PROPERTIES[name](str(setting)):
                return f"{expected} for {name}"
    return None


_DOCS = "https://onnxruntime.ai/docs/execution-providers"

PROVIDERS: Mapping[str, Known] = {
    "NvTensorRTRTXExecutionProvider": Known(
        f"{_DOCS}/TensorRTRTX-ExecutionProvider.html",
        {
            "nv_max_workspace_size": whole_number,
            "nv_max_shared_mem_size": whole_number,
            "nv_multi_profile_enable": _TRUTH,
            "nv_profile_min_shapes": shapes,
            "nv_profile_opt_shapes": shapes,
            "nv_profile_max_shapes": shapes,
        },
    ),
    "TensorrtExecutionProvider": Known(
        f"{_DOCS}/TensorRT-ExecutionProvider.html",
        {
            "trt_max_workspace_size": whole_number,
            "trt_max_partition_iterations": whole_number,
            "trt_min_subgraph_size": whole_number,
            "trt_fp16_enable": _TRUTH,
            "trt_bf16_enable": _TRUTH,
            "trt_int8_enable": _TRUTH,
            "trt_dla_enable": _TRUTH,
            "trt_dla_core": whole_number,
            "trt_context_memory_sharing_enable": _TRUTH,
            "trt_layer_norm_fp32_fallback": _TRUTH,
            "trt_force_timing_cache": _TRUTH,
            "trt_build_heuristics_enable": _TRUTH,
            "trt_sparsity_enable": _TRUTH,
            "trt_builder_optimization_level": one_of("0", "1", "2", "3", "4", "5"),
            "trt_auxiliary_streams": one_of("-1", *map(str, range(17))),
            "trt_profile_min_shapes": shapes,
            "trt_profile_opt_shapes": shapes,
            "trt_profile_max_shapes": shapes,
        },
    ),
    "CUDAExecutionProvider": Known(
        f"{_DOCS}/CUDA-ExecutionProvider.html",
        {
            "gpu_mem_limit": whole_number,
            "arena_extend_strategy": _ARENA,
            "cudnn_conv_algo_search": one_of("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
            "cudnn_conv_use_max_workspace": _SWITCH,
            "cudnn_conv1d_pad_to_nc1d": _SWITCH,
            "do_copy_in_default_stream": _SWITCH,
            "enable_skip_layer_norm_strict_mode": _SWITCH,
            "prefer_nhwc": _SWITCH,
            "use_tf32": _SWITCH,
        },
    ),
    "MIGraphXExecutionProvider": Known(
        f"{_DOCS}/MIGraphX-ExecutionProvider.html",
        {
            "migraphx_fp16_enable": _TRUTH,
            "migraphx_bf16_enable": _TRUTH,
            "migraphx_fp8_enable": _TRUTH,
            "migraphx_exhaustive_tune": _TRUTH,
            "migraphx_mem_limit": whole_number,
            "migraphx_arena_extend_strategy": _ARENA,
        },
    ),
    "QNNExecutionProvider": Known(
        f"{_DOCS}/QNN-ExecutionProvider.html",
        {
            "backend_type": one_of("htp", "gpu", "cpu"),
            "htp_performance_mode": one_of(
                "burst", "balanced", "default", "high_performance", "high_power_saver", "low_balanced",
                "low_power_saver", "power_saver", "extreme_power_saver", "sustained_high_performance",
            ),
            "htp_graph_finalization_optimization_mode": one_of("0", "1", "2", "3"),
            "qnn_context_priority": one_of("low", "normal", "normal_high", "high"),
            "rpc_control_latency": whole_number,
            "vtcm_mb": whole_number,
            "soc_model": whole_number,
            "htp_arch": whole_number,
            "enable_htp_fp16_precision": _SWITCH,
            "offload_graph_io_quantization": _SWITCH,
        },
    ),
    "CoreMLExecutionProvider": Known(
        f"{_DOCS}/CoreML-ExecutionProvider.html",
        {
            "ModelFormat": one_of("MLProgram", "NeuralNetwork"),
            "MLComputeUnits": one_of("CPUOnly", "CPUAndNeuralEngine", "CPUAndGPU", "ALL"),
            "RequireStaticInputShapes": _SWITCH,
            "EnableOnSubgraphs": _SWITCH,
            "SpecializationStrategy": one_of("Default", "FastPrediction"),
            "AllowLowPrecisionAccumulationOnGPU": _SWITCH,
        },
    ),
    "OpenVINOExecutionProvider": Known(
        f"{_DOCS}/OpenVINO-ExecutionProvider.html",
        {
            "load_config": openvino_config,
            "reshape_input": _anything,
            "layout": _anything,
            "disable_dynamic_shapes": _TRUTH,
        },
    ),
    "RknpuExecutionProvider": Known(f"{_DOCS}/community-maintained/RKNPU-ExecutionProvider.html"),
    "DmlExecutionProvider": Known(
        f"{_DOCS}/DirectML-ExecutionProvider.html",
        {
            "disable_metacommands": _TRUTH,
        },
    ),
    "NnapiExecutionProvider": Known(f"{_DOCS}/NNAPI-ExecutionProvider.html"),
    "XnnpackExecutionProvider": Known(f"{_DOCS}/Xnnpack-ExecutionProvider.html"),
    PLAIN_CPU: Known("https://onnxruntime.ai/docs/performance/tune-performance/threading.html"),
}  # fmt: skip

SESSION = Known(
    "onnxruntime_session_options_config_keys.h in ONNX Runtime's source",
    {
        "session.intra_op.allow_spinning": _SWITCH,
        "session.intra_op.spin_duration_us": whole_number,
        "session.force_spinning_stop": _SWITCH,
        "session.dynamic_block_base": whole_number,
        "session.set_denormal_as_zero": _SWITCH,
        "session.disable_prepacking": _SWITCH,
        "session.disable_quant_qdq": _SWITCH,
        "session.enable_quant_qdq_cleanup": _SWITCH,
        "session.disable_double_qdq_remover": _SWITCH,
        "session.qdqisint8allowed": _SWITCH,
        "session.x64quantprecision": _SWITCH,
        "session.qdq_matmulnbits_accuracy_level": one_of("0", "1", "2", "3", "4"),
        "session.disable_cpu_ep_fallback": _SWITCH,
        "session.use_device_allocator_for_initializers": _SWITCH,
        "optimization.enable_gelu_approximation": _SWITCH,
        "optimization.disable_specified_optimizers": _anything,
        "mlas.enable_gemm_fastmath_arm64_bfloat16": _SWITCH,
        "mlas.disable_kleidiai": _SWITCH,
        "ep.nnapi.partitioning_stop_ops": _anything,
    },
)
