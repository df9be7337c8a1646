"""A bundle on disk is used only when every byte is what its manifest says."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from agent.bundle.manifest import Blob
from agent.bundle.reader import Bundle, open_bundle
from agent.errors import BundleError

MODEL = b"not really a model"
DATA = b"weights"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def document() -> dict[str, Any]:
    tensor = {"name": "x", "dtype": "float32", "shape": [1, 3, 4, 4]}
    variant = {"name": "fp32", "opset": 17, "inputs": [tensor], "outputs": [tensor]}
    variant["model"] = {"sha256": sha(MODEL), "size_bytes": len(MODEL)}
    variant["external_data"] = {sha(DATA): {"sha256": sha(DATA), "size_bytes": len(DATA)}}
    return {
        "schema_version": 1,
        "name": "tiny",
        "version": "1",
        "input": {"kind": "image", "width": 4, "height": 4},
        "decoder": {"model_type": "yolox"},
        "variants": [variant],
        "refused": [{"name": "int8", "reason": "lost 0.2"}],
        "a_later_builders_field": True,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    for content in (MODEL, DATA):
        (tmp_path / "blobs" / sha(content)).write_bytes(content)
    write(tmp_path, document())
    return tmp_path


def write(folder: Path, manifest: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert caught.value.where
    return str(caught.value)


def test_sound_bundle_opens(folder: Path):
    """Digest pins the manifest's bytes as they are on disk."""
    bundle = open_bundle(folder)
    assert bundle.digest == sha((folder / "manifest.json").read_bytes())
    assert bundle.model_path("fp32").read_bytes() == MODEL
    assert bundle.read_blob(bundle.manifest.variants[0].model) == MODEL


def test_refused_variant_says_why_it_is_missing(folder: Path):
    """The operator asks for int8 by name and must learn the number."""
    with pytest.raises(BundleError, match=r"left it out, lost 0\.2"):
        open_bundle(folder).model_path("int8")


def test_altered_blob_is_found(folder: Path):
    """One flipped bit changes answers silently."""
    path = folder / "blobs" / sha(MODEL)
    path.write_bytes(b"N" + MODEL[1:])
    text = refusal(folder)
    assert "altered" in text and sha(MODEL) in text and str(path) in text
    blob = Blob(sha256=sha(MODEL), size_bytes=len(MODEL))
    with pytest.raises(BundleError, match="altered"):
        open_bundle(folder, verify=False).read_blob(blob)


@pytest.mark.parametrize("content", [MODEL, DATA], ids=["model", "external data"])
def test_truncated_and_missing_blobs_are_found(folder: Path, content: bytes):
    """A copy that stopped half way; found also without reading every byte."""
    path = folder / "blobs" / sha(content)
    path.write_bytes(content[:-1])
    assert f"expected {len(content)} bytes, found {len(content) - 1}" in refusal(folder)
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(folder, verify=False).model_path("fp32")
    path.unlink()
    assert "expected a file, found nothing" in refusal(folder)


def test_wrong_folders_say_what_to_do(folder: Path, tmp_path: Path):
    """Each wrong path has its own next step."""
    assert "no such folder" in refusal(folder / "nowhere")
    (folder / "m.onnx").write_bytes(b"x")
    assert "holdfast bundle build" in refusal(folder / "m.onnx")
    recipe = folder / "recipe"
    recipe.mkdir()
    assert "no manifest.json" in refusal(recipe)
    (recipe / "bundle.yaml").write_text("name: x\n")
    assert f"holdfast bundle build {recipe}" in refusal(recipe)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(b"", "expected JSON", id="empty"),
        pytest.param(b"{", "expected JSON", id="truncated"),
        pytest.param(b"\xff\xfe\x00", "expected JSON", id="garbage"),
        pytest.param(b"[" * 100_000, "expected JSON", id="nested"),
        pytest.param(b"[]", "not valid", id="list"),
        pytest.param(b" " * 9_000_000, "expected at most", id="huge"),
        pytest.param(json.dumps({**document(), "schema_version": 2}).encode(), "found 2", id="newer"),
        pytest.param(json.dumps({**document(), "name": "../x"}).encode(), "not valid: name", id="path as name"),
        pytest.param(json.dumps({**document(), "max_p99_ms": math.nan}).encode(), "not valid: max_p99_ms", id="nan"),
    ],
)
def test_bad_manifests_are_refused(folder: Path, content: bytes, part: str):
    """Whatever is on the disk, the answer is one clear line."""
    (folder / "manifest.json").write_bytes(content)
    assert part in refusal(folder)


@pytest.mark.parametrize("name", ["../manifest.json", "A" * 64, "a" * 63, "a" * 64 + "\n", "/etc/passwd", ""])
def test_blob_names_are_nothing_but_sha256(folder: Path, name: str):
    """A name that leads elsewhere would read any file of the device."""
    manifest = document()
    manifest["variants"][0]["model"]["sha256"] = name
    write(folder, manifest)
    assert "not valid" in refusal(folder)
    bundle = Bundle(folder, open_manifest(folder), "")
    with pytest.raises(BundleError, match="64 hex digits"):
        bundle.blob_path(Blob.model_construct(sha256=name, size_bytes=1))


def open_manifest(folder: Path):
    write(folder, document())
    return open_bundle(folder, verify=False).manifest


def test_external_data_has_no_name_of_its_own(folder: Path):
    """The runtime opens the name that the model says, relative to the model."""
    manifest = document()
    manifest["variants"][0]["external_data"] = {"../../x": {"sha256": sha(DATA), "size_bytes": len(DATA)}}
    write(folder, manifest)
    assert "not named by its SHA-256" in refusal(folder)


@pytest.mark.parametrize("name", ["manifest.json", "blobs", f"blobs/{sha(MODEL)}"])
def test_links_are_refused(folder: Path, name: str):
    """A link leads out of the folder that was verified."""
    path = folder / name
    target = folder / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    assert "symbolic link" in refusal(folder)


def test_folder_in_place_of_a_blob_is_refused(folder: Path):
    """Not a traceback."""
    path = folder / "blobs" / sha(MODEL)
    path.unlink()
    path.mkdir()
    assert "expected a file, found something else" in refusal(folder)
