#!/bin/sh
# Renew requirements/*.txt: every version pinned with hashes, for every supported system at once.
# run.txt is what `make demo` needs (agent, builder, simulator); dev.txt is all that `make test` and `make freeze` need.
# accelerators-*.txt go into folders of their own (`make accelerators`), without what they depend on.
set -eu
cd "$(dirname "$0")/.."
uv=.venv/bin/uv
command -v "$uv" >/dev/null || uv=uv
pin() {
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
        pyproject.toml requirements/backend.in --extra build --extra release --extra sim "$@"
}
pin --extra train --extra dev --output-file requirements/dev.txt
pin --constraint requirements/dev.txt --output-file requirements/run.txt

alone() {
    name=$1; shift
    printf '%s\n' "$@" | "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-header --no-deps --output-file "requirements/accelerators-$name.txt" -
}
alone plugins onnxruntime-qnn onnxruntime-ep-openvino
alone openvino onnxruntime-openvino
