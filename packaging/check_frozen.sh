#!/bin/sh
# Run a frozen binary's demo with no Python on the path, an empty home and an empty state folder.
set -eu
binary=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
env -i HOME="$empty" PATH=/nonexistent TMPDIR="$empty" TERM="${TERM:-dumb}" "$binary" demo --seconds 5
env -i HOME="$empty" PATH=/nonexistent TMPDIR="$empty" "$binary" device show --json >"$empty/facts.json"
grep -q fingerprint "$empty/facts.json"
# Every kind of child, and the model that devices are tried with, are found inside the binary: a virtual device is tried.
printf 'accelerators:\n  - {provider: VirtualNpuExecutionProvider, device_type: npu, name: NPU, run_ms: 5}\n' >"$empty/hardware.yaml"
printf 'device: {runtimes: ["virtual:%s/hardware.yaml"]}\n' "$empty" >"$empty/holdfast.yaml"
env -i HOME="$empty" PATH=/nonexistent TMPDIR="$empty" COLUMNS=200 "$binary" device show --config "$empty/holdfast.yaml" >"$empty/facts.txt"
grep -q '^Device *VirtualNpuExecutionProvider npu' "$empty/facts.txt"
