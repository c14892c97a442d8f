"""The Open Inference Protocol as bytes: a golden request, what is written and read back, what is refused."""

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lifelist.exporter.errors import BadInput, LifelistError, TooLarge, Unsupported
from lifelist.serving import arrival, oip, tensors
from lifelist.serving.oip import Limits, Request, Response
from lifelist.serving.tensors import Tensor

LIMITS = Limits(json=100_000, depth=100, strings=8)
GOLDEN = (  # as tritonclient 2.73 writes it
    b'{"id":"r1","inputs":[{"name":"image","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
    b'"parameters":{"binary_data_output":true}}'
)


def read(body: bytes, header: str | None = None) -> Request:
    return oip.read(body, header, LIMITS, "image_bytes")


def one(body: bytes, header: str | None = None) -> Tensor:
    (found,) = read(body, header).inputs
    return found


def asking(tensor: dict[str, Any], raw: bytes = b"", **more: Any) -> tuple[bytes, str | None]:
    """A body with one input, and the header that belongs to it."""
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return head + raw, str(len(head)) if raw else None


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "shape": [2, 1], "datatype": "UINT8", "data": [1, 2]} | changes


def raw(size: int, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in tensor(**changes).items() if key != "data"} | {
        "parameters": {"binary_data_size": size}
    }


# -------------------------------------------------------------------------------------------------------------- read


def test_the_golden_request_is_read_to_the_byte() -> None:
    assert len(GOLDEN) == 148
    found = read(GOLDEN + struct.pack("<2f", 1.5, -2), "148")
    assert (found.id, found.binary, found.outputs, found.parameters) == ("r1", True, (), {})
    (image,) = found.inputs
    assert (image.name, image.datatype, image.shape) == ("image", "FP32", (1, 2))
    assert np.asarray(image.data).tolist() == [1.5, -2]


def nested(data: Any, depth: int) -> Any:
    return nested([data], depth - 1) if depth else data


@pytest.mark.parametrize("data", [[1, 2], [[1], [2]], [[[1, 2]]], nested([1, 2], 90)])
def test_numbers_in_json_may_be_nested_or_flat(data: Any) -> None:
    assert np.asarray(one(*asking(tensor(data=data))).data).tolist() == [1, 2]


def test_tensors_behind_the_json_come_in_the_order_of_the_inputs_that_have_them() -> None:
    rows = [raw(2, name="a"), tensor(name="b"), raw(4, name="c", datatype="UINT16")]
    head = json.dumps({"inputs": rows}).encode()
    a, b, c = read(head + bytes([1, 2]) + struct.pack("<2H", 300, 400), str(len(head))).inputs
    assert [np.asarray(found.data).tolist() for found in (a, b, c)] == [[1, 2], [1, 2], [300, 400]]


def test_elements_of_bytes_are_their_length_and_themselves() -> None:
    data = b"".join(struct.pack("<I", len(part)) + part for part in (b"one", b""))
    assert one(*asking(raw(len(data), datatype="BYTES", shape=[2]), data)).data == [b"one", b""]
    assert one(*asking(tensor(datatype="BYTES", data=["one", "zwölf"], shape=[2]))).data == ["one", "zwölf"]


def test_a_header_of_zero_means_that_the_body_is_the_one_input() -> None:
    found = read(b"\x89PNG", "0")
    assert found.binary
    assert (found.inputs[0].name, found.inputs[0].shape, found.inputs[0].data) == ("image_bytes", (1,), [b"\x89PNG"])


def test_an_output_says_for_itself_whether_it_is_binary_or_else_the_request_does() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False, "classification": 3}}]
    found = read(*asking(tensor(), parameters={"binary_data_output": True, "answer": "linear"}, outputs=outputs))
    assert [(row.name, row.binary, row.classification) for row in found.outputs] == [("a", True, 0), ("b", False, 3)]
    assert found.parameters == {"answer": "linear"}


LONG_WORD = tensor(data=["x" * 30_000, *[""] * 10_000], shape=[10_001])  # and many others, none

# fmt: off
BAD = [
    ("no JSON", b"{", None, BadInput, "is not JSON"),
    ("not UTF-8", b'{"id":"\xff"}', None, BadInput, "is not JSON"),
    ("NaN", b'{"inputs":[NaN]}', None, BadInput, "NaN is no number in JSON"),
    ("digits without end", b'{"id":' + b"9" * 5000 + b"}", None, BadInput, "is not JSON"),
    ("a list", b"[]", None, BadInput, "should be a JSON object"),
    ("an unknown field", b'{"input":[]}', None, BadInput, "no field 'input'"),
    ("101 brackets", b"[" * 101, None, BadInput, "nests 101 deep; the limit is 100"),
    ("too much JSON", b" " * 100_001, None, TooLarge, "100,001 bytes of JSON"),
    ("header of words", b"{}", "two", BadInput, "should be a number from 0 to"),
    ("header too long", b"{}", "3", BadInput, "the body's 2 bytes, not '3'"),
    ("header below 0", b"{}", "-1", BadInput, "should be a number from 0 to"),
    ("id that is a number", b'{"id":1}', None, BadInput, "id should be a string"),
    ("inputs that is no list", b'{"inputs":{"a":1}}', None, BadInput, "inputs should be a list"),
    ("inputs that is 0", b'{"inputs":0}', None, BadInput, "inputs should be a list, not 0"),
    ("outputs that is empty", b'{"outputs":""}', None, BadInput, "outputs should be a list, not ''"),
    ("parameters that is false", b'{"parameters":false}', None, BadInput, "should be a JSON object, not False"),
    ("bytes after the JSON", *asking(tensor(), b"xy"), BadInput, "come 2 bytes"),
    ("more than there is", *asking(raw(3), b"xy"), BadInput, "2 bytes are left"),
    ("less than there is", *asking(raw(2), b"xyz"), BadInput, "add up to 2"),
    ("size below 0", *asking(raw(-1), b"xy"), BadInput, "binary_data_size of input 'images' is -1"),
    ("size true", *asking(raw(True), b"x"), BadInput, "binary_data_size"),
    ("size not of its shape", *asking(raw(3), b"xyz"), BadInput, r"has 2 bytes; 3 were sent"),
    ("data and binary", *asking(tensor(parameters={"binary_data_size": 2}), b"xy"), BadInput, "or binary_data_size"),
    ("neither of them", *asking({"name": "a", "shape": [1], "datatype": "UINT8"}), BadInput, "should have data"),
    ("unknown datatype", *asking(tensor(datatype="INT4")), BadInput, "datatype 'INT4'; there are BOOL"),
    ("datatype that's a list", *asking(tensor(datatype=["UINT8"])), BadInput, "of datatype"),
    ("no shape", *asking(tensor(shape=None)), BadInput, "the shape of 'images'"),
    ("shape of words", *asking(tensor(shape="21")), BadInput, "the shape of 'images'"),
    ("shape below 0", *asking(tensor(shape=[-1, 2])), BadInput, "the shape of 'images'"),
    ("shape of 17 sides", *asking(tensor(shape=[1] * 17)), BadInput, "at most 16"),
    ("shape of truth", *asking(tensor(shape=[True, 2])), BadInput, "the shape of 'images'"),
    ("shape that overflows", *asking(raw(2, shape=[2**31 - 1] * 4), b"xy"), TooLarge, "more than any body can"),
    ("shape of more", *asking(raw(2, shape=[2**20, 2**19]), b"xy"), BadInput, "549,755,813,888 bytes; 2 were sent"),
    ("too few numbers", *asking(tensor(data=[1])), BadInput, "has 1 elements; its shape says 2"),
    ("ragged", *asking(tensor(data=[[1], [2, 3]])), BadInput, "its rows differ in length"),
    ("rows and a number", *asking(tensor(data=[[1], 2])), BadInput, "its rows differ in length"),
    ("a number and rows", *asking(tensor(data=[1, [2]])), BadInput, "are no UINT8"),
    ("rows of rows and not", *asking(tensor(data=[[[1]], [2]])), BadInput, "its rows differ in length"),
    ("256 as UINT8", *asking(tensor(data=[0, 256])), BadInput, "run from 0 to 256; UINT8 holds 0 … 255"),
    ("-1 as UINT8", *asking(tensor(data=[0, -1])), BadInput, "run from -1 to 0"),
    ("half as UINT8", *asking(tensor(data=[0, 0.5])), BadInput, "are no UINT8"),
    ("words as UINT8", *asking(tensor(data=["0", "1"])), BadInput, "are no UINT8"),
    ("truth as UINT8", *asking(tensor(data=[True, False])), BadInput, "are no UINT8"),
    ("2**70 as UINT8", *asking(tensor(data=[0, 2**70])), BadInput, f"run from 0 to {2**70}; UINT8 holds"),
    ("10**4000 as FP32", *asking(tensor(datatype="FP32", data=[0, 10**4000])), BadInput, "FP32 holds -3.4"),
    ("truth among UINT8", *asking(tensor(data=[1, True])), BadInput, "are no UINT8"),
    ("a number as BOOL", *asking(tensor(datatype="BOOL", data=[True, 1])), BadInput, "are no BOOL"),
    ("null as UINT8", *asking(tensor(data=[0, None])), BadInput, "are no UINT8"),
    ("an object as FP32", *asking(tensor(datatype="FP32", data=[0, {}])), BadInput, "are no FP32"),
    ("a long word as UINT8", *asking(LONG_WORD), BadInput, "are no UINT8"),
    ("data that is no list", *asking(tensor(data="12")), BadInput, "should be a list"),
    ("FP16 in JSON", *asking(tensor(datatype="FP16")), BadInput, "no form in JSON"),
    ("nine strings", *asking(tensor(datatype="BYTES", shape=[9], data=["x"] * 9)), TooLarge, "at most 8"),
    ("a number as a string", *asking(tensor(datatype="BYTES", data=["x", 1])), BadInput, "should be 2 strings"),
    ("BYTES cut off", *asking(raw(7, datatype="BYTES", shape=[1]), struct.pack("<I", 4) + b"abc"), BadInput,
     "of 7 bytes 0"),
    ("BYTES of one too many", *asking(raw(8, datatype="BYTES", shape=[1]), bytes(8)), BadInput, "of 8 bytes 4 are 1"),
    ("nine BYTES", *asking(raw(36, datatype="BYTES", shape=[9]), bytes(36)), TooLarge, "at most 8"),
    ("shared memory", *asking(tensor(parameters={"shared_memory_region": "a"})), Unsupported, "no shared memory"),
    ("unknown parameter", *asking(tensor(parameters={"a": 1})), BadInput, "no parameter 'a'"),
    ("two of a name", b'{"inputs":[],"outputs":[{"name":"a"},{"name":"a"}]}', None, BadInput, "different names"),
    ("classification of -1", b'{"outputs":[{"name":"a","parameters":{"classification":-1}}]}', None, BadInput,
     "number from 0"),
    ("binary that is 1", b'{"outputs":[{"name":"a","parameters":{"binary_data":1}}]}', None, BadInput, "true or false"),
    ("half a pair", b'{"parameters":{"binary_data_output":"\\ud800"}}', None, BadInput, "true or false"),
]
# fmt: on


@pytest.mark.parametrize(("what", "body", "header", "kind", "message"), BAD, ids=[row[0] for row in BAD])
def test_what_is_no_request_is_refused_by_name(
    what: str, body: bytes, header: str | None, kind: type[LifelistError], message: str
) -> None:
    with pytest.raises(kind) as raised:
        read(body, header)
    assert message in str(raised.value)
    str(raised.value).encode()  # it can be sent


def test_a_long_word_among_numbers_does_not_lengthen_the_others() -> None:
    body, _ = asking(LONG_WORD)
    tracemalloc.start()
    with pytest.raises(BadInput):
        read(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * len(body)


def test_brackets_in_strings_do_not_count_for_the_depth() -> None:
    assert arrival.depth(b'{"a\\"[[[": ["[[\\\\", [[]]], "b": []}') == 4
    assert arrival.depth(b"") == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.none() | st.text(max_size=4))
def test_whatever_the_bytes_are_they_are_read_or_refused(body: bytes, header: str | None) -> None:
    try:
        read(body, header)
    except LifelistError as error:
        str(error).encode()


# ------------------------------------------------------------------------------------------------------------- write


def any_tensor() -> st.SearchStrategy[Tensor]:
    numbers = st.sampled_from(sorted(tensors.NUMBERS)).flatmap(
        lambda datatype: hnp.arrays(
            np.dtype(tensors.NUMBERS[datatype]), hnp.array_shapes(max_dims=4, max_side=3), elements={"allow_nan": False}
            if datatype.startswith("FP") else None,
        ).map(lambda found: Tensor("a", datatype, found.shape, found.ravel()))
    )  # fmt: skip
    strings = st.lists(st.binary(max_size=9), min_size=1, max_size=8)
    return numbers | strings.map(lambda found: Tensor("a", "BYTES", (len(found),), found))


@settings(max_examples=200, deadline=None)
@given(any_tensor())
def test_what_is_written_raw_is_read_back_the_same(sent: Tensor) -> None:
    data = tensors.packed(sent)
    found = one(*asking(raw(len(data), name="a", shape=sent.shape, datatype=sent.datatype), data)) if data else sent
    assert found.shape == sent.shape
    assert list(found.data) == list(sent.data)


@settings(max_examples=200, deadline=None)
@given(any_tensor().filter(lambda found: found.datatype not in ("FP16", "BYTES")))
def test_what_is_written_in_json_is_read_back_the_same(sent: Tensor) -> None:
    body, length = oip.write(Response("m", "1", (sent,)), ())
    assert length is None
    (row,) = json.loads(body)["outputs"]
    if not any(np.isinf(number) for number in sent.data):
        assert list(one(*asking(row)).data) == list(sent.data)


def test_an_answer_in_both_forms_to_the_byte() -> None:
    scores = Tensor("score", "FP32", (2,), np.array([0.5, 1], np.float32))
    labels = Tensor("label", "BYTES", (2,), ["gull", "é"])
    response = Response("lifelist", "3", (scores, labels), "r1", {"answer": "linear"})
    assert oip.write(response, {"score"}) == (
        (
            head
            := b'{"model_name":"lifelist","model_version":"3","id":"r1","parameters":{"answer":"linear"},"outputs":['
            b'{"name":"score","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}},'
            b'{"name":"label","datatype":"BYTES","shape":[2],"data":["gull","\\u00e9"]}]}'
        )
        + struct.pack("<2f", 0.5, 1),
        len(head),
    )
    body, length = oip.write(response, {"score", "label"})
    assert body[length:] == struct.pack("<2f", 0.5, 1) + b"\x04\0\0\0gull" + b"\x02\0\0\0\xc3\xa9"


def test_a_classification_is_value_column_and_label_best_first() -> None:
    values = np.array([[0.1, 0.7, 0.2], [1 / 3, 1 / 3, 1 / 3]], np.float32)
    labels = ["heron", "a:b", "wren"]
    assert tensors.best_of(values, labels, 2) == [
        "0.700000:1:a:b",
        "0.200000:2:wren",
        "0.333333:0:heron",
        "0.333333:1:a:b",
    ]
