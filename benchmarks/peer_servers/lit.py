"""LitServe: raw bytes in the body; batching as its documentation advises, a batch window of some milliseconds."""

import os
import sys
from typing import Annotated, Any

import litserve
import model
import numpy as np
from fastapi import Body


class Classifier(litserve.LitAPI):
    """Decodes, batches, answers."""

    def setup(self, device: Any) -> None:
        """Called once in each worker."""
        self.session = model.session(int(os.environ["MODEL_THREADS"]))

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        """One image."""
        return model.pixels(request)

    def batch(self, inputs: Any) -> Any:
        """Images as one tensor."""
        return np.stack(inputs)

    def predict(self, images: Any) -> Any:
        """The best class of each."""
        return model.best(self.session, images)

    def unbatch(self, output: Any) -> Any:
        """One answer each."""
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
