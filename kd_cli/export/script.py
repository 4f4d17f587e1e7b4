"""infer.py, which classifies images with the exported file, and the lines about it in README.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEEDS = {
    "onnx": "numpy pillow onnxruntime",
    "pt2": "numpy pillow torch",
    "safetensors": "numpy pillow torch kd-cli",
}

_IMPORTS = {
    "onnx": "import onnxruntime",
    "pt2": "import torch",
    "safetensors": "import torch\nfrom kd_cli.export.weights import load",
}

_LOAD = {
    "onnx": '''session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])


def logits(images):
    """uint8 [batch, H, W, C] -> float32 [batch, classes]"""
    return session.run(["logits"], {"images": images})[0]
''',
    "pt2": '''network = torch.export.load(HERE / "model.pt2").module()


@torch.inference_mode()
def logits(images):
    """uint8 [batch, H, W, C] -> float32 [batch, classes]"""
    return network(torch.from_numpy(images)).numpy()
''',
    "safetensors": '''network = load(HERE@TRUST@)


@torch.inference_mode()
def logits(images):
    """uint8 [batch, H, W, C] -> float32 [batch, classes]"""
    return network(torch.from_numpy(images)).numpy()
''',
}

_SCRIPT = '''"""Classifies images: python infer.py IMAGE ...

Needs: pip install @NEEDS@
"""

import json
import sys
from pathlib import Path

import numpy as np
@IMPORTS@
from PIL import Image

HERE = Path(__file__).resolve().parent
CONFIG = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
@LOAD@

def read(path):
    """An image file as the network takes it, uint8 [H, W, C]: another size is stretched, as in training."""
    height, width = CONFIG["image_size"]
    mode = {1: "L", 3: "RGB"}.get(CONFIG["channels"]) or sys.exit("image files have 1 or 3 channels, this network more")
    image = Image.open(path).convert(mode).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, -1)


def main(paths):
    """Prints the three most probable classes of each image."""
    if not paths:
        sys.exit(__doc__)
    scores = logits(np.stack([read(path) for path in paths]))
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    for path, row in zip(paths, probabilities):
        best = row.argsort()[::-1][:3]
        print(path + ":", ", ".join(f"{CONFIG['classes'][label]} {row[label]:.3f}" for label in best))


if __name__ == "__main__":
    main(sys.argv[1:])
'''


def infer_script(kind: str, facts: Mapping[str, Any]) -> str:
    """A Python file that runs beside the model and needs nothing but `NEEDS[kind]`."""
    trust = ", trust_external=True" if facts["model"]["name"] == "external" else ""
    text = _SCRIPT.replace("@LOAD@", _LOAD[kind]).replace("@IMPORTS@", _IMPORTS[kind])
    return text.replace("@NEEDS@", NEEDS[kind]).replace("@TRUST@", trust)
