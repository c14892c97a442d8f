"""What the peers share, in an environment without Lifelist: the same graph, the same pixels, the same answer."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(os.environ["MODEL_FOLDER"])  # model.onnx, and about.json: what the version says of itself
ABOUT = json.loads((FOLDER / "about.json").read_text())
MOST = 64  # images in one run of the graph
SIZE, RESIZE_TO, CLASSES = ABOUT["size"], ABOUT["resize_to"], ABOUT["classes"]


def session(threads: int) -> Any:
    """ONNX Runtime as Lifelist sets it up: no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])


def pixels(body: bytes) -> Any:
    """size×size×3 uint8: of a tensor as it is, of an image file by the rule of the version."""
    if len(body) == SIZE * SIZE * 3:
        return np.frombuffer(body, np.uint8).reshape(SIZE, SIZE, 3)
    image = Image.open(io.BytesIO(body)).convert("RGB")
    short = min(image.size)
    if short != RESIZE_TO:
        side = (RESIZE_TO * image.width // short, RESIZE_TO * image.height // short)
        image = image.resize(side, Image.Resampling.BILINEAR)
    left, top = round((image.width - SIZE) / 2), round((image.height - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def best(opened: Any, images: Any) -> list[dict[str, Any]]:
    """The best class of each of N×S×S×3 images."""
    runs = [opened.run(["logits"], {"images": images[k : k + MOST]})[0] for k in range(0, len(images), MOST)]
    logits = np.concatenate(runs)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = weights / weights.sum(axis=1, keepdims=True)
    found = scores.argmax(axis=1)
    return [{"id": int(k), "name": CLASSES[k], "score": float(row[k])} for k, row in zip(found, scores, strict=True)]
