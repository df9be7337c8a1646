"""The instruction-set features that matter for inference, under one name on every operating system."""

from __future__ import annotations

X86_FEATURES = frozenset({
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
    "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
})  # fmt: skip
ARM_FEATURES = frozenset({"neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2", "sme"})
ALL_FEATURES = X86_FEATURES | ARM_FEATURES

ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
"""What other systems call an architecture, and what it is called here."""
ARCHITECTURE_OF = dict.fromkeys(X86_FEATURES, "x86_64") | dict.fromkeys(ARM_FEATURES, "aarch64")
BASELINE = {"aarch64": frozenset({"neon"})}
"""What every processor of an architecture has (Arm DDI 0487, A-profile: Advanced SIMD for any 64-bit system)."""

_IMPLIES = {
    "sse4_2": ("sse4_1",), "avx": ("sse4_2",), "avx2": ("avx",), "fma": ("avx",), "f16c": ("avx",),
    "avx_vnni": ("avx2",), "avx512f": ("avx2", "fma", "f16c"), "avx512bw": ("avx512f",), "avx512vl": ("avx512f",),
    "avx512_vnni": ("avx512f",), "avx512_bf16": ("avx512f",), "avx512_fp16": ("avx512bw",),
    "amx_int8": ("amx_tile",), "amx_bf16": ("amx_tile",),
    "dotprod": ("neon",), "fp16": ("neon",), "i8mm": ("neon",), "bf16": ("neon",), "sve": ("neon",), "sve2": ("sve",),
}  # fmt: skip
"""Intel SDM volume 1, §15.3 for AVX-512; Arm DDI 0487 §A2.2 for the rest."""


def with_implied(features: frozenset[str]) -> frozenset[str]:
    """Return the features and all that they bring with them."""
    found: set[str] = set()
    waiting = list(features)
    while waiting:
        feature = waiting.pop()
        if feature not in found:
            found.add(feature)
            waiting.extend(_IMPLIES.get(feature, ()))
    return frozenset(found)
