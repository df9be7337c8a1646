#!/bin/sh
# Run a frozen binary's demo with no Python on the path, an empty home and an empty state folder.
set -eu
binary=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
env -i HOME="$empty" PATH=/nonexistent TMPDIR="$empty" TERM="${TERM:-dumb}" "$binary" demo --seconds 5
env -i HOME="$empty" PATH=/nonexistent TMPDIR="$empty" "$binary" device show --json >"$empty/facts.json"
grep -q fingerprint "$empty/facts.json"
