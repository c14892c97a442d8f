"""The Open Inference Protocol over gRPC: the same calls as over HTTP.

Ray Serve calls the methods of the deployment by the names of the service's. A replica listens for gRPC on all
addresses, whatever we tell Ray; so each method first asks `admit`. Messages come as bytes and are parsed after that:
what is none is refused as any other input, and nobody's message is parsed who may not send one.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from lifelist.exporter.errors import BadInput, Forbidden, LifelistError, Missing, NotPrepared, Unsupported
from lifelist.serving import infer
from lifelist.serving.addresses import is_loopback
from lifelist.serving.auth import ANYONE, Door, roles_of
from lifelist.serving.classify import Parts
from lifelist.serving.errors import status_of
from lifelist.serving.messages import asked, choices, said

SERVICERS = ["lifelist.serving.grpc.add_to_server"]  # as Ray Serve wants it: what adds services to a server
DESCRIPTORS = (
    pb.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
SERVICES = ("", DESCRIPTORS[0].full_name)  # whose health there is to ask
REQUESTS: dict[str, type[Message]] = {  # method → its messages
    method.name: GetMessageClass(method.input_type) for service in DESCRIPTORS for method in service.methods
}

# fmt: off
CODES = {  # status over HTTP → the same over gRPC
    401: StatusCode.UNAUTHENTICATED, 429: StatusCode.RESOURCE_EXHAUSTED,
    400: StatusCode.INVALID_ARGUMENT, 408: StatusCode.INVALID_ARGUMENT, 413: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT, 403: StatusCode.PERMISSION_DENIED, 404: StatusCode.NOT_FOUND,
    409: StatusCode.FAILED_PRECONDITION, 500: StatusCode.INTERNAL, 501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE, 504: StatusCode.DEADLINE_EXCEEDED,
}
ACCESS = {  # method → the roles that may call it, as in auth.py; `operate` alone what is not in the table
    "ServerLive": ANYONE,
    "ServerReady": ANYONE,
    "ServerMetadata": ANYONE,
    "Check": ANYONE,
    "List": ANYONE,
    "Watch": ANYONE,
    "ModelInfer": "classify",
    "ModelStreamInfer": "classify",
    "ModelReady": "classify read",
    "ModelMetadata": "classify read",
    "ModelConfig": "classify read",
    "ModelStatistics": "read",
    "RepositoryIndex": "read",
    "RepositoryModelLoad": "operate",
    "RepositoryModelUnload": "operate",
}
ABSENT: dict[str, Any] = {  # methods of what this server does not have, and what they would answer
    "TraceSetting": pb.TraceSettingResponse,
    "LogSettings": pb.LogSettingsResponse,
    "SystemSharedMemoryStatus": pb.SystemSharedMemoryStatusResponse,
    "SystemSharedMemoryRegister": pb.SystemSharedMemoryRegisterResponse,
    "SystemSharedMemoryUnregister": pb.SystemSharedMemoryUnregisterResponse,
    "CudaSharedMemoryStatus": pb.CudaSharedMemoryStatusResponse,
    "CudaSharedMemoryRegister": pb.CudaSharedMemoryRegisterResponse,
    "CudaSharedMemoryUnregister": pb.CudaSharedMemoryUnregisterResponse,
}
# fmt: on
LONGEST = 2000  # characters of an error: it travels in a header

log = logging.getLogger(__name__)

Said = TypeVar("Said", bound=Message)

if TYPE_CHECKING:
    from lifelist.serving.app import Replica


def admit(context: Any, door: Door, method: str) -> str | None:
    """Who calls, None if anyone may. Forbidden or BadKey if a call is not let in: it must come from this machine, as
    HAProxy's do, which passes on what is sent to serving.grpc_port; and with a key for it, where there are keys, in the
    metadata as in a header.
    """
    if not is_here(peer := context.peer()):
        raise Forbidden(f"{peer} is not on this machine; ask at the server's own port for gRPC")
    if (roles := roles_of(ACCESS.get(method, "operate"))) is None:
        return None
    metadata = context.invocation_metadata()
    return door.caller([(name.lower().encode(), _bytes(value)) for name, value in metadata], roles)


def add_to_server(servicer: Any, server: Any) -> None:
    """Add both services to a gRPC server, as generated code does, but that requests arrive as bytes."""
    for service in DESCRIPTORS:
        handlers = {}
        for method in service.methods:
            ways = ("stream" if many else "unary" for many in (method.client_streaming, method.server_streaming))
            handler = getattr(grpc, f"{'_'.join(ways)}_rpc_method_handler")
            handlers[method.name] = handler(getattr(servicer, method.name), response_serializer=_written)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def parsed(method: str, data: bytes) -> Any:
    """The message that a method was sent. BadInput if it is none of its kind."""
    kind = REQUESTS[method]
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadInput(f"the message of {len(data):,} bytes is no {kind.DESCRIPTOR.name}") from error


def _written(answer: Message) -> bytes:
    data: bytes = answer.SerializeToString()
    return data


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def is_here(peer: str) -> bool:
    """Whether a gRPC peer, `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`, is on this machine."""
    family, _, place = unquote(peer).partition(":")
    host = place.rpartition(":")[0].strip("[]")
    if family not in ("ipv4", "ipv6"):
        return family == "unix"
    return is_loopback(host)


def answering(kind: type[Said]) -> Callable[[Callable[[Any, Any], Awaitable[Said]]], Callable[..., Awaitable[Said]]]:
    """A method as Ray Serve calls it: what the one below gives, or an error as gRPC's code with its message.

    An error is set and not raised: Ray would write a traceback for each. It takes the place of the empty answer.
    """

    def decorate(body: Callable[[Any, Any], Awaitable[Said]]) -> Callable[..., Awaitable[Said]]:
        async def method(self: "Service", data: bytes, grpc_context: Any) -> Said:
            code = StatusCode.CANCELLED
            try:
                door = self.replica.parts.door
                if (caller := admit(grpc_context, door, body.__name__)) is not None:
                    door.count(caller)
                found = await body(self, parsed(body.__name__, data))
                code = StatusCode.OK
            except Exception as error:  # noqa: BLE001  told to the client, and logged if it is none of ours
                code = _failed(grpc_context, error)
                found = kind()
            finally:
                self.replica.metrics.grpc_requests.labels(body.__name__, code.name).inc()
            return found

        method.__name__, method.__doc__ = body.__name__, body.__doc__
        return method

    return decorate


def _failed(context: Any, error: Exception) -> StatusCode:
    code = CODES[status_of(error)]
    context.set_code(code)
    context.set_details(_message(error))
    return code


def _message(error: Exception) -> str:
    if isinstance(error, LifelistError):
        return str(error)[:LONGEST]
    log.error("grpc.failed", exc_info=error, extra={"facts": {"reason": f"{type(error).__name__}: {error}"}})
    return "internal error; the server's log has it"


class Service:
    """The methods of the services, each on the messages of the protocol."""

    replica: "Replica"

    @answering(pb.ServerLiveResponse)
    async def ServerLive(self, request: Any) -> Any:
        """Whether the server runs at all."""
        return pb.ServerLiveResponse(live=True)

    @answering(pb.ServerReadyResponse)
    async def ServerReady(self, request: Any) -> Any:
        """Whether queries are answered."""
        return pb.ServerReadyResponse(ready=await self.replica.parts.repository.server_ready())

    @answering(pb.ModelReadyResponse)
    async def ModelReady(self, request: Any) -> Any:
        """Whether every replica can answer by a version."""
        try:
            await self.replica.parts.repository.ready(request.name, request.version)
        except (Missing, NotPrepared):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    @answering(pb.ServerMetadataResponse)
    async def ServerMetadata(self, request: Any) -> Any:
        """What this server is."""
        return ParseDict(self.replica.parts.repository.server(), pb.ServerMetadataResponse())

    @answering(pb.ModelMetadataResponse)
    async def ModelMetadata(self, request: Any) -> Any:
        """Inputs and outputs of a version."""
        found = await self.replica.parts.repository.metadata(request.name, request.version)
        return ParseDict(found, pb.ModelMetadataResponse())

    @answering(pb.ModelConfigResponse)
    async def ModelConfig(self, request: Any) -> Any:
        """The same as a model configuration."""
        found = await self.replica.parts.repository.config(request.name, request.version)
        return ParseDict({"config": found}, pb.ModelConfigResponse())

    @answering(pb.ModelStatisticsResponse)
    async def ModelStatistics(self, request: Any) -> Any:
        """What all replicas counted."""
        found = await self.replica.parts.repository.statistics(request.name, request.version)
        return ParseDict(found, pb.ModelStatisticsResponse())

    @answering(pb.RepositoryIndexResponse)
    async def RepositoryIndex(self, request: Any) -> Any:
        """All versions."""
        return ParseDict(
            {"models": await self.replica.parts.repository.index(request.ready)}, pb.RepositoryIndexResponse()
        )

    @answering(pb.RepositoryModelLoadResponse)
    async def RepositoryModelLoad(self, request: Any) -> Any:
        """Have every replica hold a version."""
        await self.replica.parts.repository.load(request.model_name, choices(request.parameters))
        return pb.RepositoryModelLoadResponse()

    @answering(pb.RepositoryModelUnloadResponse)
    async def RepositoryModelUnload(self, request: Any) -> Any:
        """Let go of a version that was loaded."""
        await self.replica.parts.repository.unload(request.model_name, choices(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    @answering(pb.ModelInferResponse)
    async def ModelInfer(self, request: Any) -> Any:
        """What a version says to images."""
        return await inferred(self.replica.parts, request)

    async def ModelStreamInfer(self, messages: AsyncIterator[bytes], grpc_context: Any) -> AsyncIterator[Any]:
        """The same for one request after the other, each counted; an error is an answer, and the stream goes on."""
        door = self.replica.parts.door
        try:
            caller = admit(grpc_context, door, "ModelStreamInfer")
        except LifelistError as error:
            _failed(grpc_context, error)
            return
        async for data in messages:
            request = pb.ModelInferRequest()
            try:
                if caller is not None:
                    door.count(caller)
                request = parsed("ModelStreamInfer", data)
                found = pb.ModelStreamInferResponse(infer_response=await inferred(self.replica.parts, request))
                code = StatusCode.OK
            except Exception as error:  # noqa: BLE001  told to the client, and logged if it is none of ours
                code = CODES[status_of(error)]
                found = pb.ModelStreamInferResponse(error_message=_message(error))
                found.infer_response.id = request.id
            self.replica.metrics.grpc_requests.labels("ModelStreamInfer", code.name).inc()
            yield found

    @answering(health_pb2.HealthCheckResponse)
    async def Check(self, request: Any) -> Any:
        """grpc.health.v1: whether queries are answered."""
        if request.service not in SERVICES:
            raise Missing(f"there is no service {request.service[:80]!r}; there is {SERVICES[1]}")
        ready = await self.replica.parts.repository.server_ready()
        return health_pb2.HealthCheckResponse(status="SERVING" if ready else "NOT_SERVING")

    @answering(health_pb2.HealthListResponse)
    async def List(self, request: Any) -> Any:
        """grpc.health.v1: the same for each service."""
        ready = await self.replica.parts.repository.server_ready()
        status = health_pb2.HealthCheckResponse(status="SERVING" if ready else "NOT_SERVING")
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICES, status))

    async def Watch(self, data: bytes, grpc_context: Any) -> AsyncIterator[Any]:
        """grpc.health.v1: not here; clients then ask `Check` from time to time."""
        try:
            admit(grpc_context, self.replica.parts.door, "Watch")
            raise Unsupported("health is not watched here; ask Check")
        except LifelistError as error:
            _failed(grpc_context, error)
        answers: list[Any] = []
        for answer in answers:  # none; but it is a stream
            yield answer


def _absent(name: str, kind: type[Said]) -> Callable[..., Awaitable[Said]]:
    async def body(self: Service, request: Any) -> Said:
        raise Unsupported(f"this server has no {name}")

    body.__name__, body.__doc__ = name, "Not here."
    return answering(kind)(body)


for name, kind in ABSENT.items():
    setattr(Service, name, _absent(name, kind))


async def inferred(parts: Parts, request: Any) -> Any:
    """The ModelInferResponse to a ModelInferRequest."""
    metrics = parts.metrics
    with metrics.inflight.track_inprogress(), metrics.request_duration.time(), parts.intake.share() as share:
        share.take(request.ByteSize())
        found = await infer.answered(
            parts, asked(request, parts.options.max_images), request.model_name, request.model_version
        )
    return said(found)
