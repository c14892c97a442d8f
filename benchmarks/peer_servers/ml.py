"""MLServer: BYTES in the JSON of the Open Inference Protocol, base64; adaptive batching."""

import base64
import os

import model
import numpy as np
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Classifier(MLModel):
    """Decodes, batches, answers."""

    async def load(self) -> bool:
        """Called once in each worker."""
        self.session = model.session(int(os.environ["MODEL_THREADS"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The best class of each."""
        files = [base64.b64decode(data) for data in payload.inputs[0].data]
        found = model.best(self.session, np.stack([model.pixels(file) for file in files]))
        ids = [[each["id"]] for each in found]
        output = ResponseOutput(name="id", shape=[len(ids), 1], datatype="INT64", data=[each[0] for each in ids])
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])
