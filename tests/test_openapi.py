"""The description is complete and true: schemathesis asks every route what it says one may ask, and what it forbids.

    python tests/test_openapi.py 1000

does the same for longer: so many requests to each route in place of a few.
"""

import contextlib
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from parts import BIRDS, tiny_version
from parts_operator import Server, bird, files, play, serving
from schemathesis.specs.openapi.checks import positive_data_acceptance

from lifelist import Client

REQUESTS = 12  # generated for each route, beside those that follow from the description's limits and examples
Seen = dict[str, Counter[int]]


@contextlib.contextmanager
def described() -> Iterator[tuple[Server, str]]:
    """A server with something of everything: versions, an increment that ended, a class that waits, an answer's id."""
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as server, Client(server.url) as client:
        client.add_examples("wren", files(3, 12))
        client.start_increment(["wren"])
        play(server)
        client.add_examples("robin", files(4, 12))
        tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, passed=False)
        answer = client.classify(bird(0))["images"][0]["prediction_id"]
        with _ending_increments(server):
            yield server, answer


@contextlib.contextmanager
def _ending_increments(server: Server) -> Iterator[None]:
    """Whatever is started is cancelled soon: nobody is there to carry it on, and its events would never end."""
    stop = threading.Event()

    def ending() -> None:
        while not stop.wait(0.05):
            for rollout in server.workshop.store.open_rollouts():
                server.workshop.store.request_cancel(rollout.id)

    thread = threading.Thread(target=ending, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def loaded(server: Server, answer: str, requests: int) -> Any:
    """What the server says of itself, as schemathesis reads it; half of what it makes up is turned to what exists."""
    config = schemathesis.Config(seed=1)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    schema.config.generation.update(max_examples=requests, deterministic=True)

    @schema.hook  # type: ignore[untyped-decorator]
    def map_path_parameters(context: Any, path_parameters: Any) -> Any:
        """Numbers of versions and increments that exist."""
        known = {name: chance(value) % 4 + 1 for name, value in path_parameters.items() if isinstance(value, int)}
        return path_parameters if chance(path_parameters) % 2 else path_parameters | known

    @schema.hook  # type: ignore[untyped-decorator]
    def map_body(context: Any, body: Any) -> Any:
        """Real images, a real class, the id of a real answer."""
        drawn = chance(body)
        if drawn % 2:
            return body
        if isinstance(body, bytes):
            return bird(drawn % 5, drawn % 200)
        if not isinstance(body, dict):
            return body
        real = {"prediction_id": answer, "classes": ["robin"], "method": None, "idempotency_key": None}
        real |= {"images": [bird(4, drawn % 200)], "class": "robin" if drawn % 4 else body.get("class")}
        return {name: real.get(name, value) for name, value in body.items()}

    return schema


def chance(value: Any) -> int:
    """A number that depends on the value alone, so that a failure is the same when it is tried again."""
    return zlib.crc32(repr(value).encode(errors="replace"))


@pytest.fixture(scope="module")
def seen() -> Seen:
    """Statuses by route."""
    return defaultdict(Counter)


@pytest.fixture(scope="module")
def description() -> Iterator[Any]:
    with described() as (server, answer):
        yield loaded(server, answer, REQUESTS)


every = schemathesis.pytest.from_fixture("description")


@every.parametrize()
def test_every_answer_is_as_the_description_says(case: Any, seen: Seen) -> None:
    ask(case, seen)


def ask(case: Any, seen: Seen) -> None:
    """Send one request, and compare the answer with what is described: status, type, headers, schema, refusals."""
    answer = case.call(timeout=20)
    seen[case.operation.label][answer.status_code] += 1
    case.validate_response(answer, excluded_checks=[positive_data_acceptance])  # no description tells an image


def test_every_route_was_asked_what_it_answers_and_what_it_refuses(description: Any, seen: Seen) -> None:
    operations = {result.ok().label for result in description.get_all_operations()}
    assert len(operations) >= 15
    assert {label for label in operations if any(200 <= status < 300 for status in seen[label])} == operations
    assert {label for label in operations if any(400 <= status < 500 for status in seen[label])} == operations


def test_the_description_is_valid_openapi(description: Any) -> None:
    description.validate()


def main(requests: int) -> None:
    """The longer session: every route with so many requests; each kind of failure once."""
    seen: Seen = defaultdict(Counter)
    began = time.monotonic()
    failures: Counter[str] = Counter()
    with described() as (server, answer):
        for result in loaded(server, answer, requests).get_all_operations():
            _long(result.ok(), requests, seen, failures)
        assert httpx.get(f"{server.url}/v1/health/ready").status_code == 200
    for label, statuses in seen.items():
        print(f"{label:45} {dict(sorted(statuses.items()))}")
    print(f"{sum(map(Counter.total, seen.values()))} requests in {time.monotonic() - began:.0f} s")
    for failure, count in failures.most_common():
        print(f"\n{count} × {failure}")


def _long(operation: Any, requests: int, seen: Seen, failures: "Counter[str]") -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    kinds = [operation.as_strategy(generation_mode=mode) for mode in GenerationMode]

    @settings(
        max_examples=requests, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.one_of(kinds))
    def asked(case: Any) -> None:
        try:
            ask(case, seen)
        except Exception as error:  # noqa: BLE001 (counted, and printed at the end)
            failures[f"{operation.label}: {str(error)[:1500]}"] += 1

    asked()


if __name__ == "__main__":
    main(int(sys.argv[1]))
