"""The least that a server can be: uvicorn, a plain ASGI function, our batcher and our loading of a version. No Ray, no
metrics, no limits: what Lifelist is measured against.

    python -m lifelist.benchmarks.bare REGISTRY VERSION PORT PRECISION
"""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import uvicorn
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from lifelist.exporter.preprocess import Pixels, decode
from lifelist.exporter.ranking import Ranking
from lifelist.exporter.registry import Registry
from lifelist.exporter.session import load
from lifelist.serving.batcher import Batcher


def application(registry: str, version: int, precision: str) -> Any:
    """Answers POST / with the best class of each image: a tensor if there is a shape in the header, else a file, or a
    form of files.
    """
    cores = len(os.sched_getaffinity(0))
    loaded = load(Registry(registry), version, threads=cores, lanes=cores, provider="cpu", precision=precision)
    loaded.warm((1, 2, 8, 64))
    names = {entry.id: entry.name for entry in loaded.manifest.classes}
    decoders = ThreadPoolExecutor(2)

    def answer(queries: Sequence[Pixels], alone: bool) -> list[list[Ranking]]:
        images = queries[0] if len(queries) == 1 else np.concatenate(queries)
        logits, _ = loaded.run(images, alone)
        ranked = iter(loaded.linear(logits, 1))
        return [[next(ranked) for _ in query] for query in queries]

    batcher: Batcher[Pixels, list[Ranking]] = Batcher(answer, max_batch=64, max_queue=4096, lanes=cores)

    async def decoded(data: bytes) -> Pixels:
        return await asyncio.get_running_loop().run_in_executor(decoders, decode, data, loaded.manifest.preprocess)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "GET":
            await _send(send, json.dumps({"process_id": os.getpid()}).encode())
            return
        headers = dict(scope["headers"])
        if headers[b"content-type"].startswith(b"multipart/form-data"):
            parts = [part for _, part in (await Request(scope, receive).form()).multi_items()]
            files = [await part.read() for part in parts if isinstance(part, UploadFile)]
            images = np.stack(await asyncio.gather(*map(decoded, files)))
        else:
            body = await _body(receive)
            if (shape := headers.get(b"x-tensor-shape")) is not None:
                images = np.frombuffer(body, np.uint8).reshape([int(side) for side in shape.split(b",")])
            else:
                images = (await decoded(body))[None]
        rankings = await batcher.submit(images, len(images))
        best = [ranking[0] for ranking in rankings]
        content = [{"id": class_id, "name": names[class_id], "score": score} for class_id, score in best]
        await _send(send, json.dumps({"images": content}, separators=(",", ":")).encode())

    return app


async def _body(receive: Receive) -> bytes:
    body: bytes = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return body


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    registry, version, port, precision = sys.argv[1:]
    app = application(registry, int(version), precision)
    uvicorn.run(app, host="127.0.0.1", port=int(port), access_log=False, log_level="error")
