"""What a version says of itself: typed, validated, and refused by name where it is not."""

import dataclasses
import json
from dataclasses import replace
from typing import Any

import pytest

from lifelist.exporter.errors import BadManifest, Corrupt
from lifelist.exporter.manifest import (
    BiasCorrection,
    Check,
    ClassEntry,
    FileEntry,
    Manifest,
    Parity,
    Preprocess,
    _digest,
)

FULL = Manifest(
    version=4,
    created_at="2026-01-01T00:00:00+00:00",
    kind="enrolment",
    parent=3,
    method="bic",
    network="resnet32",
    embedding_dim=64,
    default_answer="nearest_mean",
    preprocess=Preprocess(32, 32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
    classes=(
        ClassEntry(0, "heron", "trained", 0),
        ClassEntry(3, "Eichelhäher", "trained", 1),
        ClassEntry(7, "ワシ", "enrolled", 2),
    ),
    files=(FileEntry.of("model.onnx", b"m"), FileEntry.of("class_means.faiss", b"i")),
    bias=BiasCorrection(0.6, -0.4, 1, 2),
    parity=Parity(100, 1e-6, 1.0, 1e-7),
    gate=(Check("old_accuracy", True, 0.91, 0.02, "0.91, live has 0.92"),),
    options={"epochs": 3, "seeds": (1, 2), "batch": 128},
    results={"linear": {"all": 0.9, "per_class": {3: 0.5, 10: 0.7, 9: 1}}},
    exemplars_sha256="a" * 64,
    software={"torch": "2.15"},
)


def as_stored(**changes: Any) -> str:
    """FULL as JSON with some fields changed, and a digest that fits: what a careful forger would write."""
    value = {**json.loads(FULL.as_json()), **changes}
    del value["digest"]
    return json.dumps({**value, "digest": _digest(value)})


def test_what_is_written_is_what_is_read_and_has_the_same_digest() -> None:
    again = Manifest.from_json(FULL.as_json())
    assert again.as_json() == FULL.as_json()
    assert again.digest == FULL.digest
    assert (again.classes, again.files, again.bias, again.gate) == (FULL.classes, FULL.files, FULL.bias, FULL.gate)
    assert again.options["seeds"] == [1, 2]  # JSON knows no tuple
    assert again.results["linear"]["per_class"]["10"] == 0.7
    assert replace(FULL, method="wa").digest != FULL.digest


def test_what_came_since_a_version_was_made_is_absent_from_it() -> None:
    value = json.loads(FULL.as_json())
    for name in ("digest", "known_scores", "int8"):
        del value[name]
    assert Manifest.from_json(json.dumps({**value, "digest": _digest(value)})) == Manifest.from_json(FULL.as_json())


def test_a_whole_number_where_a_fraction_may_stand_is_that_fraction() -> None:
    written = replace(FULL, gate=(Check("parity_top1", True, 1, 1, ""),))
    read = Manifest.from_json(written.as_json())
    assert (read, read.digest) == (replace(read, gate=(Check("parity_top1", True, 1.0, 1.0, ""),)), written.digest)


def test_layout_is_free_and_content_is_not() -> None:
    stored = json.loads(FULL.as_json())
    assert Manifest.from_json(json.dumps(stored)) == Manifest.from_json(FULL.as_json())
    stored["classes"][0]["name"] = "Heron"
    with pytest.raises(Corrupt, match=r"has sha256 .*, and it says .* of itself: it was altered"):
        Manifest.from_json(json.dumps(stored))


def test_a_manifest_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.version = 5


def test_rows_of_the_last_layer_are_the_trained_classes_in_order() -> None:
    assert [entry.id for entry in FULL.trained] == [0, 3]
    assert FULL.newest == {7}
    assert replace(FULL, classes=FULL.classes[:1], bias=None).newest == frozenset()
    retired = replace(FULL.classes[-1], retired=True)
    assert replace(FULL, classes=(*FULL.classes[:-1], retired)).newest == frozenset()  # and no older one is new again
    assert FULL.passed
    assert not replace(FULL, gate=(*FULL.gate, Check("classes", False, None, None, "")), version=0).passed


def test_a_file_is_looked_up_by_name_and_the_message_names_those_there_are() -> None:
    assert FULL.file("model.onnx").size == 1
    with pytest.raises(Corrupt, match=r"version 4 has no file 'x'; it has \['model\.onnx', 'class_means\.faiss'\]"):
        FULL.file("x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, r"manifest has unknown fields \['surprise'\] and lacks \[\]"),
        ({"version": "4"}, r"manifest\.version should be int, not '4'"),
        ({"version": True}, r"manifest\.version should be int, not True"),
        ({"version": 4.0}, r"manifest\.version should be int, not 4\.0"),
        ({"version": -1}, "both numbers count up"),
        ({"parent": "3"}, r"manifest\.parent should be int"),
        ({"kind": "other"}, r"manifest\.kind should be one of \('increment', 'enrolment', 'change'\), not 'other'"),
        ({"default_answer": "guess"}, r"manifest\.default_answer should be one of"),
        ({"classes": {}}, r"manifest\.classes should be a list, not \{\}"),
        ({"classes": []}, "version 4 names no class"),
        ({"classes": [3]}, r"manifest\.classes\[0\] should be an object, not 3"),
        ({"options": []}, r"manifest\.options should be dict, not \[\]"),
        ({"software": "torch"}, r"manifest\.software should be dict"),
        ({"bias": {"alpha": "1", "beta": 0, "first_row": 1, "last_row": 2}}, r"manifest\.bias\.alpha should be float"),
        ({"bias": {"alpha": 1, "beta": 0, "first_row": 1}}, r"manifest\.bias has unknown .* lacks \['last_row'\]"),
        ({"bias": {"alpha": 1, "beta": 0, "first_row": 2, "last_row": 2}}, "0 ≤ first_row < last_row"),
        (
            {"bias": {"alpha": 1, "beta": 0, "first_row": 1, "last_row": 3}},
            "has 2 rows in its last layer, and corrects",
        ),
        ({"preprocess": {"size": 32, "resize_to": 32, "mean": [0, 0], "std": [1, 1, 1]}}, "mean should be a list of 3"),
        ({"files": [{"name": "../x", "size": 1, "sha256": "a" * 64}]}, r"a file is named '\.\./x'.*no folders"),
        ({"files": [{"name": "x", "size": 1, "sha256": "A" * 64}]}, "64 lower-case hexadecimal"),
        ({"files": [{"name": "x", "size": -1, "sha256": "a" * 64}]}, "a size is at least 0"),
        ({"schema": 2}, "has manifest schema 2; this program reads 1"),
    ],
)
def test_a_wrong_field_is_named_even_if_the_digest_fits(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        Manifest.from_json(as_stored(**changes))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"version": 1}', b"\xff\xfe", "null"])
def test_what_is_no_manifest_at_all_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadManifest, match=r"not JSON|an object with its own 'digest'"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([(0, "a", "trained", 0), (0, "b", "trained", 0)], r"lists a class id twice: \[0, 0\]"),
        ([(0, "a", "trained", 0), (1, "a", "trained", 0)], "lists a class name twice"),
        ([(0, "a", "enrolled", 1), (1, "b", "trained", 0)], "trained classes come first, then enrolled"),
        ([(0, "a", "retired", 0)], "has state 'retired'; allowed"),
        ([(-1, "a", "trained", 0)], "both count from 0"),
        ([(0, "", "trained", 0)], "a name has 1 to 100 characters"),
        ([(0, "a" * 101, "trained", 0)], "a name has 1 to 100 characters"),
        ([(0, " a", "trained", 0)], "no space at either end"),
        ([(0, "a\nb", "trained", 0)], "without control characters"),
        ([(0, "e\u0301", "trained", 0)], "form NFC"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes: list[tuple[Any, ...]], message: str) -> None:
    with pytest.raises(BadManifest, match=message):
        replace(FULL, bias=None, classes=tuple(ClassEntry(*entry) for entry in classes))


def test_a_file_listed_twice_is_refused() -> None:
    with pytest.raises(BadManifest, match="lists a file twice"):
        replace(FULL, files=(FileEntry.of("a", b""), FileEntry.of("a", b"1")))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes"])
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(BadManifest, match="JSON values only, and no NaN or infinity"):
        replace(FULL, results={"linear": {"all": value}}).as_json()


def test_bytes_are_verified_by_size_and_digest() -> None:
    entry = FileEntry.of("model.onnx", b"bytes")
    assert entry.verified(b"bytes") == b"bytes"
    for other in (b"byteS", b"byte", b""):
        with pytest.raises(Corrupt, match=rf"model\.onnx: {len(other)} bytes, sha256 \w+; the manifest says 5 bytes"):
            entry.verified(other)
