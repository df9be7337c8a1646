"""A model file from anywhere is read without trusting it, or refused with the next step."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from agent.errors import BundleError, OperatorError
from bundles import onnxlibrary
from bundles.modelfile import OTHER_FORMATS, read_model


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read_model(path)
    assert caught.value.hint, "every refusal says what to do next"
    assert caught.value.where == str(path)
    return str(caught.value)


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("suffix", sorted(OTHER_FORMATS))
def test_other_formats_name_their_exporter(tmp_path: Path, suffix: str):
    """Most people arrive with one of these; none is opened."""
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(_Bomb()))
    assert "files are not read" in refusal(path)


def test_pickles_are_never_loaded_whatever_their_name(tmp_path: Path):
    """A renamed checkpoint would run its author's code."""
    plain, archive = tmp_path / "plain.onnx", tmp_path / "archive.onnx"
    plain.write_bytes(pickle.dumps(_Bomb()))
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Bomb()))
    for path in (plain, archive):
        assert "pickle" in refusal(path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        pytest.param(b"", "empty", id="zero bytes"),
        pytest.param(b"\xff" * 1000, "no whole ONNX model", id="garbage"),
        pytest.param(b"\n<html>404</html>", "is a web page", id="an error page"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", id="an LFS pointer"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, part: str):
    """Broken downloads come first of all."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert part in refusal(path)


def test_missing_files_and_folders(tmp_path: Path):
    """A typing mistake."""
    assert "found nothing" in refusal(tmp_path / "none.onnx")
    (tmp_path / "folder.onnx").mkdir()
    assert "found a folder" in refusal(tmp_path / "folder.onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated_models(save, make_detector, share: float):
    """A copy that stopped half way must not be built into a bundle."""
    path = save(make_detector())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refusal(path)


@pytest.mark.parametrize("dims", [[1 << 40, 1 << 20], [-5, 3], [1 << 33]])
def test_huge_weights(save, make_detector, dims):
    """A hundred bytes can ask for terabytes."""
    made = make_detector()
    made.graph.initializer.append(TensorProto(name="huge", dims=dims, data_type=TensorProto.FLOAT))
    assert "`huge`" in refusal(save(made))


def test_huge_input(save, make_detector):
    """The same through the front door."""
    assert "about" in refusal(save(make_detector(batch=1 << 40)))


@pytest.mark.parametrize("opset", [3, 99])
def test_opsets_that_no_runtime_reads(save, make_detector, opset: int):
    """Old devices in the fleet would fail, not this one."""
    made = make_detector()
    made.opset_import[0].version = opset
    assert f"opset {opset}" in refusal(save(made))


def external(path: Path, made: onnx.ModelProto) -> Path:
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_external_data_is_taken_in_or_left_beside(tmp_path: Path, make_detector):
    """A model copied without its data is a known mistake; one with it must work."""
    path = external(tmp_path / "model.onnx", make_detector())
    inline = read_model(path)
    assert not inline.is_external
    assert np.isfinite(onnx.numpy_helper.to_array(inline.model.graph.initializer[0])).all()
    outside = read_model(path, max_inline_bytes=10)
    assert outside.external_data == {"weights.bin": tmp_path / "weights.bin"}


def test_external_data_that_is_missing_or_leads_away(tmp_path: Path, make_detector):
    """A model may not read other files of the machine."""
    path = external(tmp_path / "model.onnx", make_detector())
    (tmp_path / "weights.bin").rename(tmp_path / "real.bin")
    assert "`weights.bin` is missing" in refusal(path)
    (tmp_path / "weights.bin").symlink_to(tmp_path / "real.bin")
    assert "leads out" in refusal(path)
    for location in ("../real.bin", str(tmp_path / "real.bin"), "C:\\real.bin", ""):
        made = onnx.load_model(path, load_external_data=False)
        for tensor in made.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        other = tmp_path / "other.onnx"
        other.write_bytes(made.SerializeToString())
        assert "leads out" in refusal(other)


def test_truncated_external_data(tmp_path: Path, make_detector):
    """The model is whole, its weights are not."""
    path = external(tmp_path / "model.onnx", make_detector())
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:20])
    assert "external data" in refusal(path)


def test_only_foreign_operators(save, make_model):
    """Nothing in our runtime can run these."""
    made = make_model([helper.make_node("Magic", ["x"], ["y"], domain="acme")], [], [1], [1], "x", "y")
    made.opset_import[0].domain = "acme"
    assert "no standard operator set" in refusal(save(made))


def test_builder_without_onnx_says_what_to_install(monkeypatch, tmp_path: Path):
    """The agent is installed without it."""

    def fail(name: str):
        raise ImportError(name)

    monkeypatch.setattr(onnxlibrary.importlib, "import_module", fail)
    with pytest.raises(OperatorError, match=r"pip install onnx"):
        read_model(tmp_path / "model.onnx")
