"""The methods of gRPC behind a real gRPC server in this process, with a whole replica: no Ray, no HAProxy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from parts import encoded, tiny_images, tiny_version
from test_classify import LIMITS, Site
from tritonclient.grpc import service_pb2 as pb

from lifelist.exporter.registry import Registry
from lifelist.serving import keys
from lifelist.serving.grpc import Service, add_to_server

IMAGE = encoded(tiny_images()[0])
RATE = 4


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A replica that lets each caller in four times a second, of which none passes here."""
    registry = Registry(str(tmp_path / "registry"))
    tiny_version(registry, live=True)
    guard = keys.Guard(tmp_path / "keys.json", anonymous=True)
    made = Site(registry, LIMITS.model_copy(update={"requests_per_second": RATE}), guard)
    made.replica.parts.door.buckets.clock = lambda: 0.0
    yield made
    made.close()


def message() -> bytes:
    """A ModelInferRequest with one image file."""
    request = pb.ModelInferRequest(model_name="lifelist", id="a")
    request.inputs.add(name="image_bytes", datatype="BYTES", shape=[1]).contents.bytes_contents.append(IMAGE)
    return request.SerializeToString()


def called(site: Site, *calls: tuple[str, list[bytes]], **metadata: str) -> list[tuple[str, Any]]:
    """The code of each call, one after the other, with its message or its answers."""

    async def all_of_them() -> list[tuple[str, Any]]:
        service, server = Service(), grpc.aio.server()
        service.replica = site.replica
        add_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            found = [await one(channel, *call) for call in calls]
        await server.stop(None)
        return found

    async def one(channel: grpc.aio.Channel, method: str, messages: list[bytes]) -> tuple[str, Any]:
        path, pairs = f"/inference.GRPCInferenceService/{method}", tuple(metadata.items())
        try:
            if method == "ModelStreamInfer":
                stream = channel.stream_stream(path)(iter(messages), metadata=pairs)
                return "OK", [pb.ModelStreamInferResponse.FromString(answer) async for answer in stream]
            return "OK", await channel.unary_unary(path)(messages[0], metadata=pairs)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()

    return site.loop.run_until_complete(asyncio.wait_for(all_of_them(), 60))


PAST = f"more than {RATE} requests a second, the limit of one caller; send it again in 1 s"


def test_calls_and_http_requests_count_together_and_one_past_the_limit_is_refused(site: Site) -> None:
    http = [site.post(content=IMAGE).status_code for _ in range(2)]
    found = called(site, *[("ModelInfer", [message()])] * 3, ("ServerLive", [b""]))
    assert http == [200, 200]
    assert [code for code, _ in found] == ["OK", "OK", "RESOURCE_EXHAUSTED", "OK"]  # health is not counted
    assert found[2][1] == PAST
    assert site.post(content=IMAGE).status_code == 429


def test_each_message_of_a_stream_counts_and_one_past_the_limit_is_told_so(site: Site) -> None:
    ((code, answers),) = called(site, ("ModelStreamInfer", [message()] * (RATE + 1)))
    assert code == "OK"
    assert [answer.error_message for answer in answers] == [""] * RATE + [PAST]
    assert answers[0].infer_response.id == "a"


def test_each_key_has_a_rate_of_its_own(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    one, other = keys.add(file, "one", ["classify"]), keys.add(file, "other", ["classify"])
    calls = [("ModelInfer", [message()])] * (RATE + 1)
    assert [code for code, _ in called(site, *calls, **{"x-api-key": one})] == ["OK"] * RATE + ["RESOURCE_EXHAUSTED"]
    assert [code for code, _ in called(site, *calls[:1], **{"x-api-key": other})] == ["OK"]
    assert [code for code, _ in called(site, *calls[:1])] == ["UNAUTHENTICATED"]


@pytest.mark.parametrize("data", [b"\x0a\xff", b"\x0a\x01\xff", b"\xff" * 20, b"\0"], ids=repr)
def test_bytes_that_are_no_message_are_refused_as_other_input_is(site: Site, data: bytes) -> None:
    says = f"the message of {len(data)} bytes is no ModelInferRequest"
    found = called(site, ("ModelInfer", [data]), ("ModelStreamInfer", [data, message()]))
    assert found[0] == ("INVALID_ARGUMENT", says)
    assert [answer.error_message for answer in found[1][1]] == [says, ""]
