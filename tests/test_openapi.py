"""The description is complete and true: schemathesis asks every route what it says one may ask, and what it forbids.

    python tests/test_openapi.py 1000

does the same for longer: so many requests to each route in place of a few, and sequences of them.
"""

import contextlib
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from parts import BIRDS, tiny_images, tiny_version
from parts_operator import Server, bird, files, play, serving
from parts_server import eventually, free_port
from schemathesis import GenerationMode
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.engine import events, from_schema

from lifelist import Client
from lifelist.deploy.watch import queue
from lifelist.monitoring import tables, times
from lifelist.monitoring.options import Webhook
from lifelist.serving import keys, oip
from lifelist.serving.prediction import Prediction, key_in, seal

QUERY = {"name": "images", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": tiny_images()[0].ravel().tolist()}
FREE = ("outputs", "parameters")  # of queries in the Open Inference Protocol: what they name must fit one another
REQUESTS = 8  # generated for each route, beside those that follow from the description's limits and examples


@contextlib.contextmanager
def described() -> Iterator[tuple[Server, str]]:
    """A server with something of everything: versions, an increment that ended, a class that waits, an answer's id."""
    hook = Webhook(url=f"http://127.0.0.1:{free_port()}/", secret="x" * 16)  # type: ignore[arg-type]
    with (
        tempfile.TemporaryDirectory() as home,
        serving(Path(home), webhooks=(hook,)) as server,
        Client(server.url) as client,
    ):
        _keep_images(server, 50)
        client.add_examples("wren", files(3, 12))
        client.start_increment(["wren"])
        play(server)
        client.add_examples("robin", files(4, 12))
        exemplars = {4: [server.workshop.images.put(bird(3))]}
        tiny_version(server.workshop.registry, BIRDS[:4], first_id=1, passed=False, exemplars=exemplars)
        answer = client.classify(bird(0))["images"][0]["prediction_id"]
        with _ending_increments(server):
            yield server, answer


def _keep_images(server: Server, count: int) -> None:
    """So many images wait for somebody to label them."""
    kept, key = queue(server.settings, server.workshop), key_in(server.settings.secret_file)
    rows = [
        {"prediction_id": seal(key, Prediction(1, 1, "linear", time.time())), "state": "open", "use": 0.5}
        | {"sha256": kept.images.put(bird(0, k)), "why": ["margin"], "version": 1, "answer": "linear", "predicted": 1}
        | {"margin": 0.1, "unknown": None, "suggestions": [[1, 0.5], [2, None]]}
        | {"at": times.now(), "added_at": times.now()}
        for k in range(count)
    ]
    with server.workshop.store.writing() as connection:
        connection.execute(tables.review.insert(), rows)


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


def loaded(server: Server, answer: str, requests: int, *phases: str, key: str = "") -> Any:
    """What the server says of itself, as schemathesis reads it; half of what it makes up is turned to what exists."""
    config = schemathesis.Config(seed=1)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config)
    schema.config.update(continue_on_failure=True, request_timeout=60, headers={"X-API-Key": key} if key else {})
    schema.config.generation.update(max_examples=requests, deterministic=True)
    schema.config.phases.update(phases=["examples", "coverage", "fuzzing", *phases])
    excluded = ["positive_data_acceptance"]  # no description tells an image
    excluded += ["unsupported_method"] if key else []  # a method that is not there is the operator's alone: 403
    schema.config.checks.update(excluded_check_names=excluded)

    kept = [one.prediction_id for one in queue(server.settings, server.workshop).waiting(1000)]
    turns = Counter[str]()  # valid cases of each route so far

    @schema.hook  # type: ignore[untyped-decorator]
    def map_case(context: Any, case: Any) -> Any:
        """Half of what is valid becomes what exists: numbers, images, classes, the id of an answer."""
        drawn, turn = chance((case.path_parameters, case.body)), turns[case.operation.label]
        if case.meta is None or case.meta.generation.mode is GenerationMode.NEGATIVE:
            return case
        turns[case.operation.label] += 1
        if case.path.startswith("/v2/"):  # by turns, since there is hardly anything else to draw
            number = "live" if turn % 2 else str(turn // 2 % 4 + 1)
            named = {"model": "another" if turn % 3 == 1 else "lifelist", "name": f"lifelist/versions/{number}"}
            case.path_parameters = {name: named.get(name, number) for name in case.path_parameters or {}}
        elif case.path.startswith("/v1/review/"):  # by turns: each is judged once
            if turn % 2 == 0:
                case.path_parameters = {"prediction_id": kept.pop(0) if case.method == "POST" else kept[-1]}
                case.body = {"class": "robin"} if case.method == "POST" else case.body
            return case
        elif (turn if case.path_parameters else drawn) % 2:
            return case
        elif case.path_parameters:  # by turns too: a route may know few numbers
            case.path_parameters = dict.fromkeys(case.path_parameters, 4 - turn // 2 % 4)
        if case.path.endswith("/infer"):
            about = (oip.HEADER.lower(), "content-encoding")  # of a body that is another now
            other = {name: value for name, value in (case.headers or {}).items() if name.lower() not in about}
            case.headers = other | ({oip.HEADER: "0"} if isinstance(case.body, bytes) else {})
        if isinstance(case.body, bytes):  # an image, which has no shape: only a tensor has
            case.body = bird(drawn // 2 % 5, drawn % 200)
            case.query = {name: value for name, value in (case.query or {}).items() if name != "shape"}
            case.headers = {n: value for n, value in (case.headers or {}).items() if n.lower() != "x-tensor-shape"}
        if isinstance(case.body, dict):
            real = {"prediction_id": answer, "classes": ["robin"], "method": None, "idempotency_key": None}
            real |= {"images": [bird(4, drawn % 200)], "class": "robin", "inputs": [QUERY], "expected_version": None}
            case.body = {name: real.get(name, value) for name, value in case.body.items() if name not in FREE}
        return case

    @schema.hook  # type: ignore[untyped-decorator]
    def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
        """In a form all is text: a name that was to be a boolean is the name "false"."""
        return not (isinstance(failure, AcceptedNegativeData) and case.media_type == "multipart/form-data")

    return schema


def chance(value: Any) -> int:
    """A number that depends on the value alone, so that a failure is the same when it is tried again."""
    return zlib.crc32(repr(value).encode(errors="replace"))


@dataclass
class Session:
    """What was asked of every route, and what came of it."""

    schema: Any
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))  # by route
    failures: dict[str, str] = field(default_factory=dict)  # an example of each kind, by route and kind

    def run(self) -> None:
        """Ask, and compare each answer with the description: status, type, headers, schema, and what it must refuse."""
        for event in from_schema(self.schema).execute():
            if isinstance(event, events.ScenarioFinished):
                self._note(event.recorder)
            elif isinstance(event, events.NonFatalError):
                self.failures[f"{event.label}: {event.value!r}"] = "schemathesis itself"
            elif isinstance(event, events.FatalError):
                raise event.exception

    def _note(self, recorder: Any) -> None:
        for name, interaction in recorder.interactions.items():
            case = recorder.cases[name].value
            if interaction.response is not None:
                self.statuses[f"{case.method} {case.path}"][interaction.response.status_code] += 1
            for check in recorder.checks.get(name, []):
                if check.failure_info is not None:
                    failure = check.failure_info.failure
                    self.failures[f"{case.operation.label}: {failure.title}"] = (
                        f"{failure.message}\n{check.failure_info.code_sample}\n"
                        f"{interaction.response.status_code} {interaction.response.content[:300]!r}"
                    )


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with described() as (server, answer):
        made = Session(loaded(server, answer, REQUESTS))
        made.run()
        assert httpx.get(f"{server.url}/v1/health/ready").status_code == 200
        yield made


def test_every_answer_is_as_the_description_says(session: Session) -> None:
    assert session.failures == {}


def test_every_route_was_asked_what_it_answers_and_what_it_refuses(session: Session) -> None:
    operations = [result.ok() for result in session.schema.get_all_operations()]
    every = {one.label for one in operations}
    refusing = {one.label for one in operations if "{" in one.path or list(one.body)}
    assert (len(every) >= 15, len(refusing) >= 9) == (True, True)
    for routes, first in ((every, 200), (refusing, 400)):
        seen = {route for route, statuses in session.statuses.items() if any(s // 100 * 100 == first for s in statuses)}
        assert routes - seen == set()


def test_the_description_is_valid_openapi(session: Session) -> None:
    session.schema.validate()


def test_with_a_key_for_queries_the_rest_is_refused_as_the_description_says() -> None:
    with described() as (server, answer):
        key = keys.add(server.settings.keys_file, "camera", ["classify"])
        for path in ("/v1/classify", "/v1/rollback"):  # both applications have seen the file
            eventually(lambda path=path: httpx.post(server.url + path, headers={"X-API-Key": "no"}).status_code == 401)
        schema = loaded(server, answer, 1, key=key)
        session = Session(schema)
        session.run()
        operations = [result.ok() for result in schema.get_all_operations()]
    assert session.failures == {}
    for operation in operations:
        responses = operation.definition.raw["responses"]
        for status, name in (("401", "WWW-Authenticate"), ("429", "Retry-After"), ("503", "Retry-After")):
            assert status not in responses or responses[status]["headers"][name]["required"], operation.label
    assert 200 in session.statuses["POST /v1/classify"]
    assert 403 in session.statuses["POST /v1/rollback"]


def main(requests: int) -> None:
    """The longer session."""
    began = time.monotonic()
    with described() as (server, answer):
        session = Session(loaded(server, answer, requests, "stateful"))
        session.run()
    for route, statuses in sorted(session.statuses.items()):
        print(f"{route:45} {dict(sorted(statuses.items()))}")
    print(f"{sum(map(Counter.total, session.statuses.values()))} requests in {time.monotonic() - began:.0f} s")
    for kind, example in session.failures.items():
        print(f"\n{kind}\n{example}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
