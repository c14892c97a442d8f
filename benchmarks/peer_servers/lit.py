"""LitServe: raw bytes in the body, several files in a form; batching as its documentation advises, a batch window of
some milliseconds.
"""

import os
import sys
from typing import Annotated, Any

import litserve
import model
import numpy as np
from fastapi import Depends, Request
from starlette.datastructures import UploadFile


async def received(request: Request) -> tuple[list[bytes], str | None]:
    """What came: files, and the shape of the tensor if the only one of them is a tensor."""
    if request.headers["content-type"].startswith("multipart/form-data"):
        parts = (await request.form()).multi_items()
        return [await part.read() for _, part in parts if isinstance(part, UploadFile)], None
    return [await request.body()], request.headers.get("x-tensor-shape")


class Classifier(litserve.LitAPI):
    """Decodes, batches, answers."""

    def setup(self, device: Any) -> None:
        """Called once in each worker."""
        self.session = model.session(int(os.environ["MODEL_THREADS"]))

    def decode_request(self, request: Annotated[tuple[list[bytes], str | None], Depends(received)]) -> Any:
        """The images of one request."""
        files, shape = request
        if shape is not None:
            return np.frombuffer(files[0], np.uint8).reshape([int(side) for side in shape.split(",")])
        return np.stack([model.pixels(file) for file in files])

    def batch(self, inputs: Any) -> Any:
        """Those of several requests as one tensor, and how many each has."""
        return np.concatenate(inputs), [len(images) for images in inputs]

    def predict(self, batched: Any) -> Any:
        """The best class of each, by request."""
        images, counts = batched
        best = iter(model.best(self.session, images))
        return [[next(best) for _ in range(count)] for count in counts]

    def unbatch(self, output: Any) -> Any:
        """One answer for each request."""
        return output

    def encode_response(self, output: Any) -> Any:
        """As JSON."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(
        Classifier(max_batch_size=64, batch_timeout=0.002),
        accelerator="cpu",
        workers_per_device=int(os.environ["MODEL_WORKERS"]),
    )
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="error", generate_client_file=False)
