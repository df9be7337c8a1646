#!/bin/sh
# Make .aarch64/: an arm64 Debian with Python and the pinned requirements, to run the agent there by qemu's user-mode emulation.
# It shows that things work on aarch64, and nothing about speed. Needs root, mmdebstrap and qemu-user-static (Debian, Ubuntu).
set -eu
cd "$(dirname "$0")/.."
root=$PWD/.aarch64
python=${PYTHON:-python3}
handlers=/proc/sys/fs/binfmt_misc

# Children of the agent are started by their path, so the kernel itself must know what runs an arm64 program; F keeps the
# emulator open, which makes it work inside the changed root.
[ -e $handlers/register ] || mount -t binfmt_misc binfmt_misc $handlers
if [ ! -e $handlers/qemu-aarch64 ]; then
    sed 's#:/[^:]*:[A-Z]*$#:'"$(command -v qemu-aarch64-static)"':F#' /usr/lib/binfmt.d/qemu-aarch64.conf | tr -d '\n' >$handlers/register
fi

if [ ! -e "$root/made" ] || [ requirements/run.txt -nt "$root/made" ]; then
    rm -rf "$root"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Release: bookworm' | head -n 1)
    mmdebstrap --quiet --variant=extract --architectures=arm64 \
        --include=dash,libc-bin,coreutils,python3,libpython3.11,libstdc++6,libgomp1,ca-certificates bookworm "$root" "$mirror"
    ln -sf dash "$root/bin/sh"
    # shellcheck disable=SC2046  # one word each
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/run.txt \
        --target "$root/opt/site" --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none --only-binary=:all: \
        $(for glibc in 2_17 2_24 2_27 2_28 2_31 2_34; do echo --platform manylinux_${glibc}_aarch64; done) --platform manylinux2014_aarch64
    mkdir -p "$root/proc"
    touch "$root/made"
fi
