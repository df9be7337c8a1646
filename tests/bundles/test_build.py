"""From a model to a bundle: real models, variants judged by number, and nothing half written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from agent.bundle.reader import blobs_of, open_bundle
from agent.device.planning.plan import Candidate
from agent.device.runtimes.providers import CPU_PROVIDER
from agent.errors import BundleError, OperatorError
from agent.inference import golden
from agent.inference.answers import Classes, Detections
from agent.inference.model import open_model
from bundles import build as building
from bundles.build import BuildReport, build
from bundles.options import Options
from bundles.samples import SampleFile


def verdicts(report: BuildReport) -> dict[str, str]:
    return {each.name: each.verdict for each in report.variants}


@pytest.fixture
def labelled(save, make_classifier) -> Path:
    return save(make_classifier(), "colours.onnx")


OPTIONS = Options(normalise="unit", labels=("a", "b", "c", "d"))


def with_samples(pictures: Path, **fields) -> Options:
    return Options(normalise="unit", labels=("a", "b", "c", "d"), calibration=pictures, golden=pictures, **fields)


def test_real_face_detector(shared_data: Path, tmp_path: Path):
    """No key is typed; the bundle is whole, faster in form, smaller in INT8, and its golden answers are right."""
    images = shared_data / "images"
    source = shared_data / "models" / "ultraface-version-RFB-320.onnx"
    report = build(source, tmp_path / "faces", Options(name="faces", calibration=images, golden=images))
    bundle = open_bundle(tmp_path / "faces")
    manifest = bundle.manifest
    assert bundle.digest == report.digest
    assert manifest.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert [variant.name for variant in manifest.variants] == ["fp32", "int8"]
    fp32, int8 = manifest.variants
    assert fp32.inputs[0].shape == (1, 3, 240, 320) and fp32.opset == 9 and "pytorch" in fp32.producer
    assert int8.model.size_bytes < 0.4 * fp32.model.size_bytes
    assert int8.accuracy is not None and int8.accuracy.drop <= 0.01 and fp32.accuracy is None
    assert [refused.name for refused in manifest.refused] == ["int8-dynamic"]
    assert report.parity < 1e-5
    assert any("weights taken off" in line for line in report.repairs)

    model = open_model(bundle, Candidate(CPU_PROVIDER, "cpu", "fp32", 1))
    counts = []
    for sample in manifest.golden:
        frame = SampleFile(bundle.blob_path(sample.input), manifest.input).read()
        expected = golden.from_json(bundle.read_blob(sample.expected))
        found = model.decode(model.infer(model.prepare(frame)), frame)
        assert isinstance(found, Detections)
        assert golden.agreement(expected, found, golden.EXACT, threshold=0.7) == 1
        counts.append(len(found))
    assert len(counts) == 3 and sum(counts) > 0


def test_variant_that_misses_its_gate_is_left_out_with_its_number(save, make_fragile, colours: Path, tmp_path: Path):
    """Nor does leaving half of its layers in float save it; that must never reach a device unseen."""
    path = save(make_fragile(has_third=False))
    options = replace(OPTIONS, calibration=colours, golden=colours, variants=("fp32", "int8"))
    report = build(path, tmp_path / "objects", options)
    manifest = open_bundle(tmp_path / "objects").manifest
    assert [variant.name for variant in manifest.variants] == ["fp32"]
    (refused,) = manifest.refused
    assert refused.name == "int8" and refused.accuracy is not None
    assert refused.accuracy.drop > 0.01 == refused.accuracy.gate
    assert f"drops by {refused.accuracy.drop:.4g}" in refused.reason
    assert verdicts(report)["int8"] == refused.reason
    tries = report.variants[1].tries
    assert len(tries) == 3 and all(each.failure and each.size_bytes for each in tries), "the trade-off is shown"
    blobs = {path.name for path in (tmp_path / "objects" / "blobs").iterdir()}
    assert blobs == {blob.sha256 for blob in blobs_of(manifest)}, "what was left out leaves no file"


def test_gate_is_the_recipes_word(labelled: Path, pictures: Path, tmp_path: Path, monkeypatch):
    """One and the same loss is in or out by the gate alone."""
    from bundles import accuracy

    def half(reference, answers, truth, decoder, gate):
        return accuracy.Accuracy(metric="top1_agreement", value=0.95, drop=0.05, gate=gate)

    monkeypatch.setattr(accuracy, "judge", half)
    for gate, expected in ((0.05, ["fp32", "int8", "int8-dynamic"]), (0.049, ["fp32"])):
        build(labelled, tmp_path / "out", with_samples(pictures, max_drop=gate))
        assert [each.name for each in open_bundle(tmp_path / "out").manifest.variants] == expected


def test_every_variant_of_a_dense_model(labelled: Path, pictures: Path, tmp_path: Path):
    """Each is a model of its own that opens and answers."""
    report = build(labelled, tmp_path / "out", with_samples(pictures, max_drop=1))
    bundle = open_bundle(tmp_path / "out")
    assert [each.name for each in bundle.manifest.variants] == ["fp32", "int8", "int8-dynamic"]
    assert report.golden_count == 8
    for variant in bundle.manifest.variants:
        model = open_model(bundle, Candidate(CPU_PROVIDER, "cpu", variant.name, 1))
        frame = SampleFile(bundle.blob_path(bundle.manifest.golden[0].input), bundle.manifest.input).read()
        assert isinstance(model.decode(model.infer(model.prepare(frame)), frame), Classes)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({}, "no golden samples to judge it on", id="neither"),
        pytest.param({"calibration": True}, "no golden samples to judge it on", id="no golden"),
        pytest.param({"golden": True}, "no calibration samples", id="no calibration"),
    ],
)
def test_nothing_is_quantized_without_samples(labelled, pictures, tmp_path, fields, reason):
    """Quantizing without the task metric is a known mistake."""
    options = Options(normalise="unit", variants=("fp32", "int8"), **dict.fromkeys(fields, pictures))
    report = build(labelled, tmp_path / "out", options)
    assert reason in verdicts(report)["int8"]
    assert [each.name for each in open_bundle(tmp_path / "out").manifest.variants] == ["fp32"]


def test_golden_pictures_without_objects_prove_nothing(save, make_detector, pictures: Path, tmp_path: Path):
    """Two models that both see nothing agree perfectly."""
    path = save(make_detector(columns=8))
    options = Options(
        model_type="yolox", labels=("a", "b", "c"), calibration=pictures, golden=pictures, variants=("fp32", "int8")
    )
    made = onnx.load_model(path)
    for tensor in made.graph.initializer:
        if tensor.name == "m":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(list(tensor.dims), np.float32), "m"))
    onnx.save_model(made, path)
    report = build(path, tmp_path / "out", options)
    assert "fp32 finds nothing in the golden samples" in verdicts(report)["int8"]


def test_same_sources_same_digest_in_another_process(labelled: Path, pictures: Path, tmp_path: Path):
    """A bundle can be built again and compared; hash seeds and times must not matter."""
    report = build(labelled, tmp_path / "first", with_samples(pictures, max_drop=1))
    script = (
        "import sys; from pathlib import Path; from bundles.build import build; from bundles.options import Options\n"
        "pictures = Path(sys.argv[2]); o = Options(normalise='unit', labels=('a','b','c','d'), calibration=pictures, "
        "golden=pictures, max_drop=1)\nprint(build(Path(sys.argv[1]), Path(sys.argv[3]), o).digest)"
    )
    for seed in ("1", "2"):
        other = subprocess.run(
            [sys.executable, "-c", script, str(labelled), str(pictures), str(tmp_path / f"other{seed}")],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert other.stdout.strip() == report.digest


def test_manifest_is_canonical(labelled: Path, tmp_path: Path):
    """One spelling, so that one bundle has one digest."""
    build(labelled, tmp_path / "out", OPTIONS)
    content = (tmp_path / "out" / "manifest.json").read_bytes()
    assert (
        content == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )


def test_tampered_model_is_found(labelled: Path, tmp_path: Path):
    """From the builder's own output to the reader's refusal."""
    build(labelled, tmp_path / "out", OPTIONS)
    path = open_bundle(tmp_path / "out").model_path("fp32")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="altered"):
        open_bundle(tmp_path / "out")


def test_failed_build_leaves_the_old_bundle_untouched(labelled: Path, pictures: Path, tmp_path: Path):
    """And nothing else beside it."""
    before = build(labelled, tmp_path / "out" / "bundle", OPTIONS).digest
    (pictures / "3.png").write_bytes(b"no picture")
    with pytest.raises(BundleError, match=r"3\.png"):
        build(labelled, tmp_path / "out" / "bundle", with_samples(pictures))
    assert open_bundle(tmp_path / "out" / "bundle").digest == before
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bundle"]


def test_rebuild_replaces_only_bundles(labelled: Path, tmp_path: Path):
    """A slip of the pen after --output must not cost a folder."""
    build(labelled, tmp_path / "out", OPTIONS)
    build(labelled, tmp_path / "out", Options(normalise="unit", version="2"))
    assert open_bundle(tmp_path / "out").manifest.version == "2"
    other = tmp_path / "documents"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(OperatorError, match="something else than a built bundle"):
        build(labelled, other, OPTIONS)
    assert (other / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(labelled: Path, tmp_path: Path):
    """Said before anything is made."""
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OperatorError, match="cannot be written"):
        build(labelled, tmp_path / "locked" / "out", OPTIONS)


def test_output_below_a_file(labelled: Path, tmp_path: Path):
    """The same for a path that cannot be."""
    with pytest.raises(OperatorError, match="cannot be written"):
        build(labelled, labelled / "out", OPTIONS)


def test_model_that_gives_nan_is_refused(save, make_model, tmp_path: Path):
    """It would look like a quiet camera."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Div", ["f", "z"], ["d"]),
        helper.make_node("Sub", ["d", "d"], ["y"]),
    ]
    zero = numpy_helper.from_array(np.zeros(3, np.float32), "z")
    path = save(make_model(nodes, [zero], [1, 3, 8, 8], [1, 3], "x", "y"))
    with pytest.raises(BundleError, match="NaN or infinity"):
        build(path, tmp_path / "out", Options(normalise="unit"))


def test_operator_that_no_runtime_has_is_refused_with_the_models_own_name(save, make_model, tmp_path: Path):
    """Not that of a file in a folder that is gone when the message is read."""
    from onnx import helper

    made = make_model([helper.make_node("MyAct", ["x"], ["y"], domain="acme")], [], [1, 4], [1, 4], "x", "y")
    made.opset_import.append(helper.make_opsetid("acme", 1))
    path = save(made)
    with pytest.raises(BundleError, match="acme:MyAct") as caught:
        build(path, tmp_path / "out", Options())
    assert caught.value.where == str(path) and "blobs" not in str(caught.value)


@pytest.mark.parametrize(
    ("stem", "name"),
    [("Über groß (2)", "uber-gross--2-"), ("模型", "model"), ("..", "model")],
    ids=["umlauts", "han", "dots"],
)
def test_bundle_is_named_after_a_file_of_any_name(labelled: Path, tmp_path: Path, stem: str, name: str):
    """Its name goes into topics and paths, so it keeps to few letters."""
    path = labelled.rename(labelled.with_name(f"{stem}.onnx"))
    assert build(path, tmp_path / "out", OPTIONS).name == name


@pytest.mark.parametrize(("scale", "is_undecided"), [(1e-3, True), (30.0, False)], ids=["undecided", "decided"])
def test_near_ties_are_no_excuse_where_there_is_nothing_else(
    save, make_classifier, pictures: Path, tmp_path: Path, monkeypatch, scale: float, is_undecided: bool
):
    """Pixels normalised wrongly give such scores; a variant that always says something else would pass the gate."""
    made = make_classifier()
    for tensor in made.graph.initializer:
        if tensor.name in {"g", "c"}:
            values = onnx.numpy_helper.to_array(tensor) * scale
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    real = building.quantize.StaticQuantizer.quantize

    def wrong(self, left=()):
        quantized = real(self, left)
        quantized.graph.node[-1].output[0] = "turned"
        index = onnx.numpy_helper.from_array(np.array([3, 2, 1, 0], np.int64), "index")
        quantized.graph.initializer.append(index)
        quantized.graph.node.append(onnx.helper.make_node("Gather", ["turned", "index"], ["y"], "wrong", axis=1))
        return quantized

    monkeypatch.setattr(building.quantize.StaticQuantizer, "quantize", wrong)
    report = build(save(made), tmp_path / "out", with_samples(pictures, variants=("int8",)))
    assert "top1_agreement drops by" in verdicts(report)["int8"]
    assert any("fp32 is undecided" in line for line in report.assumptions) is is_undecided
    only = [line for line in report.assumptions if "golden samples: a variant that always said so" in line]
    assert len(only) == 1, "all pictures of this test look alike to it, and that is said"


def test_quantized_model_is_shipped_as_it_is(save, make_classifier, pictures: Path, tmp_path: Path):
    """No tool quantizes twice; each of them would fail in words of its own."""
    built = build(save(make_classifier()), tmp_path / "first", with_samples(pictures, variants=("int8",)))
    bundle = open_bundle(built.folder)
    shutil.copy(bundle.model_path("int8"), source := tmp_path / "quantized.onnx")
    report = build(source, tmp_path / "second", with_samples(pictures))
    said = verdicts(report)
    assert "is quantized already" in said["int8"] and "is quantized already" in said["int8-dynamic"]
    assert any("`fp32` is a name for the form that it came in" in line for line in report.assumptions)
    assert open_bundle(report.folder).manifest.decoder.output_raw_scores is False


def test_repair_that_changes_answers_is_caught(labelled: Path, tmp_path: Path, monkeypatch):
    """The builder does not trust itself either."""
    real = building.repair

    def wrong(*args):
        result = real(*args)
        for tensor in result.model.graph.initializer:
            if tensor.name == "c":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 1, 0, 0], np.float32), "c"))
        return result

    monkeypatch.setattr(building, "repair", wrong)
    with pytest.raises(BundleError, match="differs from the file as shipped"):
        build(labelled, tmp_path / "out", OPTIONS)


def test_large_models_keep_their_data_in_files_of_their_own(make_classifier, tmp_path: Path, monkeypatch):
    """Above protobuf's 2 GB; here made small. The data has its SHA-256 for a name, in the model too."""
    path = tmp_path / "big.onnx"
    onnx.save_model(make_classifier(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    monkeypatch.setattr(building, "read_model", lambda p: REAL_READ(p, max_inline_bytes=10))
    report = build(path, tmp_path / "out", OPTIONS)
    shutil.move(tmp_path / "out", tmp_path / "moved")
    (tmp_path / "w.bin").unlink()
    bundle = open_bundle(tmp_path / "moved")
    (variant,) = bundle.manifest.variants
    assert list(variant.external_data) == [blob.sha256 for blob in variant.external_data.values()] != []
    model = open_model(bundle, Candidate(CPU_PROVIDER, "cpu", "fp32", 1))
    model.warm_up()
    assert verdicts(report)["fp32"] == "the reference"


REAL_READ: Callable = building.read_model


def test_signal_recipe(make_model, tmp_path: Path):
    """Nothing in the builder knows that pictures exist."""
    from onnx import helper

    nodes = [
        helper.make_node("ReduceMax", ["window"], ["top"], axes=[1, 2], keepdims=0),
        helper.make_node("Identity", ["top"], ["score"]),
    ]
    onnx.save_model(make_model(nodes, [], ["N", 16, 1], ["N"], "window", "score"), tmp_path / "model.onnx")
    (tmp_path / "golden").mkdir()
    for index in range(4):
        np.save(tmp_path / "golden" / f"{index}.npy", np.full((16, 1), index, np.float32))
    truth = {f"{index}.npy": index > 1 for index in range(4)}
    (tmp_path / "golden" / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "bundle.yaml").write_text(
        "name: peaks\nmodel: model.onnx\ngolden: golden\nvariants: [fp32]\n"
        "input: {kind: signal, rate_hz: 10, window_size: 16, hop_size: 8}\n"
        "decoder: {model_type: anomaly, anomaly_threshold: 1.5}\n"
    )
    report = build(tmp_path)
    assert report.folder == tmp_path / "built"
    bundle = open_bundle(tmp_path / "built")
    answers = [golden.from_json(bundle.read_blob(sample.expected)) for sample in bundle.manifest.golden]
    assert [answer.value for answer in answers] == [0, 1, 2, 3]


def test_conv1d_of_pytorch_gets_its_channels_first(make_model, tmp_path: Path):
    """Its input is (1, channels, values); the builder sees that, and the golden answers are those of each channel."""
    from onnx import helper

    nodes = [helper.make_node("ReduceMean", ["window"], ["y"], axes=[2], keepdims=0)]
    onnx.save_model(make_model(nodes, [], [1, 2, 16], [1, 2], "window", "y"), tmp_path / "model.onnx")
    (tmp_path / "golden").mkdir()
    np.save(tmp_path / "golden" / "0.npy", np.tile(np.array([[0.2, 0.8]], np.float32), (16, 1)))
    (tmp_path / "bundle.yaml").write_text(
        "name: means\nmodel: model.onnx\ngolden: golden\nvariants: [fp32]\n"
        "input: {kind: signal, rate_hz: 10, window_size: 16, hop_size: 8, channels: [left, right]}\n"
        "decoder: {labels: [left, right]}\n"
    )
    report = build(tmp_path)
    bundle = open_bundle(report.folder)
    (answer,) = (golden.from_json(bundle.read_blob(sample.expected)) for sample in bundle.manifest.golden)
    assert isinstance(answer, Classes) and answer.scores == pytest.approx([0.8, 0.2])
    assert any(line.startswith("layout NCW") for line in report.assumptions)


def test_one_folder_of_samples_is_split_so_that_variants_are_judged_on_others(labelled: Path, tmp_path: Path):
    """A data scientist has one folder; judging on what calibrated would flatter, and not judging at all loses INT8."""
    folder = tmp_path / "one-folder"
    folder.mkdir()
    for number in range(25):
        picture = np.full((16, 16, 3), number * 10, np.uint8)
        picture[:, number % 4 * 4 : number % 4 * 4 + 4] = 255
        cv2.imwrite(str(folder / f"{number:02d}.png"), picture)
    report = build(labelled, tmp_path / "built", replace(OPTIONS, calibration=folder))
    assert report.golden_count == 5
    assert any("5 of the calibration samples judge" in line for line in report.assumptions)
