#!/bin/sh
# Prove that the agent's own dependencies resolve to wheels on every supported system.
# Windows on ARM starts at Python 3.13: PyYAML has no older wheel there.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
command -v "$uv" >/dev/null || uv=uv
resolve() {
    found=$(MACOSX_DEPLOYMENT_TARGET=14.0 "$uv" pip compile --quiet --python-platform "$1" --python-version "$2" \
        --only-binary :all: --no-header --no-annotate pyproject.toml)
    printf '%-26s Python %-5s %s\n' "$1" "$2" "$(printf '%s\n' "$found" | grep -E '^(onnxruntime|opencv|numpy)' | tr '\n' ' ')"
}
resolve x86_64-manylinux_2_28 3.11
resolve aarch64-manylinux_2_28 3.11
resolve x86_64-pc-windows-msvc 3.11
resolve aarch64-pc-windows-msvc 3.13
resolve aarch64-apple-darwin 3.11
