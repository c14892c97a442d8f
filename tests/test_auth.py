"""Who may call what: every route of both applications, with every kind of key, and with none."""

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi.routing import APIRoute
from grpc_health.v1 import health_pb2
from parts import BIRDS, OPEN
from parts_operator import Server as Site
from parts_operator import bird, serving
from parts_server import Server, eventually, listeners
from starlette.routing import Route
from tritonclient.grpc import service_pb2, service_pb2_grpc

from lifelist.client.blocking import Client
from lifelist.deploy import cli, ground, operator
from lifelist.exporter.errors import BadKey, Forbidden
from lifelist.serving import auth, keys, oip_routes
from lifelist.serving import grpc as by_grpc
from lifelist.serving.addresses import is_loopback
from lifelist.serving.app import Replica
from lifelist.serving.catalog import Catalog
from lifelist.serving.options import ServingOptions

x, o = True, False
ABSENT = {  # of the protocol: 501, and to the operator alone
    f"{method} {path}": (o, o, o, o, x) for method in ("GET", "POST") for path in oip_routes.ABSENT
}
CALLERS = ("nobody", "read", "classify", "feedback", "operate")
# fmt: off
WHO = {  #                                     nobody  read  classify  feedback  operate
    "GET /v1/health/live":                    (x,      x,    x,        x,        x),
    "GET /v1/health/ready":                   (x,      x,    x,        x,        x),
    "GET /docs":                              (x,      x,    x,        x,        x),
    "GET /docs/{name}":                       (x,      x,    x,        x,        x),
    "GET /openapi.json":                      (x,      x,    x,        x,        x),
    "GET /dashboard":                         (x,      x,    x,        x,        x),
    "GET /dashboard/{name}":                  (x,      x,    x,        x,        x),
    "GET /v1/caller":                         (x,      x,    x,        x,        x),
    "POST /v1/classify":                      (o,      o,    x,        o,        x),
    "POST /v1/feedback":                      (o,      o,    o,        x,        x),
    "GET /v1/classes":                        (o,      x,    x,        x,        x),
    "GET /v1/classes/{class_id}":             (o,      x,    o,        o,        x),
    "PATCH /v1/classes/{class_id}":           (o,      o,    o,        o,        x),
    "GET /v1/versions":                       (o,      x,    o,        o,        x),
    "GET /v1/versions/{version}":             (o,      x,    o,        o,        x),
    "GET /v1/versions/{version}/exemplars":   (o,      x,    o,        o,        x),
    "GET /v1/versions/{version}/exemplars/{class_id}":  (o, x, o,      o,        x),
    "GET /v1/increments":                     (o,      x,    o,        o,        x),
    "GET /v1/increments/{increment}":         (o,      x,    o,        o,        x),
    "GET /v1/increments/{increment}/events":  (o,      x,    o,        o,        x),
    "GET /v1/quality":                        (o,      x,    o,        o,        x),
    "GET /v1/quality/curve":                  (o,      x,    o,        o,        x),
    "GET /v1/quality/confusions":             (o,      x,    o,        o,        x),
    "GET /v1/quality/bias":                   (o,      x,    o,        o,        x),
    "GET /v1/drift":                          (o,      x,    o,        o,        x),
    "GET /v1/alarms":                         (o,      x,    o,        o,        x),
    "GET /v1/notices":                        (o,      x,    o,        o,        x),
    "GET /metrics":                           (o,      x,    o,        o,        x),
    "POST /v1/examples":                      (o,      o,    o,        o,        x),
    "POST /v1/increments":                    (o,      o,    o,        o,        x),
    "POST /v1/increments/{increment}:cancel": (o,      o,    o,        o,        x),
    "POST /v1/versions/{version}:promote":    (o,      o,    o,        o,        x),
    "POST /v1/rollback":                      (o,      o,    o,        o,        x),
    "GET /v1/triggers":                       (o,      x,    o,        o,        x),
    "GET /v1/review":                         (o,      o,    o,        o,        x),
    "GET /v1/review/{prediction_id}/image":   (o,      o,    o,        o,        x),
    "POST /v1/review/{prediction_id}":        (o,      o,    o,        o,        x),
    "GET /v1/webhooks":                       (o,      o,    o,        o,        x),
    "POST /v1/webhooks:test":                 (o,      o,    o,        o,        x),
    "POST /v2/models/{model}/infer":          (o,      o,    x,        o,        x),
    "POST /v2/models/{model}/versions/{version}/infer": (o, o, x,      o,        x),
    "GET /v2":                                (x,      x,    x,        x,        x),
    "GET /v2/health/live":                    (x,      x,    x,        x,        x),
    "GET /v2/health/ready":                   (x,      x,    x,        x,        x),
    "GET /v2/models/stats":                   (o,      x,    o,        o,        x),
    "GET /v2/models/{model}":                 (o,      x,    x,        o,        x),
    "GET /v2/models/{model}/config":          (o,      x,    x,        o,        x),
    "GET /v2/models/{model}/ready":           (o,      x,    x,        o,        x),
    "GET /v2/models/{model}/stats":           (o,      x,    o,        o,        x),
    "GET /v2/models/{model}/versions/{version}":        (o, x, x,      o,        x),
    "GET /v2/models/{model}/versions/{version}/config": (o, x, x,      o,        x),
    "GET /v2/models/{model}/versions/{version}/ready":  (o, x, x,      o,        x),
    "GET /v2/models/{model}/versions/{version}/stats":  (o, x, o,      o,        x),
    "POST /v2/repository/index":              (o,      x,    o,        o,        x),
    "POST /v2/repository/models/{name:path}/load":      (o, o, o,      o,        x),
    "POST /v2/repository/models/{name:path}/unload":    (o, o, o,      o,        x),
} | ABSENT
# fmt: on


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serving(tmp_path_factory.mktemp("home")) as made:
        yield made


@pytest.fixture(scope="module")
def callers(site: Site) -> dict[str, dict[str, str]]:
    """The headers that each caller sends."""
    made = {role: keys.add(site.settings.keys_file, role, [role]) for role in keys.ROLES}
    with httpx.Client(base_url=site.url) as http:
        for path in ("/v1/classify", "/v1/rollback"):  # both applications have seen the file
            eventually(lambda path=path: http.post(path, headers={"X-API-Key": "no"}).status_code == 401)
    return {"nobody": {}} | {role: {"Authorization": f"Bearer {key}"} for role, key in made.items()}


def routes(application: Any) -> set[str]:
    """Every route of an application as METHOD /path, found by taking off the layers around it."""
    while not hasattr(application, "routes"):
        application = application.app if hasattr(application, "app") else application.inner
    found = set[str]()
    for route in application.routes:
        if hasattr(route, "original_router"):  # FastAPI keeps a router that was included as it is
            assert not route.include_context.prefix
            found |= routes(route.original_router)
            continue
        assert isinstance(route, Route | APIRoute), route  # no mount, no WebSocket: the table knows none
        path = route.path.replace(":number}", "}")  # how its part is matched is not the table's business
        found |= {f"{method} {path}" for method in route.methods - {"HEAD"}}
    return found


def test_the_table_has_every_route_of_both_applications_and_no_other(site: Site) -> None:
    settings, workshop = site.settings, site.workshop
    replica = Replica("one", workshop.registry, settings.serving, bytes(32), OPEN)
    operated = operator.app(workshop, Catalog(workshop.registry, None, settings.serving, "x"), OPEN)  # type: ignore[arg-type]
    replica.close()
    assert routes(replica.app) | routes(operated) == set(WHO)
    assert set(WHO) - set(ABSENT) == set(auth.ACCESS)


# fmt: off
WHO_BY_GRPC = {  #             nobody  read  classify  feedback  operate
    "ServerLive":             (x,      x,    x,        x,        x),
    "ServerReady":            (x,      x,    x,        x,        x),
    "ServerMetadata":         (x,      x,    x,        x,        x),
    "Check":                  (x,      x,    x,        x,        x),
    "List":                   (x,      x,    x,        x,        x),
    "Watch":                  (x,      x,    x,        x,        x),
    "ModelInfer":             (o,      o,    x,        o,        x),
    "ModelStreamInfer":       (o,      o,    x,        o,        x),
    "ModelReady":             (o,      x,    x,        o,        x),
    "ModelMetadata":          (o,      x,    x,        o,        x),
    "ModelConfig":            (o,      x,    x,        o,        x),
    "ModelStatistics":        (o,      x,    o,        o,        x),
    "RepositoryIndex":        (o,      x,    o,        o,        x),
    "RepositoryModelLoad":    (o,      o,    o,        o,        x),
    "RepositoryModelUnload":  (o,      o,    o,        o,        x),
} | dict.fromkeys(by_grpc.ABSENT, (o, o, o, o, x))
# fmt: on


@dataclass
class Context:
    """What Ray Serve gives a method of who calls it; the shared server, below, has the real one."""

    headers: dict[str, str]
    address: str = "ipv4:127.0.0.1:4711"

    def peer(self) -> str:
        return self.address

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self.headers.items()]


@pytest.mark.parametrize("method", WHO_BY_GRPC)
def test_every_grpc_method_lets_in_who_may_call_it_and_nobody_else(
    site: Site, callers: dict[str, dict[str, str]], method: str
) -> None:
    door = auth.Door(keys.Guard(site.settings.keys_file, anonymous=True), 0)
    for caller, may in zip(CALLERS, WHO_BY_GRPC[method], strict=True):
        with contextlib.nullcontext() if may else pytest.raises(BadKey if caller == "nobody" else Forbidden):
            by_grpc.admit(Context(callers[caller]), door, method)
    with pytest.raises(Forbidden, match="not on this machine"):
        by_grpc.admit(Context(callers["operate"], "ipv4:192.0.2.7:4711"), door, method)


def test_the_table_has_every_method_of_both_services() -> None:
    both = (service_pb2, "GRPCInferenceService"), (health_pb2, "Health")
    services = [module.DESCRIPTOR.services_by_name[name] for module, name in both]
    assert {method.name for service in services for method in service.methods} == set(WHO_BY_GRPC)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", WHO)
def test_every_route_lets_in_who_may_call_it_and_nobody_else(
    site: Site, callers: dict[str, dict[str, str]], route: str, caller: str
) -> None:
    method, path = route.split(" ")
    path = (
        path.replace("{name:path}", "lifelist")
        .replace("{rest:path}", "status")
        .format(version=1, increment=1, class_id=1, name="swagger-ui.css", model="lifelist", prediction_id="x")
    )
    answer = httpx.request(method, f"{site.url}{path}", headers=callers[caller])
    if WHO[route][CALLERS.index(caller)]:
        assert answer.status_code not in (401, 403), answer.text
        return
    assert answer.status_code == (401 if caller == "nobody" else 403)
    assert answer.headers.get("www-authenticate") == ("Bearer" if caller == "nobody" else None)
    assert list(answer.json()) == ["error"]
    assert ("needs an API key" if caller == "nobody" else f"the API key '{caller}' may {caller};") in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nowhere"), ("DELETE", "/v1/versions/1"), ("PUT", "/v1/classify"), ("GET", "/v1/classify/x"),
     ("POST", "/"), ("OPTIONS", "/v1/rollback"), ("POST", "//v1/rollback"), ("POST", "/v1/rollback/"),
     ("POST", "/V1/rollback")],
)  # fmt: skip
def test_what_is_in_no_table_is_the_operators_alone(
    site: Site, callers: dict[str, dict[str, str]], method: str, path: str
) -> None:
    found = {name: httpx.request(method, site.url + path, headers=callers[name]).status_code for name in CALLERS}
    assert found == {"nobody": 401, "read": 403, "classify": 403, "feedback": 403, "operate": found["operate"]}
    assert found["operate"] in (404, 405)


@pytest.mark.parametrize(
    "form", ["Authorization: Bearer {}", "authorization: bearer  {}", "X-API-Key: {}", "x-api-key: {}"]
)
def test_a_key_may_come_in_either_header(site: Site, callers: dict[str, dict[str, str]], form: str) -> None:
    key = callers["classify"]["Authorization"].removeprefix("Bearer ")
    name, _, value = form.format(key).partition(": ")
    answer = httpx.post(f"{site.url}/v1/classify", content=bird(0), headers={name: value})
    assert answer.status_code == 200
    for wrong in (value[:-1], value + "x", value.swapcase(), f"Basic {value}"):
        assert httpx.post(f"{site.url}/v1/classify", content=bird(0), headers={name: wrong}).status_code == 401


@pytest.mark.parametrize(
    ("host", "may"),
    [("localhost", x), ("LOCALHOST:8000", x), ("127.0.0.1:1", x), ("[::1]:8000", x), ("[::1]", x), ("192.0.2.7", x),
     ("here.example:8000", x), ("Bound:8000", x),
     ("other.example", o), ("other.example:8000", o), ("localhost.other.example", o), ("127.0.0.1.other.example", o),
     ("[other.example]", o), ("127.0.0.1:80:80", o), ("", o)],
)  # fmt: skip
def test_without_a_key_a_server_answers_to_its_own_names_alone(host: str, may: bool) -> None:
    """A page may have its own name lead to loopback, and is then of the same site for a browser."""
    options = ServingOptions(host="bound", hosts=("Here.example",))
    door = auth.Door(OPEN, 0, auth.names(options))
    with contextlib.nullcontext() if may else pytest.raises(Forbidden, match=r"is not called .* serving\.hosts"):
        door.check_host([(b"accept", b"*/*"), (b"host", host.encode())])
    auth.Door(OPEN, 0, auth.names(ServingOptions(allow_anonymous=True))).check_host([(b"host", host.encode())])


def test_who_presents_a_key_may_call_a_server_anything_and_pages_are_there_for_all(
    site: Site, callers: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    other = {"Host": "other.example"}
    assert httpx.get(f"{site.url}/v1/versions", headers=other | callers["read"]).status_code == 200
    with serving(tmp_path) as unlocked:
        for method, path in (("GET", "/v1/versions"), ("POST", "/v1/rollback"), ("POST", "/v1/classify")):
            assert httpx.request(method, unlocked.url + path, headers=other).status_code == 403
        assert httpx.get(f"{unlocked.url}/v1/health/live", headers=other).status_code == 200
        assert httpx.get(f"{unlocked.url}/v1/versions").status_code == 200


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/examples", "/v1/feedback"])
def test_a_caller_without_a_key_is_refused_before_its_body_comes(site: Site, callers: object, path: str) -> None:
    with socket.create_connection(("127.0.0.1", int(site.port)), timeout=20) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_commands_present_the_key_of_the_environment_and_say_what_they_lack(
    site: Site,
    callers: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["classes", "--port", site.port]) == 1
    assert "this needs an API key" in capsys.readouterr().err
    key = callers["read"]["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("LIFELIST_API_KEY", key)
    assert cli.main(["classes", "--port", site.port]) == 0
    assert BIRDS[0] in capsys.readouterr().out
    assert cli.main(["rollback", "--port", site.port]) == 1
    assert "the API key 'read' may read" in capsys.readouterr().err
    assert cli.main(["settings"]) == 0
    shown = capsys.readouterr().out
    assert "environment LIFELIST_API_KEY" in shown
    assert key not in shown
    with Client(site.url, api_key="") as client, pytest.raises(BadKey):
        client.classes()
    with Client(site.url, api_key=key) as client, pytest.raises(Forbidden):
        client.feedback("x", 1)


def test_keys_are_made_listed_and_removed_by_commands_and_shown_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["keys", *arguments, "--home", "home"])
        out, err = capsys.readouterr()
        return code, out, err

    assert run("list") == (0, "there are no keys\n", "")
    code, made, err = run("add", "camera", "--role", "classify", "--role", "feedback", "--days", "30")
    assert code == 0
    assert made.startswith("lifelist_")
    assert "cannot be shown again" in err
    assert made.strip() not in (tmp_path / "home" / "keys.json").read_text()
    _, out, _ = run("list", "--json")
    (row,) = json.loads(out)["keys"]
    assert (row["name"], row["roles"], row["expired"], "sha256" in row) == (
        "camera",
        ["classify", "feedback"],
        False,
        False,
    )
    assert run("add", "camera", "--role", "read")[0] == 1
    assert run("add", "other", "--role", "admin")[0] == 2
    code, out, err = run("remove", "camera")
    assert (code, "camera is removed" in out, "No key is left" in err) == (0, True, True)
    assert run("remove", "camera")[0] == 2


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_nobody_serves_without_keys_unless_told_so(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["serve", "--home", "home", "--serving.host", host]
    assert cli.main(flags) == 2
    said = capsys.readouterr().err
    assert f"serving.host {host} can be reached from other machines, and there is no API key" in said
    assert cli.main([*flags, "--serving.allow-anonymous"]) == 2
    assert "no live version" in capsys.readouterr().err  # a step further
    keys.add(tmp_path / "home" / "keys.json", "me", ["operate"])
    assert cli.main(flags) == 2
    assert "no live version" in capsys.readouterr().err
    (tmp_path / "home" / "keys.json").write_text("{")
    assert cli.main(["serve", "--home", "home"]) == 1
    assert "cannot be read as a file of API keys" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- a real server


@pytest.mark.timeout(300)
def test_keys_hold_for_every_process_of_a_running_server_and_go_without_a_restart(server: Server) -> None:
    file = server.home / "keys.json"

    def statuses(**headers: str) -> set[int]:
        """What the replicas and the operator say; on connections of their own, so that every replica is asked."""
        asked = [("POST", "/v1/classify")] * 20 + [("POST", "/v1/feedback")] * 3
        return {httpx.request(m, server.url + path, headers=headers, content=bird(0)).status_code for m, path in asked}

    assert statuses() == {200, 415}
    classify, operate = (keys.add(file, role, [role]) for role in ("classify", "operate"))  # type: ignore[list-item]
    try:
        eventually(lambda: statuses() == {401}, 20)
        assert statuses(Authorization=f"Bearer {classify}") == {200, 403}
        assert statuses(Authorization=f"Bearer {operate}") == {200, 415}
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for metadata, code in (
                ((), grpc.StatusCode.UNAUTHENTICATED), ((("x-api-key", classify),), grpc.StatusCode.PERMISSION_DENIED)
            ):  # fmt: skip
                with pytest.raises(grpc.RpcError) as refused:
                    stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=metadata, timeout=20)
                assert refused.value.code() == code
            metadata = (("authorization", f"Bearer {operate}"),)
            assert stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(), metadata=metadata, timeout=20).models
        assert httpx.get(f"{server.url}/v1/health/ready").status_code == 200
        assert httpx.get(f"{server.url}/docs").status_code == 200
        with httpx.Client(base_url=server.url, headers={"X-API-Key": operate}) as http:
            for port in {
                port for _, port in listeners(ground.processes(server.record().nonce)) if 30_000 <= port < 32_768
            }:
                with contextlib.suppress(httpx.HTTPError):  # past HAProxy, straight to a process: no other rule there
                    assert httpx.post(f"http://127.0.0.1:{port}/v1/rollback").status_code in (401, 404, 503)
            assert http.get("/v1/versions").status_code == 200
    finally:
        for name in ("classify", "operate"):
            keys.remove(file, name)
        eventually(lambda: statuses() == {200, 415}, 20)


@pytest.mark.timeout(300)
def test_every_socket_of_a_running_server_is_on_loopback_or_wants_rays_token(server: Server) -> None:
    found = listeners([server.process.pid, *ground.processes(server.record().nonce)])
    assert ("127.0.0.1", server.port) in found
    first = server.first_port()
    for_grpc = {first + 2, *range(first + 105, first + ground.BLOCK)}  # they refuse: test_oip_clients.py
    assert {port for _, port in found} & for_grpc
    beyond = {port for address, port in found if not is_loopback(address) and port not in for_grpc}
    assert len(found) - len(beyond) >= 16  # HAProxy, the replicas, the operator, and nearly all of Ray
    assert {port: refusal(port) for port in beyond} == dict.fromkeys(beyond, grpc.StatusCode.UNAUTHENTICATED)


def refusal(port: int) -> grpc.StatusCode:
    """What a stranger without the token gets of the one server that Ray opens wider: a replica, for other replicas."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=10)
        code: grpc.StatusCode = refused.value.code()  # type: ignore[attr-defined]
        return code
