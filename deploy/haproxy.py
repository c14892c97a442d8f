"""A launcher that Ray Serve starts in place of HAProxy: it narrows the configuration Ray wrote, then becomes HAProxy.

    python -I -S haproxy.py /path/to/the/real/haproxy -db -f haproxy.cfg …

Ray writes the file anew before each start and reload. Of it, this program changes:

- the metrics and status pages listen on loopback, and the admin socket is the owner's alone;
- what HAProxy or Ray say by themselves, in plain text or HTML, is JSON as all our errors are;
- a query that died with its replica is asked again of another (classifying twice does no harm; other routes are left);
- queries in the words of the Open Inference Protocol go to the classifier too, which is not at their path;
- so do all gRPC calls;
- the head of a request has to arrive in time, and may have more lines than HAProxy's 101;
- a client that leaves is noticed, and its query ended, whatever the size of its body.

A line that is not where it is expected stops the start, so that a change in Ray's template is seen at once.
What HAProxy cannot read from the start (no HTTP, a head beyond its limit or MOST_HEADERS or late, an unknown transfer
encoding) gets a page that is compiled into it (400, 408 or 422, HTML): no configuration changes that.
It runs without site-packages, hence the standard library only.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

MARK = "# narrowed by Lifelist\n"
HEAD_TIMEOUT, BODY_TIMEOUT = "X_LIFELIST_HEAD_TIMEOUT_S", "X_LIFELIST_BODY_TIMEOUT_S"  # in the environment
RESERVED = 1024  # bytes of a buffer that HAProxy keeps for what it adds to a head
MOST_HEADERS = 500  # lines; HAProxy's own limit is 101

# fmt: off
HAPROXY_SAYS = {  # HAProxy's status → the status and the sentence that a client gets
    400: (400, "Bad Request",           "the body is no HTTP, or the client closed its sending side before the answer"),
    408: (408, "Request Timeout",       "the body did not arrive in time; send less in one request"),
    500: (500, "Internal Server Error", "internal error in the proxy; its log has it"),
    502: (503, "Service Unavailable",   "the replica went away before it answered; send it again"),
    503: (503, "Service Unavailable",   "no replica answers at the moment; try again"),
    504: (503, "Service Unavailable",   "the replica did not answer in time; try again"),
}
RAY_SAYS = {  # Ray's status, in plain text, where no code of ours answers → the same
    400: (400, "the request cannot be read: its method, its path or a header is none that HTTP knows"),
    403: (403, "there are no WebSockets here; send a plain HTTP request, see /docs"),
    404: (503, "the server starts or ends; try again"),  # the operator is at /: what is nobody's is not there yet
    408: (408, "the request was not answered in the time that its header x-request-timeout-seconds allows"),
    500: (500, "internal error; the server's log has it"),
    503: (503, "no replica answers at the moment; try again"),
}
# fmt: on
CLASSIFIER = "/v1/classify"  # its route prefix: Ray lets nothing else in to a replica
# Ray has a client name one of the two applications, and only this one has methods
TO_CLASSIFIER = "    http-request set-header application classifier\n"
QUERIES = r"^/v2/models/[^/]+(/versions/[^/]+)?/infer$"
# Ray reads some headers as UTF-8, and answers 500 if they are not; one of them would make it deaf to clients that leave
HEADERS = r"""    http-request del-header x-request-disconnect-disabled
    http-request return {} if {{ req.hdrs -m reg '[\x80-\xff]' }}
"""
# only a request that HAProxy has whole can be sent again; without the first line it would not wait for the body
ASK_AGAIN = "    option http-buffer-request\n    timeout http-request {}s\n    retry-on conn-failure empty-response\n"


def narrowed(config: str, folder: Path, head_s: int, body_s: int) -> str:
    """The configuration as it should be. ValueError if a line is missing.

    folder         where `error_files` has been
    head_s, body_s for a request's head, and for the body of a query, to arrive
    """
    if config.startswith(MARK):
        return config
    config = _once(config, r"(stats socket \S+ mode) 666", r"\1 600")
    config = _once(config, r"(    tune\.bufsize \d+\n)", rf"\1    tune.http.maxhdr {MOST_HEADERS}\n")
    config = _once(config, r"    option splice-request\n", "")  # with it, a client that leaves is often not noticed
    config = _once(config, r"(frontend prometheus\n\s*bind )(?=:\d+)", r"\g<1>127.0.0.1")
    config = _once(config, r"(listen stats\n\s*bind )\*(?=:\d+)", r"\g<1>127.0.0.1")
    config = _once(config, r"(?:    errorfile \d+ \S+\n)+", _errors(folder, head_s))
    ours = _headers() + _ray_errors() + _queries()
    config = _once(config, r"\nfrontend http_frontend\n\s*bind \S+\n", lambda found: found[0] + ours)
    config = _once(
        config,
        r"(backend default_backend\n\s*http-request return) status 404 [^\n]*",
        r"\1 " + _returned(*RAY_SAYS[404]),
    )
    config, _ = re.subn(r"(\nbackend http-classifier\n)", r"\1" + ASK_AGAIN.format(body_s), config)
    if "\nfrontend grpc_frontend\n" in config:
        # Ray's fallback, for when no replica is up, pickles messages, which fails: UNAVAILABLE is the better answer
        config = re.sub(r"    server \S+ \S+ proto h2 check backup\n", "", config)
        config = _once(
            config, r"(\nfrontend grpc_frontend\n(?:\s*#[^\n]*\n)*\s*bind \S+ proto h2\n)", r"\1" + TO_CLASSIFIER
        )
    return MARK + config


def error_files(folder: Path) -> None:
    """Write what HAProxy answers by itself."""
    for status, (shown, reason, sentence) in HAPROXY_SAYS.items():
        body = _json(sentence)
        head = [f"HTTP/1.1 {shown} {reason}", "Content-Type: application/json", f"Content-Length: {len(body.encode())}"]
        head += ["Retry-After: 1"] if shown == 503 else []
        (folder / f"{status}.http").write_text("\r\n".join([*head, "Cache-Control: no-store", "", body]))


def main(arguments: list[str]) -> None:
    """Narrow the file after -f, and become the program that the first argument names."""
    binary, *rest = arguments
    parent = os.getppid()
    if sys.platform == "linux":  # an orphan would hold the port, and answer with yesterday's list of replicas
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            sys.exit("haproxy: Ray's process ended while this one started")
    if "-f" in rest:
        path = Path(rest[rest.index("-f") + 1])
        error_files(path.parent)
        times = int(os.environ[HEAD_TIMEOUT]), int(os.environ[BODY_TIMEOUT])
        path.write_text(narrowed(path.read_text(), path.parent, *times))
        path.chmod(0o600)
    os.execv(binary, [binary, *rest])


def _once(config: str, pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> str:
    config, count = re.subn(pattern, replacement, config)
    if count != 1:
        raise ValueError(f"Ray's HAProxy configuration has {count} places like {pattern!r}; one was expected")
    return config


def _errors(folder: Path, head_s: int) -> str:
    lines = [f"    errorfile {status} {folder / f'{status}.http'}\n" for status in HAPROXY_SAYS]
    return "".join([f"    timeout http-request {head_s}s\n", *lines])


def _headers() -> str:
    return HEADERS.format(_returned(400, "a header has characters beyond ASCII; send it without, or encoded"))


def _ray_errors() -> str:
    text = "{ res.hdr(content-type) -m beg text/plain }"
    return "".join(
        f"    http-response return {_returned(shown, sentence)} if {{ status {status} }} {text}\n"
        for status, (shown, sentence) in RAY_SAYS.items()
    )


def _queries() -> str:
    """The other path of a query, put behind the prefix; serving/classify.py takes it off. Clients may not do so."""
    nothing = _returned(404, "there is no such path here; see /docs")
    return (
        f"    http-request return {nothing} if {{ path_beg {CLASSIFIER}/v2/ }}\n"
        f"    http-request set-path {CLASSIFIER}%[path] if {{ path_reg {QUERIES} }}\n"
    )


def _returned(status: int, sentence: str) -> str:
    """An answer in the words of HAProxy's configuration."""
    retry = " hdr Retry-After 1" if status == 503 else ""
    return f"status {status} content-type application/json string '{_json(sentence)}'{retry}"


def _json(sentence: str) -> str:
    return json.dumps({"error": sentence.replace("'", "’")}, ensure_ascii=False)


if __name__ == "__main__":
    main(sys.argv[1:])
