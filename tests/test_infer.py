"""POST /v2/models/…/infer in this process: the answers of /v1/classify in other words, its limits, and its refusals."""

import asyncio
import base64
import gzip
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from parts import BIRDS, DIM, encoded, tiny_images, tiny_version
from test_classify import Site, error

from lifelist.exporter.registry import Ref, Registry
from lifelist.serving import infer as serving_infer
from lifelist.serving import keys, oip, prediction, statistics
from lifelist.serving.options import ServingOptions
from lifelist.serving.repository import Repository

LIMITS = ServingOptions(max_images=4, max_body_bytes=2_000_000, max_pixels=1_000_000, max_loaded=1)
INFER = "/v2/models/lifelist/infer"
ALL = ("class_id", "label", "score", "prediction_id", "logits", "probabilities", "similarities", "embedding")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 knows three birds, and is live; 2 five; 3 three and an enrolled fourth."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True)
    tiny_version(made, BIRDS[:5], seed=1)
    tiny_version(made, enrolled=BIRDS[3:4])
    return made


@pytest.fixture(scope="module")
def site(registry: Registry) -> Iterator[Site]:
    made = Site(registry, LIMITS)
    yield made
    made.close()


def pictures(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "data": images.ravel().tolist(),
    } | changes


def asked(images: np.ndarray | None = None, *outputs: Any, **more: Any) -> dict[str, Any]:
    found = {"inputs": [pictures(tiny_images(3) if images is None else images)]}
    rows = [{"name": output} if isinstance(output, str) else output for output in outputs]
    return found | ({"outputs": rows} if rows else {}) | more


def values(answer: httpx.Response) -> dict[str, Any]:
    """The outputs of an answer in JSON, as arrays."""
    assert answer.status_code == 200, answer.text
    return {row["name"]: np.array(row["data"]).reshape(row["shape"]) for row in answer.json()["outputs"]}


def infer(site: Site, content: Any, path: str = INFER, **request: Any) -> httpx.Response:
    return site.ask("POST", path, content=content if isinstance(content, bytes) else json.dumps(content), **request)


# ----------------------------------------------------------------------------------------------------------- answers


def test_an_answer_says_which_version_and_kind_and_echoes_the_id(site: Site) -> None:
    answer = infer(site, asked(id="r1"))
    found = answer.json()
    assert list(found) == ["model_name", "model_version", "id", "parameters", "outputs"]
    assert (found["model_name"], found["model_version"], found["id"]) == ("lifelist", "1", "r1")
    assert found["parameters"] == {"answer": "linear", "live_version": "1"}
    assert [(row["name"], row["datatype"], row["shape"]) for row in found["outputs"]] == [
        ("class_id", "INT64", [3]), ("label", "BYTES", [3]), ("score", "FP32", [3]), ("prediction_id", "BYTES", [3]),
    ]  # fmt: skip
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-lifelist-version"] == "1"


@pytest.mark.parametrize("kind", ["linear", "nearest_mean"])
def test_answers_are_those_of_classify(site: Site, kind: str) -> None:
    images = tiny_images(3)
    shape = ",".join(map(str, images.shape))
    plain = site.post(f"?answer={kind}&shape={shape}&top_k=3", content=images.tobytes()).json()["images"]
    found = values(infer(site, asked(images, *ALL, parameters={"answer": kind})))
    assert found["class_id"].tolist() == [image["classes"][0]["id"] for image in plain] == [0, 1, 2]
    assert found["label"].tolist() == list(BIRDS[:3])
    assert found["score"].tolist() == pytest.approx([image["classes"][0]["score"] for image in plain], abs=1e-6)
    columns = found["probabilities" if kind == "linear" else "similarities"]
    for k, image in enumerate(plain):
        said = {entry["id"]: entry["score"] for entry in image["classes"]}
        assert columns[k].tolist() == pytest.approx([said[class_id] for class_id in range(3)], abs=1e-6)
    sealed = [prediction.open(bytes(32), text) for text in found["prediction_id"].tolist()]
    assert [(one.version, one.class_id, one.answer) for one in sealed] == [(1, k, kind) for k in range(3)]


def test_raw_outputs_fit_together(site: Site) -> None:
    found = values(infer(site, asked(None, *ALL)))
    assert found["embedding"].shape == (3, DIM)
    assert np.linalg.norm(found["embedding"], axis=1) == pytest.approx(1, abs=1e-5)
    weights = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
    assert found["probabilities"] == pytest.approx(weights / weights.sum(axis=1, keepdims=True), abs=1e-6)
    means = site.replica.live.current.means
    assert found["similarities"] == pytest.approx(found["embedding"] @ means.means()[np.argsort(means.ids)].T, abs=1e-5)


def test_image_files_are_answered_as_their_pixels_are(site: Site) -> None:
    files = [encoded(image) for image in tiny_images(3)]
    raw = b"".join(struct.pack("<I", len(file)) + file for file in files)
    one = {"name": "image_bytes", "shape": [3], "datatype": "BYTES"}
    outputs = [{"name": "logits"}]
    head = json.dumps({"inputs": [one | {"parameters": {"binary_data_size": len(raw)}}], "outputs": outputs}).encode()
    binary = infer(site, head + raw, headers={"Inference-Header-Content-Length": str(len(head))})
    text = infer(site, {"inputs": [one | {"data": [base64.b64encode(f).decode() for f in files]}], "outputs": outputs})
    wanted = values(infer(site, asked(None, "logits")))["logits"]
    assert np.array_equal(values(binary)["logits"], wanted)
    assert np.array_equal(values(text)["logits"], wanted)
    assert values(infer(site, {"inputs": [one | {"shape": [3, 1], "data": text_of(files)}]}))["class_id"].tolist() == [
        0,
        1,
        2,
    ]


def text_of(files: list[bytes]) -> list[str]:
    return [base64.b64encode(file).decode() for file in files]


def test_images_of_another_size_are_fitted_as_classify_does(site: Site) -> None:
    large = tiny_images(2).repeat(3, axis=1).repeat(2, axis=2)
    plain = site.post("?shape=2,48,32,3&top_k=1", content=large.tobytes()).json()["images"]
    found = values(infer(site, asked(large)))
    assert found["score"].tolist() == pytest.approx([image["classes"][0]["score"] for image in plain], abs=1e-6)


def test_a_classification_is_of_columns_with_their_labels_best_first(site: Site) -> None:
    rows = [{"name": name, "parameters": {"classification": 2}} for name in ("probabilities", "similarities", "logits")]
    found = values(infer(site, asked(None, *rows)))
    plain = values(infer(site, asked(None, "probabilities")))["probabilities"]
    assert found["probabilities"].shape == (3, 2)
    for k, row in enumerate(found["probabilities"].tolist()):
        columns = np.argsort(-plain[k])[:2]
        assert row == [f"{plain[k][column]:.6f}:{column}:{BIRDS[column]}" for column in columns]
        assert found["similarities"][k][0].endswith(f":{k}:{BIRDS[k]}")


def test_columns_are_of_the_classes_that_are_answered_and_of_no_retired_or_merged_one(tmp_path: Path) -> None:
    """heron is retired, and robin merged into gull: gull and swift are left, and a client is told so."""
    registry = Registry(str(tmp_path))
    whole = tiny_version(registry, BIRDS[:5], live=True)
    said = {BIRDS[0]: {"retired": True}, BIRDS[4]: {"merged_into": 1}}
    classes = tuple(replace(entry, **said.get(entry.name, {})) for entry in whole.classes)
    registry.publish(replace(whole, kind="change", classes=classes), {}, reuse=whole.files)
    plain = Site(registry, LIMITS)
    before = values(infer(plain, asked(None, "logits")))["logits"]
    plain.close()
    registry.promote(2, 1)
    site = Site(registry, LIMITS)
    best = [{"name": name, "parameters": {"classification": 4}} for name in ("logits", "probabilities", "similarities")]
    refused, found = infer(site, asked(None, *best)), values(infer(site, asked(None, *ALL)))
    assert (refused.status_code, "more than the 3 classes" in error(refused)) == (400, True)
    wanted = np.stack([np.logaddexp(before[:, 1], before[:, 4]), before[:, 2], before[:, 3]], axis=1)
    assert found["logits"] == pytest.approx(wanted, abs=1e-5)
    weights = np.exp(found["logits"])
    assert found["probabilities"] == pytest.approx(weights / weights.sum(axis=1, keepdims=True), abs=1e-6)
    for row in best:
        row["parameters"]["classification"] = 3
    labelled = values(infer(site, asked(None, *best)))
    for name, rows in labelled.items():
        assert {text.rpartition(":")[2] for text in rows.ravel()} == set(BIRDS[1:4]), name
    config = site.loop.run_until_complete(Repository(registry, None, LIMITS).config("lifelist"))  # type: ignore[arg-type]
    dims = {row["name"]: row["dims"] for row in config["output"]}
    assert json.loads(config["parameters"]["class_ids_linear"]["string_value"]) == [1, 2, 3]
    assert dims["logits"] == dims["probabilities"] == dims["similarities"] == [3]
    site.close()


# ---------------------------------------------------------------------------------------------------------- versions


def test_a_version_is_asked_by_its_number_beside_the_one_that_is_live(site: Site) -> None:
    refused = infer(site, asked(), "/v2/models/lifelist/versions/2/infer")
    assert refused.status_code == 409
    assert error(refused) == (
        "version 2 is not loaded; loaded: 1. Load it first: POST /v2/repository/models/lifelist/versions/2/load"
    )
    follower = site.replica.follower
    assert site.loop.run_until_complete(follower.pin(2)).problem is None
    answer = infer(site, asked(None, "logits"), "/v2/models/lifelist/versions/2/infer")
    assert (answer.json()["model_version"], values(answer)["logits"].shape) == ("2", (3, 5))
    assert answer.json()["parameters"]["live_version"] == "1"
    assert infer(site, asked()).json()["model_version"] == "1"  # and live is as it was
    assert infer(site, asked(), "/v2/models/lifelist/versions/live/infer").json()["model_version"] == "1"
    full = site.loop.run_until_complete(follower.pin(3)).problem
    assert str(full) == "versions [2] are loaded, as many as serving.max_loaded allows; unload one of them"
    assert site.loop.run_until_complete(follower.unpin(2)).problem is None
    assert sorted(site.replica.live.held) == [1]


def test_a_loaded_version_stays_through_swaps_until_it_is_let_go(registry: Registry) -> None:
    """As a swap does on each replica: prepare, promote, commit, release."""
    site = Site(registry, LIMITS)
    follower, live = site.replica.follower, site.replica.live

    async def story() -> list[list[int]]:
        seen = []
        await follower.pin(2)
        await follower.prepare(3, 1)
        live.commit(Ref(3, 2))
        for _ in range(2):
            await follower.release()  # as the registry has it, 1 is live still
            seen.append(sorted(live.held))
        assert live.release([1], generation=9) == []
        seen.append(sorted(live.held))
        await follower.unpin(2)
        return [*seen, sorted(live.held)]

    assert site.loop.run_until_complete(story()) == [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 3]]
    site.close()


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/v2/models/other/infer", 404, "there is no model 'other'; this server has 'lifelist'"),
        ("/v2/models/lifelist/versions/99/infer", 404, "there is no version 99 in "),
        ("/v2/models/lifelist/versions/0/infer", 404, "there is no version '0'; there are numbers from 1"),
        ("/v2/models/lifelist/versions/stable/infer", 404, "there is no version 'stable'"),
        ("/v2/models/lifelist/versions/previous/infer", 404, "no version is previous at the moment"),
        ("/v2/models/lifelist/infer?x=1", 400, "there is no parameter 'x'"),
    ],
)
def test_what_is_not_there_is_named(site: Site, path: str, status: int, message: str) -> None:
    answer = infer(site, asked(), path)
    assert answer.status_code == status
    assert message in error(answer)


# ---------------------------------------------------------------------------------------------------------- refusals

# fmt: off
REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("no input", {"inputs": []}, 400, "send one input, images (UINT8, N,H,W,3) or image_bytes"),
    ("two inputs", {"inputs": [pictures(tiny_images(1)), pictures(tiny_images(1), name="b")]}, 400, "'images, b'"),
    ("another name", {"inputs": [pictures(tiny_images(1), name="image")]}, 400, "not 'image'"),
    ("another datatype", {"inputs": [pictures(tiny_images(1), datatype="FP32")]}, 400, "images should be UINT8"),
    ("two sides", {"inputs": [pictures(tiny_images(1), shape=[16, 48])]}, 400, "of shape [N,H,W,3]"),
    ("four channels", {"inputs": [pictures(tiny_images(1), shape=[1, 16, 12, 4])]}, 400, "should end in 3"),
    ("five images", asked(tiny_images(5)), 413, "5 images; send at most 4"),
    ("no image", {"inputs": [pictures(tiny_images(1), shape=[0, 16, 16, 3], data=[])]}, 400, "have no 0"),
    ("image_bytes UINT8", {"inputs": [pictures(tiny_images(1), name="image_bytes")]}, 400,
     "should be BYTES of shape [N]"),
    ("no base64", {"inputs": [{"name": "image_bytes", "shape": [1], "datatype": "BYTES", "data": ["ö"]}]}, 400,
     "should be base64"),
    ("no image file", {"inputs": [{"name": "image_bytes", "shape": [1], "datatype": "BYTES",
     "data": ["AAAA"]}]}, 400, "not an image that we read"),
    ("unknown output", asked(None, "top"), 400, "there is no output 'top'; there are class_id"),
    ("best of labels", asked(None, {"name": "label", "parameters": {"classification": 1}}), 400,
     "label has no classification"),
    ("best of 10**9", asked(None, {"name": "logits", "parameters": {"classification": 10**9}}), 400,
     "more than the 3 classes that version 1"),
    ("unknown parameter", asked(parameters={"sequence_id": 1}), 400,
     "there is no parameter 'sequence_id'; there are answer, timeout"),
    ("unknown answer", asked(parameters={"answer": "best"}), 400, "answer should be linear or nearest_mean"),
    ("timeout of words", asked(parameters={"timeout": "1s"}), 400, "timeout should be a number of microseconds"),
]
# fmt: on


@pytest.mark.parametrize(("what", "content", "status", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_request_that_cannot_be_answered_is_told_why(
    site: Site, what: str, content: dict[str, Any], status: int, message: str
) -> None:
    answer = infer(site, content)
    assert (answer.status_code, message in error(answer)) == (status, True), answer.text
    assert site.replica.intake.requests == site.replica.intake.held == 0


def test_the_best_so_many_may_be_all_classes_and_not_one_more(site: Site) -> None:
    asking = [asked(None, {"name": "probabilities", "parameters": {"classification": k}}) for k in (3, 4)]
    assert [infer(site, content).status_code for content in asking] == [200, 400]


def test_an_answer_lists_no_more_than_it_may_in_texts_and_in_json(registry: Registry) -> None:
    site = Site(registry, ServingOptions(max_listed=8))

    def best(count: int, binary: bool = False) -> dict[str, Any]:
        return {"name": "probabilities", "parameters": {"classification": count, "binary_data": binary}}

    raw = {"name": "probabilities", "parameters": {"binary_data": True}}
    for outputs, status in (
        ([best(2)], 200), ([best(3)], 413), ([best(3, binary=True)], 413), (["logits"], 413), ([raw, "embedding"], 413),
        ([raw, "score", "label"], 200), (["score", best(2)], 413),
    ):  # fmt: skip
        answer = infer(site, asked(tiny_images(3), *outputs))
        assert answer.status_code == status, (outputs, answer.text)
        assert status != 413 or "the limit is 8" in error(answer)
    site.close()


def test_a_deadline_that_has_passed_is_504_and_frees_its_slot(registry: Registry) -> None:
    site = Site(registry, LIMITS)
    free, answer_ = threading.Event(), site.replica.batcher.run

    def slow(queries: Any, alone: bool) -> Any:
        free.wait(10)
        return answer_(queries, alone)

    site.replica.batcher.run = slow
    answer = infer(site, asked(parameters={"timeout": 50_000}))
    assert (answer.status_code, error(answer)) == (
        504, "no answer within the 0.05 s of the parameter timeout; it is in microseconds",
    )  # fmt: skip
    assert site.replica.intake.requests == 0
    free.set()
    assert infer(site, asked(parameters={"timeout": 5_000_000})).status_code == 200
    site.close()


def test_of_two_deadlines_the_sooner_one_counts(registry: Registry) -> None:
    site = Site(registry, ServingOptions(answer_timeout_s=0.1))
    free, answer_ = threading.Event(), site.replica.batcher.run
    site.replica.batcher.run = lambda queries, alone: (free.wait(10), answer_(queries, alone))[1]
    answers = [infer(site, asked(parameters={"timeout": microseconds})) for microseconds in (50_000, 60_000_000)]
    free.set()
    assert [answer.status_code for answer in answers] == [504, 503]
    assert error(answers[1]) == "no answer within 0.1 s; try again later"
    assert answers[1].headers["retry-after"] == "1"
    site.close()


def test_large_bodies_are_read_and_written_beside_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    by: list[str] = []

    def noting(work: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            by.append(threading.current_thread().name.partition("_")[0])
            return work(*arguments)

        return noted

    monkeypatch.setattr(oip, "read", noting(oip.read))
    monkeypatch.setattr(oip, "write", noting(oip.write))
    monkeypatch.setattr(serving_infer, "LARGE_OUTPUT", 31)
    small, large = asked(tiny_images(1)), asked(tiny_images(4).repeat(5, axis=1), "embedding")
    assert [infer(site, content).status_code for content in (small, large)] == [200, 200]
    assert by == ["MainThread", "MainThread", "decode", "decode"]


# ------------------------------------------------------------------------------------------------------- compression


@pytest.mark.parametrize(("encoding", "squeeze"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_read_as_it_was(site: Site, encoding: str, squeeze: Any) -> None:
    raw = tiny_images(3).tobytes()
    head = json.dumps({"inputs": [binary(raw)], "outputs": [{"name": "class_id"}]}).encode()
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(len(head))}
    answer = infer(site, squeeze(head + raw), headers=headers)
    assert values(answer)["class_id"].tolist() == [0, 1, 2]
    assert site.replica.intake.held == 0
    for broken in (squeeze(head + raw)[:-9], squeeze(head + raw) + b"x", b"not compressed"):
        refused = infer(site, broken, headers=headers)
        assert refused.status_code == 400
        assert encoding in error(refused)


def binary(raw: bytes) -> dict[str, Any]:
    return {
        "name": "images",
        "shape": [3, 16, 16, 3],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(raw)},
    }


def test_a_body_that_swells_is_stopped_at_the_limits(site: Site) -> None:
    for size in (2_000_001, 1_100_000_000):  # the body's limit; a bomb, of which no more than that is unpacked
        began = time.perf_counter()
        packed = zlib.compress(bytes(min(size, 50_000_000)))
        answer = infer(site, packed, headers={"Content-Encoding": "deflate"})
        assert answer.status_code == 413
        assert "becomes more than" in error(answer)
        assert time.perf_counter() - began < 5
    dense = ServingOptions(max_images=4, max_body_bytes=2_000_000, max_compression=2)
    from lifelist.serving.infer import inflated

    assert len(inflated(zlib.compress(bytes(2**20)), "deflate", dense)) == 2**20  # harmless, however well it packs
    with pytest.raises(Exception, match="2 times what was sent"):
        inflated(zlib.compress(bytes(2**20 + 1)), "deflate", dense)


def test_another_encoding_is_refused_before_the_body_is_read(site: Site) -> None:
    answer = infer(site, b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, error(answer)) == (
        415, "the content encoding is 'br'; send gzip, deflate, or the body as it is",
    )  # fmt: skip


def test_an_answer_is_compressed_if_that_is_welcome_and_worth_while(site: Site) -> None:
    large = asked(tiny_images(4), "embedding", "logits", "similarities", "probabilities", "prediction_id")
    sizes = []
    for accepted, encoding in (("gzip", "gzip"), ("deflate", "deflate"), ("gzip;q=0", None), ("identity", None)):
        answer = infer(site, large, headers={"Accept-Encoding": accepted})
        assert answer.headers.get("content-encoding") == encoding
        sizes.append(int(answer.headers["content-length"]))
        assert values(answer)["embedding"].shape == (4, DIM)
    assert max(sizes[:2]) < min(sizes[2:])
    assert "content-encoding" not in infer(site, asked(), headers={"Accept-Encoding": "gzip"}).headers


# -------------------------------------------------------------------------------------------------------- statistics


def test_statistics_know_nothing_of_probes(registry: Registry, tmp_path: Path) -> None:
    own = keys.own(bytes(32))
    site = Site(registry, LIMITS, keys.Guard(tmp_path / "keys.json", anonymous=True, own=own))
    probe = {"content": encoded(tiny_images()[0]), "headers": {"Authorization": f"Bearer {own}"}}
    assert [site.post(**probe).status_code, site.post(content=probe["content"]).status_code] == [200, 200]
    counts = site.replica.statistics.snapshot()[1]
    assert (counts.inferences, counts.executions, list(counts.batches)) == (1, 1, [1])
    site.close()


def test_statistics_add_up_as_tritons_do(registry: Registry) -> None:
    site = Site(registry, LIMITS)
    before = time.time() * 1000
    infer(site, asked(tiny_images(4)))
    infer(site, asked(tiny_images(1)))
    site.post(content=encoded(tiny_images()[0]))  # the statistics are the model's, whoever asks
    infer(site, asked(tiny_images(5)))  # refused
    infer(site, {"inputs": []})

    async def at_once() -> None:
        transport = httpx.ASGITransport(site.replica.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await asyncio.gather(*(client.post(INFER, json=asked(tiny_images(1))) for _ in range(8)))

    site.loop.run_until_complete(at_once())
    counts = site.replica.statistics.snapshot()
    twice = statistics.together([counts, counts])
    for factor, found in ((1, counts[1]), (2, twice[1])):
        row = statistics.as_json("lifelist", 1, found)
        stats = row["inference_stats"]
        assert (row["name"], row["version"]) == ("lifelist", "1")
        assert row["inference_count"] == (4 + 1 + 1 + 8) * factor
        assert stats["success"]["count"] == 11 * factor
        assert stats["fail"]["count"] == 2 * factor
        assert {stats[stage]["count"] for stage in statistics.STAGES} == {11 * factor}
        assert stats["success"]["ns"] >= sum(stats[stage]["ns"] for stage in statistics.STAGES) > 0
        batches = row["batch_stats"]
        assert sum(one["compute_infer"]["count"] for one in batches) == row["execution_count"] < 11 * factor
        assert sum(one["compute_infer"]["count"] * one["batch_size"] for one in batches) == row["inference_count"]
        assert before <= row["last_inference"] <= time.time() * 1000 + 1
    site.close()
