"""POST /v1/classify in this process: the whole application of a replica, with a real version behind it."""

import asyncio
import io
import re
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from parts import BIRDS, OPEN, encoded, tiny_images, tiny_version
from PIL import Image

from lifelist.exporter.registry import Ref, Registry
from lifelist.serving import classify, prediction
from lifelist.serving.app import Replica
from lifelist.serving.keys import Guard
from lifelist.serving.options import ServingOptions

KEY = bytes(32)
LIMITS = ServingOptions(
    max_images=4, max_body_bytes=200_000, max_image_bytes=100_000, max_pixels=1_000_000, read_timeout_s=0.3, max_queue=8
)


class Site:
    """A replica and an event loop that it runs on; `post` is a client."""

    def __init__(
        self, registry: Registry, options: ServingOptions = LIMITS, guard: Guard = OPEN, watched: bool = True
    ) -> None:
        self.loop = asyncio.new_event_loop()
        self.replica = Replica("one", registry, options, KEY, guard, watched)

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def asked() -> httpx.Response:
            transport = httpx.ASGITransport(self.replica.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **request)

        return self.loop.run_until_complete(asked())

    def post(self, query: str = "", **request: Any) -> httpx.Response:
        return self.ask("POST", f"/v1/classify{query}", **request)

    def while_busy(self, bodies: Sequence[bytes], busy_s: float = 0.5) -> list[httpx.Response]:
        """The answers to queries that come one after the other, while the model is busy for so long."""
        batcher, free = self.replica.batcher, threading.Event()
        answer = batcher.run

        def when_free(queries: Any, alone: bool) -> Any:
            assert free.wait(30)
            return answer(queries, alone)

        async def asked() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.replica.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                waiting = []
                for body in bodies:
                    waiting.append(asyncio.create_task(client.post("/v1/classify", content=body)))
                    await asyncio.sleep(0.02)
                await asyncio.sleep(busy_s)
                free.set()
                return await asyncio.gather(*waiting)

        batcher.run = when_free
        try:
            return self.loop.run_until_complete(asked())
        finally:
            batcher.run = answer

    def close(self) -> None:
        self.replica.close()
        self.loop.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 knows three birds, and is live; version 2 three and an enrolled fourth."""
    made = Registry(str(tmp_path_factory.mktemp("registry")))
    tiny_version(made, live=True)
    tiny_version(made, enrolled=BIRDS[3:4])
    return made


@pytest.fixture(scope="module")
def site(registry: Registry) -> Iterator[Site]:
    made = Site(registry)
    yield made
    made.close()


def bird(k: int, kind: str = "PNG") -> bytes:
    return encoded(
        tiny_images()[k], kind, **({"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {})
    )


def form(*files: tuple[str, bytes]) -> Any:
    return {"files": [("images", file) for file in files]}


def error(answer: httpx.Response) -> str:
    """The sentence of a refusal, after making sure that it is one."""
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    sentence: str = answer.json()["error"]
    assert sentence
    return sentence


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "header", ["image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", None]
)
def test_an_image_is_told_by_its_content_whatever_it_is_called(site: Site, kind: str, header: str | None) -> None:
    answer = site.post(content=bird(2, kind), headers={"Content-Type": header} if header else {})
    assert answer.status_code == 200
    assert answer.json()["images"][0]["classes"][0]["name"] == BIRDS[2]


def test_an_answer_says_all_that_it_should(site: Site) -> None:
    before = time.time()
    answer = site.post("?top_k=2", content=bird(1))
    found = answer.json()
    assert list(found) == ["version", "answer", "images", "timing"]
    assert (found["version"], found["answer"]) == (1, "linear")
    assert answer.headers["x-lifelist-version"] == "1"
    (image,) = found["images"]
    assert [list(entry) for entry in image["classes"]] == [["id", "name", "score"]] * 2
    assert (image["classes"][0]["id"], image["classes"][0]["name"]) == (1, BIRDS[1])
    assert 1 >= image["classes"][0]["score"] >= image["classes"][1]["score"] >= 0
    timing = found["timing"]
    assert set(timing) == {"decode_seconds", "queue_seconds", "model_seconds", "total_seconds"}
    assert (
        0
        < timing["decode_seconds"] + timing["queue_seconds"] + timing["model_seconds"]
        <= timing["total_seconds"] + 1e-4
    )
    sealed = prediction.open(KEY, image["prediction_id"])
    assert (sealed.version, sealed.class_id, sealed.answer) == (1, 1, "linear")
    assert before - 0.01 <= sealed.at <= time.time() + 0.01


def test_many_images_come_back_in_the_order_in_which_they_went(site: Site) -> None:
    found = site.post(**form(("c.png", bird(2)), ("a.jpg", bird(0, "JPEG")), ("b.webp", bird(1, "WEBP")))).json()
    assert [image["classes"][0]["name"] for image in found["images"]] == [BIRDS[2], BIRDS[0], BIRDS[1]]
    assert len({image["prediction_id"] for image in found["images"]}) == 3


@pytest.mark.parametrize("where", ["query", "header"])
def test_a_tensor_is_its_bytes_and_its_shape(site: Site, where: str) -> None:
    data = tiny_images(3).tobytes()
    query, headers = ("?shape=3,16,16,3", {}) if where == "query" else ("", {"X-Tensor-Shape": "3,16,16,3"})
    found = site.post(query, content=data, headers={"Content-Type": "application/octet-stream"} | headers).json()
    assert [image["classes"][0]["name"] for image in found["images"]] == list(BIRDS[:3])


def test_a_tensor_of_another_size_is_fitted_as_an_image_is(site: Site) -> None:
    large = np.asarray(Image.fromarray(tiny_images()[1]).resize((48, 64), Image.Resampling.BICUBIC))
    as_tensor = site.post("?shape=64,48,3&top_k=3", content=large.tobytes()).json()
    as_image = site.post("?top_k=3", content=encoded(large)).json()
    assert as_tensor["images"][0]["classes"] == as_image["images"][0]["classes"]


@pytest.mark.parametrize("watched", [True, False])
def test_only_a_replica_that_is_watched_keeps_a_sample_of_its_answers(registry: Registry, watched: bool) -> None:
    site = Site(registry, watched=watched)
    assert site.post(content=bird(0)).status_code == 200
    assert [one.answered for one in site.replica.observed.take()] == ([1] if watched else [])
    site.close()


def test_a_sample_says_how_large_images_came(site: Site) -> None:
    site.replica.observed.take()
    large = np.zeros((30, 40, 3), np.uint8)
    for content, headers in (
        (bird(0), {}),
        (encoded(large), {}),
        (large.tobytes(), {"X-Tensor-Shape": "1,30,40,3"}),
        (tiny_images()[:2].tobytes(), {"X-Tensor-Shape": "2,16,16,3"}),
    ):
        assert site.post(content=content, headers=headers).status_code == 200
    (taken,) = site.replica.observed.take()
    assert taken.arrays().sides.tolist() == [16, 30, 30, 16, 16]


def test_top_k_is_as_many_as_there_are_at_most_and_five_unless_told(site: Site) -> None:
    assert len(site.post("?top_k=1", content=bird(0)).json()["images"][0]["classes"]) == 1
    assert len(site.post("?top_k=10000", content=bird(0)).json()["images"][0]["classes"]) == 3
    assert len(site.post(content=bird(0)).json()["images"][0]["classes"]) == 3


def test_an_answer_lists_no_more_than_it_may_of_all_its_images_together(registry: Registry) -> None:
    site = Site(registry, ServingOptions(max_listed=6))

    def asked(images: int, top_k: int) -> httpx.Response:
        return site.post(f"?shape={images},16,16,3&top_k={top_k}", content=tiny_images(images).tobytes())

    listed = {(3, 2): 200, (2, 3): 200, (2, 9): 200, (1, 10_000): 200, (7, 1): 413, (3, 3): 413, (3, 9): 413}
    answers = {each: asked(*each) for each in listed}
    assert {each: answer.status_code for each, answer in answers.items()} == listed
    assert error(answers[7, 1]) == (
        "the answer would list 7 classes or numbers, of all images together; the limit is 6. Send fewer images, or ask "
        "for fewer classes of each"
    )
    assert "would list 9 classes" in error(answers[3, 9])  # there are three
    site.close()


def test_both_answers_can_be_asked_for(site: Site) -> None:
    for kind in ("linear", "nearest_mean"):
        found = site.post(f"?answer={kind}", content=bird(2)).json()
        assert (found["answer"], found["images"][0]["classes"][0]["name"]) == (kind, BIRDS[2])


def test_a_version_with_enrolled_classes_answers_by_nearest_mean_unless_told_otherwise(registry: Registry) -> None:
    site = Site(registry)
    site.loop.run_until_complete(site.replica.follower.prepare(2, 1))
    site.loop.run_until_complete(site.replica.follower.commit(Ref(2, 2)))
    found = site.post(content=bird(3)).json()
    assert (found["version"], found["answer"]) == (2, "nearest_mean")
    assert found["images"][0]["classes"][0]["name"] == BIRDS[3]
    told = site.post("?answer=linear&top_k=9", content=bird(3)).json()
    assert told["answer"] == "linear"
    assert {entry["name"] for entry in told["images"][0]["classes"]} == set(BIRDS[:3])  # it has no row for the fourth
    site.close()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 × 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.fromarray(image) for image in tiny_images(3)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    return out.getvalue()


def typed(kind: str, content: bytes) -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": kind}}


def asked(query: str) -> dict[str, Any]:
    return {"query": query, "content": bird(0)}


def shaped(shape: str, content: bytes = b"hello") -> dict[str, Any]:
    return {"query": f"?shape={shape}"} | typed("application/octet-stream", content)


def written(body: bytes) -> dict[str, Any]:
    return typed("multipart/form-data; boundary=x", body)


CUT = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\nabc'
NAMELESS = b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"
TWO_BROKEN = form(("a.png", bird(0)), ("b.png", b"what"), ("c.png", b""))
ONE_LARGE = form(("a.png", bird(0)), ("b.png", bytes(100_001)))
TEXT = {"data": {"image": "cat"}, "files": [("images", ("a.png", bird(0)))]}
# fmt: off
BAD: dict[str, tuple[int, str, dict[str, Any]]] = {  # what is wrong → (status, what the sentence says, the request)
    "no body":                (400, "body is empty; send an image", {"content": b""}),
    "not an image":           (400, "not an image that we read: 5 bytes", {"content": b"hello"}),
    "a text file":            (400, "not an image", {"content": b"hello " * 1000}),
    "a GIF":                  (400, "no JPEG, PNG or WebP", {"content": encoded(tiny_images()[0], "GIF")}),
    "a BMP":                  (400, "no JPEG, PNG or WebP", {"content": encoded(tiny_images()[0], "BMP")}),
    "a cut-off PNG":          (400, "broken or cut off", {"content": bird(0)[:-40]}),
    "a cut-off JPEG":         (400, "broken or cut off", {"content": bird(0, "JPEG")[:300]}),
    "a bomb":                 (413, "more than 1,000,000 pixels; send a smaller one", {"content": bomb()}),
    "an animation":           (400, "animated, with 3 frames", {"content": animated()}),
    "a large file":           (413, "limit is 100,000", {"content": bytes(100_001)}),
    "a large body":           (413, "limit is 200,000", {"content": bytes(200_001)}),
    "a JSON body":            (415, "'application/json'; send an image", {"json": {"image": "…"}}),
    "a GIF by its type":      (415, "'image/gif'", typed("image/gif", b"GIF89a")),
    "compressed":             (415, "'gzip'", {"content": b"x", "headers": {"Content-Encoding": "gzip"}}),
    "an unknown answer":      (400, "linear or nearest_mean, not 'best'", asked("?answer=best")),
    "top_k of 0":             (400, "from 1 to 10000, not '0'", asked("?top_k=0")),
    "top_k below 0":          (400, "not '-1'", asked("?top_k=-1")),
    "top_k of one too many":  (400, "from 1 to 10000, not '10001'", asked("?top_k=10001")),
    "top_k of a billion":     (400, "not '1000000000'", asked("?top_k=1000000000")),
    "top_k in words":         (400, "not 'five'", asked("?top_k=five")),
    "top_k twice":            (400, "given twice", asked("?top_k=1&top_k=2")),
    "an unknown parameter":   (400, "no parameter 'topk'; there are top_k", asked("?topk=3")),
    "a shape of an image":    (415, "belongs to a tensor", asked("?shape=1,2") | typed("image/png", bird(0))),
    "a shape of letters":     (400, "N,H,W,3 or H,W,3", shaped("a,b,c,d")),
    "a shape of one number":  (400, "N,H,W,3 or H,W,3", shaped("768")),
    "a shape of four planes": (400, "end in 3", shaped("16,16,4")),
    "a shape with a zero":    (400, "no 0", shaped("0,16,16,3")),
    "another size":           (400, "has 768 bytes; the body has 5", shaped("16,16,3")),
    "an enormous shape":      (413, "999999998000000001 = |pixels", shaped("999999999,999999999,3")),
    "a long tensor":          (413, "has 5 images; send at most 4", shaped("5,1,1,3", bytes(15))),
    "too many images":        (413, "more than 4 images|has 5 images", form(*[("a.png", bird(0))] * 5)),
    "a form of many more":    (413, "more than 4 images", form(*[("a.png", bird(0))] * 9)),
    "a form with no image":   (400, "no image", written(b"--x--\r\n")),
    "a text field":           (400, r"'image' is text.*images=@cat\.jpg", TEXT),
    "a form without its end": (400, "no image|boundary", written(CUT)),
    "no boundary":            (400, "boundary", typed("multipart/form-data", b"abc")),
    "a nameless part":        (400, "form cannot be read", written(NAMELESS)),
    "two broken of three":    (400, r"image 2 of 3 \('b.png'\): not an .*; image 3 of 3 .* empty", TWO_BROKEN),
    "a large one of two":     (413, r"image 2 of 2 \('b.png'\): the image has 100,001 bytes", ONE_LARGE),
}
# fmt: on


@pytest.mark.parametrize("what", BAD)
def test_a_bad_query_is_told_what_is_wrong(site: Site, what: str) -> None:
    status, sentence, request = BAD[what]
    answer = site.post(**request)
    assert re.search(sentence, error(answer)), error(answer)
    assert answer.status_code == status
    assert site.post(content=bird(0)).status_code == 200  # and nobody else suffers


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_another_method_is_told_the_right_one(site: Site, method: str) -> None:
    answer = site.ask(method, "/v1/classify")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        assert error(answer) == f"{method} does not go with /v1/classify; allowed: POST"


@pytest.mark.parametrize("path", ["/v1/classify/", "/v1/classify/7", "/"])
def test_another_path_is_not_found_in_json(site: Site, path: str) -> None:
    answer = site.ask("POST", path)
    assert answer.status_code == 404
    assert path in error(answer)


def test_a_body_without_a_length_is_stopped_at_the_limit(site: Site) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 10_000
            yield bytes(10_000)

    answer = site.post(content=endless())
    assert answer.status_code == 413
    assert "limit is 200,000" in error(answer)
    assert sent <= 250_000
    assert site.replica.intake.held == 0


def test_a_body_that_trickles_in_is_not_waited_for(site: Site) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for byte in bird(0):
            yield bytes([byte])
            await asyncio.sleep(0.05)

    answer = site.post(content=slow())
    assert answer.status_code == 408
    assert re.search(r"\d+ bytes of the body arrived, and not all within 0.3 s", error(answer))


def test_a_body_of_which_nothing_more_comes_is_waited_for_only_so_long(registry: Registry) -> None:
    site = Site(registry, LIMITS.model_copy(update={"read_timeout_s": 60, "stall_timeout_s": 0.2}))

    async def stalling() -> AsyncIterator[bytes]:
        yield bird(0)[:100]
        await asyncio.sleep(60)

    began = time.monotonic()
    answer = site.post(content=stalling())
    assert time.monotonic() - began < 10
    assert answer.status_code == 408
    assert error(answer) == "100 bytes of the body arrived, then none for 0.2 s; send less in one request"
    site.close()


def test_more_requests_than_a_caller_may_send_in_a_second_are_put_off(registry: Registry) -> None:
    site = Site(registry, LIMITS.model_copy(update={"requests_per_second": 2, "replicas": 1}))
    answers = [site.post(content=bird(0)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert error(answers[2]) == "more than 2 requests a second, the limit of one caller; send it again in 1 s"
    assert answers[2].headers["retry-after"] == "1"
    site.close()


def test_more_than_a_replica_can_hold_is_put_off(registry: Registry) -> None:
    full = Site(registry, ServingOptions(max_requests=2))
    answers = full.while_busy([bird(0), bird(0), bird(0)])
    assert [answer.status_code for answer in answers] == [200, 200, 503]
    assert answers[2].headers["retry-after"] == "1"
    assert error(answers[2]) == "2 queries are being answered at the moment, the limit; try again"
    full.close()
    one, other = bird(0), bird(1)
    for limit, status in ((len(one + other), 200), (len(one + other) - 1, 503)):
        heavy = Site(registry, ServingOptions(max_body_bytes=limit, max_buffered_bytes=limit))
        answers = heavy.while_busy([one, other])
        assert [answer.status_code for answer in answers] == [200, status]
        assert heavy.replica.intake.held == 0
        heavy.close()
    assert answers[1].headers["retry-after"] == "1"
    assert error(answers[1]) == f"the bodies of all queries together exceed {limit:,} bytes; try again"


def test_an_answer_that_takes_too_long_is_given_up(registry: Registry) -> None:
    site = Site(registry, ServingOptions(answer_timeout_s=0.1))
    (answer,) = site.while_busy([bird(0)], busy_s=1)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert error(answer) == "no answer within 0.1 s; try again later"
    assert site.replica.intake.requests == 0
    assert site.post(content=bird(0)).status_code == 200
    site.close()


def test_a_full_queue_is_a_503_with_retry_after_and_the_rest_is_answered(registry: Registry) -> None:
    site = Site(registry)

    async def rush() -> list[httpx.Response]:
        transport = httpx.ASGITransport(site.replica.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.post("/v1/classify?shape=4,16,16,3", content=four) for _ in range(12)))

    four = tiny_images(4).tobytes()
    answers = site.loop.run_until_complete(rush())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert "exceed the limit of 8" in error(refused)
    assert refused.headers["retry-after"] == "1"
    assert site.post(content=bird(0)).status_code == 200
    site.close()


def test_a_client_that_leaves_the_queue_frees_its_place_and_is_counted(registry: Registry) -> None:
    site = Site(registry, LIMITS.model_copy(update={"lanes": 1}))
    batcher, free = site.replica.batcher, threading.Event()
    answer = batcher.run

    def when_free(queries: Any, alone: bool) -> Any:
        assert free.wait(30)
        return answer(queries, alone)

    batcher.run = when_free

    async def story() -> list[httpx.Response]:
        transport = httpx.ASGITransport(site.replica.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

            def ask() -> "asyncio.Task[httpx.Response]":
                return asyncio.create_task(
                    client.post("/v1/classify?shape=4,16,16,3", content=tiny_images(4).tobytes())
                )

            running = ask()
            while batcher._free or batcher.queued:
                await asyncio.sleep(0.01)
            leaving, staying = ask(), ask()
            while batcher.queued < 8:
                await asyncio.sleep(0.01)
            assert (await client.post("/v1/classify", content=bird(0))).status_code == 503  # it is full
            leaving.cancel()  # as Ray Serve does when a client leaves
            while batcher.queued != 4:
                await asyncio.sleep(0.01)
            instead = ask()
            while batcher.queued < 8:
                await asyncio.sleep(0.01)
            free.set()
            return await asyncio.gather(running, staying, instead)

    assert [found.status_code for found in site.loop.run_until_complete(asyncio.wait_for(story(), 30))] == [200] * 3
    counted = site.replica.metrics.registry.get_sample_value
    assert counted("lifelist_cancelled_total") == 1
    assert counted("lifelist_requests_total", {"code": "499"}) == 1
    assert (counted("lifelist_inflight_requests"), counted("lifelist_buffered_bytes")) == (0, 0)
    site.close()


def test_an_error_that_is_not_ours_says_nothing_but_where_to_look(registry: Registry) -> None:
    site = Site(registry)
    site.replica.batcher.run = lambda queries, alone: 1 / 0  # type: ignore[assignment,return-value]
    answer = site.post(content=bird(0), headers={"X-Request-ID": "abc"})
    assert answer.status_code == 500
    assert error(answer) == "internal error; the server's log has it under request id abc"
    site.close()


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "at_once"),
    [(NOISE[:8, :8], True), (NOISE, False), (np.zeros((200, 200, 3), np.uint8), False)],
    ids=["little", "many bytes", "few bytes, many pixels"],
)
def test_only_a_little_image_is_decoded_on_the_loop_and_each_gets_its_answer(
    site: Site, monkeypatch: pytest.MonkeyPatch, image: np.ndarray, at_once: bool
) -> None:
    decoded_by, sized = set[str](), classify.sized

    def noting(*given: Any) -> Any:
        found = sized(*given)  # or raises: by whoever refuses it nothing is decoded
        decoded_by.add(threading.current_thread().name.partition("_")[0])  # any thread of the pool
        return found

    monkeypatch.setattr(classify, "sized", noting)
    assert site.post(content=encoded(image)).status_code == 200
    assert decoded_by == {threading.main_thread().name if at_once else "decode"}


def test_the_loop_stays_free_while_images_are_decoded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    started, turned = threading.Event(), threading.Event()
    sized = classify.sized

    def waiting(*given: Any) -> Any:
        started.set()
        assert turned.wait(10)  # in vain if it holds the loop
        return sized(*given)

    async def decoded_beside_the_loop() -> None:
        transport = httpx.ASGITransport(site.replica.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            image = encoded(NOISE)
            task = asyncio.create_task(client.post("/v1/classify", files=[("i", ("a.png", image))]))
            while not task.done():
                await asyncio.sleep(0)
                if started.is_set():
                    turned.set()
            assert task.result().status_code == 200

    monkeypatch.setattr(classify, "sized", waiting)
    site.loop.run_until_complete(decoded_beside_the_loop())


def test_a_registry_with_nothing_live_starts_no_replica(tmp_path: Path) -> None:
    from lifelist.exporter.errors import Missing

    with pytest.raises(Missing, match="no live version; make one: lifelist base DATA"):
        Replica("one", Registry(str(tmp_path)), ServingOptions(), KEY, OPEN)
