"""The Python clients against real servers: what they take, what they give, and that what the docs say works."""

import asyncio
import inspect
import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import parts_operator
import pytest
from parts import BIRDS, encoded, tiny_images
from parts_client import Ask, with_both
from parts_http import Cutter
from parts_operator import bird, files, play, serving, take_step, tell_epoch
from parts_server import Server
from PIL import Image

from lifelist import AsyncClient, Client
from lifelist.client import errors, images
from lifelist.client.wire import Event
from lifelist.exporter.errors import BadInput, LifelistError

NAMES = BIRDS[:3]


def best(found: Any) -> list[str]:
    return [one["classes"][0]["name"] for one in found]


# ---------------------------------------------------------------------------------------------- a whole real server


@with_both
def test_every_kind_of_image_gets_the_same_answer(ask: Ask, server: Server, tmp_path: Path) -> None:
    pixels = tiny_images()[1]
    file = tmp_path / "x.png"
    file.write_bytes(encoded(pixels))
    given = [file, str(file), file.read_bytes(), ("x.png", file.read_bytes()), pixels, Image.fromarray(pixels)]
    one_by_one = [ask(server.url, "classify", image)["images"] for image in given]
    assert [best(found) for found in one_by_one] == [[BIRDS[1]]] * len(given)
    together = ask(server.url, "classify", given, top_k=1)
    assert best(together["images"]) == [BIRDS[1]] * len(given)
    assert len({found[0]["classes"][0]["score"] for found in one_by_one}) == 1  # pixel for pixel


@with_both
def test_many_pixels_are_sent_in_queries_of_the_batch_size_and_answered_in_order(ask: Ask, server: Server) -> None:
    order = [0, 2, 1, 1, 0, 2, 2]
    pixels = np.stack([tiny_images()[k] for k in order])
    wanted = [BIRDS[k] for k in order]
    assert best(ask(server.url, "classify", pixels)["images"]) == wanted
    found = ask(server.url, "classify_many", pixels, batch=3)
    assert best(found) == wanted
    assert {one["version"] for one in found} == {server.get("/v1/versions")["live"]}
    assert best(ask(server.url, "classify_many", list(pixels), batch=2)) == wanted


@with_both
def test_a_client_may_ask_what_is_unknown(ask: Ask, server: Server) -> None:
    (plain,), (asked,) = (
        ask(server.url, "classify", tiny_images(1), **how)["images"] for how in ({}, {"unknown_at": 0.05})
    )
    assert (plain["unknown_score"], "unknown" in plain) == (None, False)  # that version was not calibrated
    assert (asked["unknown_score"], asked["unknown"]) == (None, None)
    assert all("unknown" in one for one in ask(server.url, "classify_many", tiny_images(2), unknown_at=0.5))
    with pytest.raises(BadInput, match="unknown_at should be a share from 0 to 1"):
        ask(server.url, "classify", tiny_images(1), unknown_at=2)


@with_both
def test_a_client_sees_what_there_is(ask: Ask, server: Server) -> None:
    live = server.get("/v1/versions")["live"]
    assert ask(server.url, "versions")["live"] == live
    assert {known["name"] for known in ask(server.url, "classes")["classes"]} >= set(NAMES)
    assert ask(server.url, "version", live)["version"] == live
    assert ask(server.url, "health")["ready"] is ask(server.url, "live")["live"] is ask(server.url, "ready") is True
    assert "lifelist_requests_total" in ask(server.url, "metrics")


@with_both
def test_a_refusal_has_the_servers_sentence_its_status_and_the_requests_id(ask: Ask, server: Server) -> None:
    with pytest.raises(errors.Missing, match="there is no version 4711") as caught:
        ask(server.url, "version", 4711)
    assert caught.value.status == 404
    assert re.fullmatch("[0-9a-f]{32}", caught.value.request_id)
    with pytest.raises(BadInput, match=r"image 2 of 2 .*not an image"):  # the names of the exporter's tree catch it too
        ask(server.url, "classify", [encoded(tiny_images()[0]), b"no image"])


# ------------------------------------------------------------------------------------------------------- updates


@pytest.fixture
def small(tmp_path: Path) -> Iterator[parts_operator.Server]:
    with serving(tmp_path / "home") as made:
        yield made


@with_both
def test_examples_come_from_a_folder_and_those_that_are_there_are_told(
    ask: Ask, small: parts_operator.Server, tmp_path: Path
) -> None:
    for k in (3, 4):
        (tmp_path / "pictures" / BIRDS[k]).mkdir(parents=True)
        for name, data in files(k, 5):
            (tmp_path / "pictures" / BIRDS[k] / name).write_bytes(data)
    sent: list[int] = []
    added = ask(small.url, "add_examples", "wren", tmp_path / "pictures" / BIRDS[3], sent.append, batch=2)
    assert (added["accepted"], added["class"]["state"], len(sent)) == (5, "enrolled", 5)
    assert [e["file"] for e in added["examples"]] == [name for name, _ in sorted(files(3, 5))]
    again = ask(small.url, "add_examples", "wren", str(tmp_path / "pictures" / BIRDS[3]))
    assert [e["status"] for e in again["examples"]] == ["duplicate"] * 5
    both = ask(small.url, "add_folder", tmp_path / "pictures")
    assert sorted((one["class"]["name"], one["accepted"]) for one in both) == [("robin", 5), ("wren", 0)]


def carry_when_started(server: parts_operator.Server) -> threading.Thread:
    """Take an increment through its states as its carrier would, as soon as there is one."""

    def carry() -> None:
        shop = server.workshop
        while not shop.store.open_rollouts():
            time.sleep(0.02)
        rollout = take_step(shop, take_step(shop, shop.store.open_rollouts()[0], "intake"), "train")
        for epoch in (1, 2):
            tell_epoch(shop, rollout, epoch, 2)
        shop.store.move(rollout, "failed", {}, reason="the disk is full")

    thread = threading.Thread(target=carry)
    thread.start()
    return thread


@with_both
def test_an_increment_is_waited_for_and_tells_its_progress(ask: Ask, small: parts_operator.Server) -> None:
    ask(small.url, "add_examples", "wren", files(3, 12))
    thread = carry_when_started(small)
    started = ask(small.url, "start_increment", ["wren"])
    told: list[Event] = []
    ended = ask(small.url, "wait", started["id"], told.append)
    thread.join()
    assert (ended["state"], ended["reason"]) == ("failed", "the disk is full")
    assert [event.progress["epoch"] for event in told if event.progress] == [1, 2]
    assert told[-1].kind == "ended"
    assert [e.id for e in ask(small.url, "events", started["id"], told[3].id)] == [e.id for e in told[4:]]


def test_an_awaited_watcher_whose_connection_breaks_misses_no_event(small: parts_operator.Server) -> None:
    with Client(small.url) as client:
        client.add_examples("wren", files(3, 12))
        client.start_increment()
        play(small)
        every = list(client.events(1))
        cutter = Cutter(int(small.port), after=len(str(client.increment(1))) + 2500)

    async def watched() -> list[Event]:
        async with AsyncClient(cutter.url) as other:
            return [event async for event in other.events(1)]

    assert asyncio.run(watched()) == every
    cutter.listener.close()
    assert cutter.cuts >= 1


@with_both
def test_versions_are_moved_and_answers_judged(ask: Ask, small: parts_operator.Server) -> None:
    made = ask(small.url, "classify", bird(0))["images"][0]
    assert ask(small.url, "feedback", made["prediction_id"], BIRDS[0])["correct"]
    ask(small.url, "add_examples", "wren", files(3, 3))
    assert ask(small.url, "rollback") == {"live": 1, "previous": 2, "generation": 3}
    assert ask(small.url, "promote", 2)["live"] == 2
    with pytest.raises(errors.Conflict) as caught:
        ask(small.url, "start_increment", [BIRDS[0]])
    assert caught.value.status == 409


# -------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32, 4×4×3"),
        (np.zeros((4, 4), np.uint8), "uint8, 4×4"),
        (np.zeros((2, 4, 4, 3, 1), np.uint8), "2×4×4×3×1"),
        ([7], "not int '7'"),
        ([("a", "b")], "not tuple"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_before_anything_is_sent(image: Any, said: str) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(BadInput, match=re.escape(said)):
        client.classify(image)


@with_both
@pytest.mark.parametrize(("method", "arguments"), [("classify", [[]]), ("add_examples", ["wren", []])])
def test_no_image_at_all_is_refused(ask: Ask, method: str, arguments: list[Any]) -> None:
    with pytest.raises(BadInput, match="there is no image"):
        ask("http://127.0.0.1:1", method, *arguments)


def test_a_pil_image_goes_as_a_person_sees_it() -> None:
    lying = Image.fromarray(tiny_images()[0][:, :8])
    exif = lying.getexif()
    exif[0x0112] = 6  # to be turned by 90°
    out = io.BytesIO()
    lying.save(out, "PNG", exif=exif)
    (_, (_, sent, _)), *_ = images.parts([Image.open(out)])
    assert Image.open(io.BytesIO(sent.read())).size == (16, 8)
    (_, (name, sent, kind)), *_ = images.parts([Image.new("CMYK", (3, 2))])
    assert (name, kind, Image.open(io.BytesIO(sent.read())).mode) == ("image-1.png", "image/png", "RGB")


# ------------------------------------------------------------------------------------------------ both, and the docs


def test_both_clients_have_the_same_methods_with_the_same_arguments_and_answers() -> None:
    def public(kind: type) -> dict[str, inspect.Signature]:
        return {n: inspect.signature(m) for n, m in vars(kind).items() if inspect.isfunction(m) and n[0] != "_"}

    waits, awaits = public(Client), public(AsyncClient)
    assert set(waits) == set(awaits)
    for name, signature in waits.items():
        other = {n: p for n, p in awaits[name].parameters.items() if n != "concurrency"}
        assert dict(signature.parameters) == other, name
        given = str(awaits[name].return_annotation).replace("AsyncIterator", "Iterator")
        assert str(signature.return_annotation) == given, name


def test_every_error_of_the_client_is_told_by_its_status_and_drawn_in_the_tree() -> None:
    kinds = [errors.of_status(status) for status in (400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 500, 503, 302)]
    drawn = set(re.findall(r"── (\w+)", cast(str, errors.__doc__)))
    assert {kind.__name__ for kind in kinds} | {errors.Denied.__name__} == drawn
    assert all(issubclass(kind, LifelistError) for kind in kinds)


def test_the_examples_in_the_docs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    for k, folder in ((0, "heron"), (3, "wren")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for n, (_, data) in enumerate(files(k, 12), start=1):
            (tmp_path / "photos" / folder / f"{n:02}.png").write_bytes(data)
    with serving(tmp_path / "home") as server:
        for block in blocks:
            thread = carry_when_started(server) if "start_increment" in block else None
            exec(compile(block.replace("http://127.0.0.1:8000", server.url), "docs/client.md", "exec"), {})
            if thread is not None:
                thread.join()
    printed = capsys.readouterr().out
    for line in (
        r"^heron 0\.\d+ says version 1$",
        "^01 heron 1$",
        "^100$",
        "^12 taken",
        "^main 2 of 2$",
        "^there is no",
    ):
        assert re.search(line, printed, re.MULTILINE), line


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("url", ["http://[::1", "localhost:8000", "127.0.0.1", "", "http://", "ftp://here"])
def test_what_is_no_url_of_a_server_is_told_at_once(client: Any, url: str) -> None:
    with pytest.raises(BadInput, match=re.escape(repr(url)) + r" is no URL.* http://host:port$"):
        client(url)


def test_a_path_that_is_no_file_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    with Client("http://127.0.0.1:9") as client:
        for ask in (client.classify, lambda images: list(client.classify_many(images))):
            with pytest.raises(BadInput, match=r"nowhere\.png does not exist"):
                ask([tmp_path / "nowhere.png"])
            with pytest.raises(BadInput, match=f"^{re.escape(str(tmp_path))} is a folder; give the files in it"):
                ask(str(tmp_path))
