"""The head of a server's Ray cluster: the process that `lifelist serve` starts, watches, and asks to end.

It is one of its own so that whatever Ray does to its process (its signal handlers, its exit when a part of it dies)
does not reach the one that has to clean up. It reads its orders as one line of JSON, says one line when it is up or
why it is not, and ends when its standard input does.

    python -m lifelist.deploy.head      the environment is ground.environment's, set before ray is imported
"""

import json
import logging
import os
import sys
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from lifelist.deploy import worker
from lifelist.deploy.deployments import targets
from lifelist.deploy.settings import Settings
from lifelist.exporter.errors import Failed, LifelistError
from lifelist.serving.grpc import SERVICERS
from lifelist.serving.prediction import key_in

NAMESPACE = "lifelist"
OBJECT_STORE = 128 * 2**20  # bytes; hardly anything goes through it

log = logging.getLogger(__name__)


def main() -> int:
    """Start, wait, end."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer of ours
    orders = json.loads(sys.stdin.readline())
    try:
        answer = {"ray": start(Settings.model_validate(orders["settings"]), orders["nonce"])}
    except LifelistError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001  this is the outermost frame, and the one outside tells the user
        answer = {"error": Failed.__name__, "message": f"Ray did not start: {type(error).__name__}: {error}"}
    print(json.dumps(answer), file=out, flush=True)
    if "error" in answer:
        return 1
    sys.stdin.read()
    end()
    return 0


def start(settings: Settings, nonce: str) -> str:
    """Ray, both applications and the worker that carries rollouts; Ray's address once all replicas are up."""
    context: Any = ray.init(
        address="local",
        namespace=NAMESPACE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serving = settings.serving
    http_options = {"host": serving.host, "port": serving.port, "keep_alive_timeout_s": serving.keep_alive_s}
    grpc_options = {"port": serving.grpc_port, "grpc_servicer_functions": SERVICERS, "enable_reflection": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options=http_options,
        grpc_options=grpc_options if serving.grpc_port else None,
        logging_config={"enable_access_log": False},
    )
    try:
        serve.run_many(targets(settings, key_in(settings.secret_file), nonce))
    except RuntimeError as error:
        raise Failed(f"the replicas did not start: {_reasons() or error}") from error
    worker.start(settings)
    return str(context.address_info["gcs_address"])


def _reasons() -> str:
    """Why replicas do not start: the last line of what each deployment tells, which is its error."""
    deployments = [
        row for application in serve.status().applications.values() for row in application.deployments.items()
    ]
    told = [(name, state.message.strip().splitlines()) for name, state in deployments]
    return "; ".join(f"{name}: {lines[-1]}" for name, lines in told if lines)


def end() -> None:
    """What was accepted is answered; then Ray ends."""
    try:
        for application in sorted(serve.status().applications, reverse=True):  # first the operator, which is at /
            serve.delete(application)
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("server.ended-roughly", extra={"facts": {"reason": str(error)}})
    ray.shutdown(wait_for_processes=True)


if __name__ == "__main__":
    sys.exit(main())
