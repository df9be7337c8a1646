"""How a blob travels: always whole, and as a delta where that is clearly shorter."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.clock import SystemClock
from agent.update.documents import Form
from agent.update.fetching.unpacking import unpack
from bundles.release.forms import make_forms
from bundles.release.residuals import make_residual
from bundles.release.tensors import find_tensors

CHUNK_BYTES = 4096


@pytest.fixture
def forms_of(tmp_path) -> Callable[..., tuple[Form, ...]]:
    """Return a function that makes the forms of some bytes against others, and proves that each becomes the blob."""
    (tmp_path / "blobs").mkdir()

    def make(content: bytes, *bases: bytes) -> tuple[Form, ...]:
        blob, *older = (put(tmp_path, each) for each in (content, *bases))
        forms = make_forms(blob, blob.name, older, tmp_path / "blobs", CHUNK_BYTES)
        for form in forms:
            travelled = tmp_path / "blobs" / form.sha256
            assert hashlib.sha256(travelled.read_bytes()).hexdigest() == form.sha256
            base = tmp_path / form.base if form.base else None
            unpack(
                form, travelled, base, tmp_path / "output", blob.name, len(content),
                clock=SystemClock(), stop=threading.Event(),
            )  # fmt: skip
            assert (tmp_path / "output").read_bytes() == content
        return forms

    return make


def put(folder: Path, content: bytes) -> Path:
    path = folder / hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    return path


def model(weights: dict[str, np.ndarray], *, nodes: int = 1) -> bytes:
    """A model of some weights; its graph is not meant to run."""
    names = list(weights)
    graph = helper.make_graph(
        [helper.make_node("Sum", names, [f"sum{number}"], f"node{number}") for number in range(nodes)],
        "graph",
        [],
        [helper.make_tensor_value_info("sum0", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return bytes(helper.make_model(graph).SerializeToString())


def retuned(weights: dict[str, np.ndarray], scale: float, only: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    return {
        name: value if only is not None and name not in only
        else (value * (1 + scale * rng.standard_normal(value.shape))).astype(value.dtype)
        for name, value in weights.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(9)
    return {f"layer{number}": rng.standard_normal((64, 100)).astype(np.float32) for number in range(8)}


def test_whole_forms_are_there_without_any_base(forms_of):
    """A new device holds nothing: deltas can never be a requirement."""
    (form,) = forms_of(b"labels and more labels\n" * 5000)

    assert form.kind == "zstd"
    assert form.base is None
    assert form.size_bytes < 1000


def test_what_does_not_compress_travels_as_it_is(forms_of):
    """Unpacking for nothing costs a small board seconds."""
    content = np.random.default_rng(1).bytes(100_000)

    (form,) = forms_of(content)

    assert (form.kind, form.size_bytes) == ("raw", 100_000)
    assert form.sha256 == hashlib.sha256(content).hexdigest()


def test_an_empty_blob_has_a_form(forms_of):
    """Nothing can be mapped or cut into chunks there."""
    (form,) = forms_of(b"")

    assert (form.kind, form.chunks) == ("raw", ())


def test_chunks_cover_the_file_that_travels(forms_of, tmp_path):
    """Each chunk is checked on arrival: a wrong list would refuse every download."""
    (form,) = forms_of(np.random.default_rng(1).bytes(3 * CHUNK_BYTES + 1))

    travelled = (tmp_path / "blobs" / form.sha256).read_bytes()
    pieces = [travelled[begin : begin + CHUNK_BYTES] for begin in range(0, len(travelled), CHUNK_BYTES)]
    assert form.chunks == tuple(hashlib.sha256(piece).hexdigest() for piece in pieces)
    assert len(form.chunks) == 4


def test_retuned_weights_travel_as_a_residual(forms_of, weights):
    """All weights moved by a percent: no byte delta helps there, the difference of the numbers does."""
    first, *_, last = forms_of(model(retuned(weights, 0.01)), model(weights))

    assert first.kind == "residual"
    assert first.size_bytes < 0.7 * last.size_bytes
    assert last.base is None


def test_one_changed_layer_costs_about_that_layer(forms_of, weights):
    """A frozen backbone is the common case of a customer's own training."""
    new = model(retuned(weights, 0.01, only=["layer7"]))

    first, *_ = forms_of(new, model(weights))

    assert first.size_bytes < len(new) / 8


def test_tensors_are_found_again_when_names_order_and_graph_changed(weights):
    """Exporters number weights anew, and sort them as they like."""
    new = retuned(weights, 0.01)
    renamed = {f"onnx::Conv_{index}": value for index, value in enumerate(new.values())}
    shuffled = {name: new[name] for name in reversed(new)}
    base = model(weights)
    plain, *others = (
        make_residual(base, each) for each in (model(new), model(renamed), model(shuffled), model(new, nodes=30))
    )

    assert plain is not None
    for other in others:
        assert other is not None
        assert 0.98 * len(plain) < len(other) < 1.02 * len(plain)


def test_weights_beside_the_model_are_compared_by_place(forms_of, weights):
    """External data has no structure of its own."""
    old = b"".join(value.tobytes() for value in weights.values())
    new = b"".join(value.tobytes() for value in retuned(weights, 0.01).values())

    first, *_ = forms_of(new, old)

    assert first.kind == "residual"
    assert first.size_bytes < 0.7 * len(new)


def test_inserted_bytes_travel_as_a_patch(forms_of):
    """A file that only grew in the middle lines up nowhere by place."""
    old = np.random.default_rng(2).bytes(60_000)

    first, last = forms_of(old[:30_000] + b"inserted" * 3 + old[30_000:], old)

    assert (first.kind, last.kind) == ("patch", "raw")
    assert first.size_bytes < 200


def test_a_delta_that_gains_nothing_is_not_offered(forms_of, weights):
    """A full retrain shares nothing; its delta would only take space in the repository."""
    rng = np.random.default_rng(77)
    unlike = {
        name: rng.integers(0, 1 << 32, value.shape, np.uint32).view(np.float32) for name, value in weights.items()
    }

    assert len(forms_of(model(unlike), model(weights))) == 1


def test_a_delta_that_gains_little_is_not_offered(forms_of):
    """A few per cent of a large file are not worth a form that the repository keeps for ever."""
    old, new = np.random.default_rng(1).bytes(300_000), np.random.default_rng(2).bytes(300_000)

    assert len(forms_of(new + old[:10_000], old)) == 1
    assert len(forms_of(new + old[:30_000], old)) == 2


def test_small_blobs_have_no_deltas(forms_of):
    """Each form costs every device some hundred bytes of document."""
    old = np.random.default_rng(1).bytes(3000)

    assert len(forms_of(old + b"!", old)) == 1


def test_at_most_one_delta_to_each_base_and_none_to_itself(forms_of, weights):
    """A device picks by what it holds; two ways from the same base are one too many."""
    new, older, oldest = model(retuned(weights, 0.001)), model(weights), model(retuned(weights, 0.01))

    forms = forms_of(new, older, oldest, new)

    bases = [form.base for form in forms]
    assert sorted(bases, key=str) == sorted(
        [None, *(hashlib.sha256(each).hexdigest() for each in (older, oldest))], key=str
    )
    assert [form.size_bytes for form in forms] == sorted(form.size_bytes for form in forms)


def test_the_same_files_give_the_same_forms(tmp_path, weights):
    """Two people who publish on two machines must be able to sign the same document."""
    blob, base = put(tmp_path, model(retuned(weights, 0.01))), put(tmp_path, model(weights))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    one, two = (make_forms(blob, blob.name, [base], tmp_path / name, CHUNK_BYTES) for name in ("one", "two"))

    assert one == two
    assert len(one) == 2


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 60_000), st.binary(max_size=40), st.integers(0, 200)), max_size=6),
    st.integers(0, 3),
)
def test_any_edit_of_a_model_comes_back(forms_of, weights, edits, seed):
    """Flipped, inserted and removed bytes, in the graph or in the weights: whatever forms there are give the file back."""
    old = model({name: weights[name] for name in list(weights)[: seed + 1]})
    new = bytearray(old)
    for at, inserted, removed in edits:
        new[at : at + removed] = inserted

    forms_of(bytes(new), old)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_bytes_that_are_no_onnx_have_no_tensors_or_tensors_inside_the_file(noise, at, value):
    """A model file may come from anywhere: looking for its weights must neither fail nor leave the file."""
    damaged = bytearray(model({"a": np.arange(32, dtype=np.float32)}))
    damaged[at % len(damaged)] = value
    for content in (noise, bytes(damaged)):
        assert all(0 <= each.begin < each.end <= len(content) for each in find_tensors(content))


def test_tensors_in_nodes_and_subgraphs_are_found():
    """Constants and the bodies of If and Loop hold weights too."""
    constant = numpy_helper.from_array(np.arange(64, dtype=np.float32), "inner")
    inner = helper.make_graph([], "body", [], [], [constant])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner)
    value = helper.make_node("Constant", [], ["x"], value=numpy_helper.from_array(np.ones(40, np.float32)))
    packed = helper.make_tensor("packed", TensorProto.FLOAT, [20], np.ones(20, np.float32))  # float_data, not raw_data
    content = helper.make_model(helper.make_graph([value, node], "graph", [], [], [packed])).SerializeToString()

    tensors = find_tensors(content)

    assert [content[each.begin : each.end] for each in tensors] == [
        np.ones(40, np.float32).tobytes(), np.arange(64, dtype=np.float32).tobytes(), np.ones(20, np.float32).tobytes(),
    ]  # fmt: skip
    assert onnx.load_from_string(content).graph.initializer[0].name == "packed"
