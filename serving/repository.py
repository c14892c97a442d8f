"""The model and its versions as the Open Inference Protocol has them: described, indexed, loaded and unloaded.

The same for REST (serving/oip_routes.py) and gRPC (serving/grpc.py). What is live is decided elsewhere, deploy/swap.py;
here versions of the registry are only held beside it, on every replica, so that they can be asked by their number.
"""

import asyncio
import json
from collections.abc import Mapping
from importlib.metadata import version as installed_version
from typing import Any

from lifelist.exporter import rows
from lifelist.exporter.errors import BadInput, Conflict, Missing, NotPrepared, Unavailable
from lifelist.exporter.manifest import ClassEntry, Manifest
from lifelist.exporter.registry import Registry
from lifelist.serving import statistics
from lifelist.serving.follow import Status
from lifelist.serving.numbers import natural
from lifelist.serving.options import ServingOptions
from lifelist.serving.replicas import Replicas

EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_repository", "model_configuration",
              "parameters")  # fmt: skip
REFS = ("live", "previous", "candidate")  # names that a version may go by
PLATFORM = "onnx_onnxv1"
IMAGES, IMAGE_BYTES = "images", "image_bytes"  # the inputs, of which a request has one
TYPES = {"BYTES": "STRING"}  # datatypes that a model's configuration calls by another name

Json = dict[str, Any]


class Repository:
    """What there is to ask about the model, and to do with its versions."""

    def __init__(self, registry: Registry, replicas: Replicas, options: ServingOptions) -> None:
        self.registry, self.replicas, self.options = registry, replicas, options

    def server(self) -> Json:
        """What this server is."""
        return {"name": "lifelist", "version": installed_version("lifelist"), "extensions": list(EXTENSIONS)}

    async def server_ready(self) -> bool:
        """Whether queries are answered."""
        try:
            return bool(await self.replicas.status())
        except Unavailable:
            return False

    async def ready(self, model: str, version: str = "") -> None:
        """Returns if every replica can answer by a version (none named: live); else raises why not."""
        number = await self.number(model, version or "live")
        holding = [number in status.held for status in await self._status()]
        if not all(holding):
            raise NotPrepared(f"version {number} is {_state(holding)[1]}")

    async def metadata(self, model: str, version: str = "") -> Json:
        """Inputs and outputs of a version, and the versions that can be asked."""
        manifest = await self._manifest(model, version)
        held = set.intersection(*(set(status.held) for status in await self._status()))
        return {
            "name": model,
            "versions": [str(number) for number in sorted(held)],
            "platform": PLATFORM,
            "inputs": [_described(name, *rest) for name, rest in inputs(manifest).items()],
            "outputs": [_described(name, *rest) for name, rest in outputs(manifest).items()],
        }

    async def config(self, model: str, version: str = "") -> Json:
        """The same as a model configuration, and which classes the columns of outputs are of."""
        manifest = await self._manifest(model, version)
        columns = {"linear": rows.answered(manifest), "nearest_mean": known(manifest)}
        return {
            "name": model,
            "platform": PLATFORM,
            "backend": "onnxruntime",
            "max_batch_size": self.options.max_images,
            "input": [_configured(*row) | {"optional": True} for row in inputs(manifest).items()],
            "output": [_configured(*row) for row in outputs(manifest).items()],
            "parameters": {
                f"class_ids_{kind}": {"string_value": json.dumps([entry.id for entry in entries])}
                for kind, entries in columns.items()
            },
        }

    async def statistics(self, model: str = "", version: str = "") -> Json:
        """What all replicas counted, for each version that they hold or have answered by; or for one."""
        number = await self.number(model, version) if version else None
        if model:
            self.check(model)
        counts = statistics.together(await self.replicas.statistics())
        for status in await self._status():
            for held in status.held:
                counts.setdefault(held, statistics.Counts())
        if number is not None:
            counts = {number: counts.get(number, statistics.Counts())}
        name = self.options.model_name
        return {"model_stats": [statistics.as_json(name, row, counts[row]) for row in sorted(counts)]}

    async def index(self, only_ready: bool = False) -> list[Json]:
        """All versions of the registry; READY if every replica holds it."""
        numbers = await asyncio.to_thread(self.registry.versions)
        held = [set(status.held) for status in await self._status()]
        rows = []
        for number in numbers:
            state, reason = _state([number in one for one in held])
            rows.append({"name": self.options.model_name, "version": str(number), "state": state, "reason": reason})
        return [row for row in rows if row["state"] == "READY" or not only_ready]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Have every replica hold a version: the one that the name or the parameters tell; none: live is held already.

        Conflict if too many are; BadInput for a model in the request; what a replica says that could not load it.
        """
        if number := await self._chosen(name, parameters):
            before = any(number in status.pinned for status in await self._status())
            problems = [report.problem for report in await self.replicas.load(number) if report.problem]
            if problems:
                if not before:
                    await self._let_go(number)
                raise problems[0]

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Let go of a version that was loaded. Conflict for live and previous, on which queries and rollback depend."""
        number = await self._chosen(name, {k: v for k, v in parameters.items() if k != "unload_dependents"})
        if not number:
            raise Conflict(
                f"the model is what this server is for; unload one of its versions: {name}/versions/3, or the "
                "parameter version"
            )
        for ref in ("live", "previous"):
            found = await asyncio.to_thread(self.registry.ref, ref)
            if found and found.version == number:
                why = "it answers" if ref == "live" else "a rollback goes back to it"
                raise Conflict(f"version {number} is {ref}, and stays loaded: {why}")
        await self._let_go(number)

    def check(self, model: str) -> None:
        """Missing if the model is not called that."""
        if model != self.options.model_name:
            raise Missing(f"there is no model {model[:80]!r}; this server has {self.options.model_name!r}")

    async def number(self, model: str, version: str) -> int:
        """The version of the registry that a number, or a name such as live, stands for. Missing if there is none."""
        self.check(model)
        if version in REFS:
            ref = await asyncio.to_thread(self.registry.ref, version)
            if ref is None:
                raise Missing(f"no version is {version} at the moment")
            return ref.version
        if not (number := natural(version, 2**31 - 1)):
            raise Missing(f"there is no version {version[:40]!r}; there are numbers from 1, and {', '.join(REFS)}")
        await asyncio.to_thread(self.registry.manifest, number)
        return number

    async def _manifest(self, model: str, version: str) -> Manifest:
        return await asyncio.to_thread(self.registry.manifest, await self.number(model, version or "live"))

    async def _status(self) -> list[Status]:
        found = await self.replicas.status()
        if not found:
            raise Unavailable("no replica answers")
        return found

    async def _chosen(self, name: str, parameters: Mapping[str, Any]) -> int | None:
        """The version that a name such as lifelist/versions/3, or the parameters, tell."""
        model, _, rest = name.partition("/versions/")
        self.check(model)
        for parameter in parameters:
            if parameter == "config" or parameter.startswith("file:"):
                raise BadInput(
                    f"the parameter {parameter[:40]!r} brings a model; only versions that the registry has are loaded"
                )
            if parameter != "version":
                raise BadInput(f"there is no parameter {parameter[:40]!r}; there is version")
        told = [str(told) for told in (rest or None, parameters.get("version")) if told is not None]
        if len(set(told)) > 1:
            raise BadInput(f"the name says version {told[0][:40]!r}, the parameter {told[1][:40]!r}; send one of them")
        return await self.number(model, told[0]) if told else None

    async def _let_go(self, number: int) -> None:
        problems = [report.problem for report in await self.replicas.unload(number) if report.problem]
        if problems:
            raise problems[0]


def inputs(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """(datatype, shape) of each input, -1 for what may vary. Images of other sizes are fitted, as files are."""
    side = manifest.preprocess.size
    return {IMAGES: ("UINT8", [-1, side, side, 3]), IMAGE_BYTES: ("BYTES", [-1])}


def outputs(manifest: Manifest) -> dict[str, tuple[str, list[int]]]:
    """(datatype, shape) of each output; unknown scores are there if the version was calibrated (unknowns.py)."""
    calibrated: dict[str, tuple[str, list[int]]] = {"unknown_score": ("FP32", [-1])} if manifest.known_scores else {}
    return {
        "class_id": ("INT64", [-1]),
        "label": ("BYTES", [-1]),
        "score": ("FP32", [-1]),
        "prediction_id": ("BYTES", [-1]),
        "audit": ("BOOL", [-1]),
        "logits": ("FP32", [-1, len(rows.answered(manifest))]),
        "probabilities": ("FP32", [-1, len(rows.answered(manifest))]),
        "similarities": ("FP32", [-1, len(manifest.answerable)]),
        "embedding": ("FP32", [-1, manifest.embedding_dim]),
        **calibrated,
    }


def known(manifest: Manifest) -> list[ClassEntry]:
    """All classes that are answered, in the order of the columns of `similarities`: by id."""
    return sorted(manifest.answerable, key=lambda entry: entry.id)


def _described(name: str, datatype: str, shape: list[int]) -> Json:
    return {"name": name, "datatype": datatype, "shape": shape}


def _configured(name: str, kind: tuple[str, list[int]]) -> Json:
    datatype, shape = kind
    return {"name": name, "data_type": f"TYPE_{TYPES.get(datatype, datatype)}", "dims": shape[1:]}


def _state(holding: list[bool]) -> tuple[str, str]:
    """READY or UNAVAILABLE, and why."""
    if all(holding):
        return "READY", ""
    if not any(holding):
        return "UNAVAILABLE", "not loaded; load it first"
    return "UNAVAILABLE", f"held by {sum(holding)} of {len(holding)} replicas; load it again"
