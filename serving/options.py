"""Every option of the request path."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lifelist.exporter.preprocess import ImageLimits

LARGEST_TOP_K = 10_000  # classes in an answer
LEAST_AUDIT = 1e-4
DAY_S = 86_400.0  # no time here can sensibly be longer; infinity would fail where it is used


class ServingOptions(BaseModel):
    """How queries are answered; frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="port to listen on")
    allow_anonymous: bool = Field(
        default=False, description="listen beyond loopback although there are no API keys, so that everybody may call"
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="names, beside localhost, by which clients may call the server while it needs no key"
    )
    ray_everywhere: bool = Field(
        default=False, description="Ray listens on all addresses, so that machines which have its token join, to train"
    )
    replicas: int = Field(default=1, ge=1, le=80, description="processes that answer queries")
    grpc_port: int = Field(
        default=0, ge=0, le=65535, description="port for the Open Inference Protocol over gRPC; 0: none"
    )
    model_name: str = Field(
        default="lifelist",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$",
        description="what the model is called in the Open Inference Protocol",
    )
    provider: str = Field(
        default="auto",
        pattern="^(auto|cpu|cuda)$",
        description="what runs the model: auto (cuda if it works), cpu, cuda",
    )
    precision: str = Field(
        default="auto",
        pattern="^(auto|fp32)$",
        description="arithmetic of the model: auto (int8 on a CPU, if a version was found to lose nothing by it), fp32",
    )
    threads: int = Field(
        default=0, ge=0, description="threads of a model run alone; 0: the replica's share of the cores"
    )
    lanes: int = Field(
        default=0,
        ge=0,
        description="model runs at once in a replica, of one thread each; 0: on a CPU, its share of cores",
    )
    decode_threads: int = Field(default=2, ge=1, description="threads that decode images, in each replica")
    top_k: int = Field(default=5, ge=1, le=LARGEST_TOP_K, description="classes in an answer, unless the query says")
    unknown_at: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of known images that may be called unknown, so that images of no known class are; 0: off",
    )
    audit_rate: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of answers marked for the audit, at random; their true classes tell most; 0: none",
    )
    metric_classes: int = Field(
        default=100, ge=0, le=10_000, description="classes with series of their own in /metrics; the others are one"
    )
    max_batch: int = Field(default=64, ge=1, description="images in one model run")
    max_queue: int = Field(default=2048, ge=1, description="images that may wait in a replica; more are answered 503")
    max_requests: int = Field(default=1024, ge=1, description="queries at once in a replica; more are answered 503")
    max_images: int = Field(default=256, ge=1, description="images in one query")
    max_listed: int = Field(
        default=2**17,
        ge=1,
        description="classes, or numbers in JSON, that one answer lists, of all its images together",
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="bytes in the body of one query")
    max_infer_json_bytes: int = Field(
        default=4 * 2**20, ge=1, description="bytes of JSON in one query of the Open Inference Protocol"
    )
    max_compression: int = Field(
        default=100, ge=1, description="bytes that a byte of a compressed body may become, if they are over 1 MiB"
    )
    max_loaded: int = Field(
        default=4, ge=0, description="versions that a replica holds because a client loaded them by number"
    )
    max_buffered_bytes: int = Field(
        default=512 * 2**20, ge=1, description="bytes of all bodies that a replica holds; more are answered 503"
    )
    max_image_bytes: int = Field(default=10 * 2**20, ge=1, description="bytes of one image file")
    max_pixels: int = Field(default=50_000_000, ge=1, description="width × height of one image")
    max_header_bytes: int = Field(default=16 * 2**10, ge=2**10, le=2**20, description="bytes in the head of a request")
    max_json_bytes: int = Field(default=2**20, ge=1, description="bytes of JSON in the body of a request")
    max_json_depth: int = Field(default=100, ge=1, le=500, description="brackets of JSON in one another")
    requests_per_second: float = Field(
        default=0, ge=0, description="requests of one API key, or of all who need none; more are answered 429; 0: any"
    )
    head_timeout_s: int = Field(default=10, ge=1, le=86_400, description="seconds for the head of a request to arrive")
    read_timeout_s: float = Field(default=30, gt=0, le=DAY_S, description="seconds for the body of a query to arrive")
    stall_timeout_s: float = Field(default=10, gt=0, le=DAY_S, description="seconds for the next byte of any body")
    keep_alive_s: int = Field(default=65, ge=1, le=86_400, description="seconds that an idle connection stays open")
    answer_timeout_s: float = Field(
        default=30, gt=0, le=DAY_S, description="seconds for a query to be answered once it arrived"
    )
    prepare_timeout_s: float = Field(
        default=300, gt=0, le=DAY_S, description="seconds for the replicas to load a new version"
    )
    reconcile_s: float = Field(
        default=1, gt=0, le=DAY_S, description="seconds between a replica's looks at what is live"
    )
    drain_s: float = Field(
        default=2, ge=0, le=DAY_S, description="seconds that a replica stays reachable when it is stopped"
    )

    @model_validator(mode="after")
    def _one_query_fits(self) -> Self:
        if self.max_images > self.max_queue:
            raise ValueError(f"max_queue {self.max_queue} should hold the {self.max_images} images of one query")
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ValueError(
                f"max_buffered_bytes {self.max_buffered_bytes} should hold one body of {self.max_body_bytes}"
            )
        return self

    @field_validator("audit_rate")
    @classmethod
    def _of_a_size(cls, rate: float) -> float:
        if 0 < rate < LEAST_AUDIT:
            raise ValueError(f"is 0, or from {LEAST_AUDIT:g} on: less than one answer in ten thousand tells nothing")
        return rate

    @model_validator(mode="after")
    def _a_port_of_its_own(self) -> Self:
        if self.grpc_port == self.port:
            raise ValueError(f"grpc_port {self.grpc_port} is the port of HTTP; give it another, or 0 for no gRPC")
        return self

    @property
    def image_limits(self) -> ImageLimits:
        """What a single image may be, at most."""
        return ImageLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_pixels)
