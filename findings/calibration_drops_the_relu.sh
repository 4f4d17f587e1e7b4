#!/usr/bin/env bash
# onnxruntime's static quantisation leaves the ReLU out of a network that CalibrationMethod.Distribution calibrated.
#
# onnxruntime 1.32.0, onnx 1.23.2, CPython 3.11, Linux x86_64. A classifier of two layers for scikit-learn's digits, the
# first random and the second fitted, is quantised to 8 bits on 512 of its training images and measured on 597 others.
# One would expect every calibration to keep its accuracy, or an error. An asymmetric activation needs no ReLU node
# where its range begins at 0, for its zero point is the smallest integer then; onnxruntime takes the node away without
# looking at the range. Distribution gives ranges around 0, so does MinMax with the documented option
# CalibTensorRangeSymmetric, and what is left is a linear network, without a word. (With ActivationSymmetric the node
# stays: microsoft/onnxruntime pull request 11696.) The docstring of quantize_static names only MinMax and Entropy for
# calibrate_method, but it accepts Distribution for 8-bit integers, and onnxruntime.quantization.static_quantize_runner
# offers it as a choice.
# Seen (top-1, percent; the last digits may depend on the processor):
#   float32: 93.63, ReLU nodes: 1
#   MinMax: 93.80, ReLU nodes: 0
#   Distribution: 23.28, ReLU nodes: 0
#   MinMax, CalibTensorRangeSymmetric: 23.28, ReLU nodes: 0
# The same ranges with the ReLU kept:
#   Distribution, QDQKeepRemovableActivations: 93.30, ReLU nodes: 1
# kd calibrates by MinMax, without that option (kd_cli/export/int8.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q onnxruntime==1.32.0 onnx==1.23.2 scikit-learn==1.9.1 numpy==2.4.6
cat > "$work/seen.py" <<'PY'
import contextlib, io, os, sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from sklearn.datasets import load_digits

os.chdir(sys.argv[1])
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
train, test = slice(1200), slice(1200, None)

weights = np.random.default_rng(0).normal(0, 0.3, (64, 256)).astype(np.float32)
bias = np.full(256, -0.5, np.float32)
hidden = np.maximum(images[train] @ weights + bias, 0).astype(np.float64)
wanted = np.eye(10)[labels[train]]
fitted = np.linalg.solve(hidden.T @ hidden + 10 * np.eye(256), hidden.T @ wanted).astype(np.float32)
graph = helper.make_graph(
    [
        helper.make_node("Gemm", ["images", "weights", "bias"], ["before"]),
        helper.make_node("Relu", ["before"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "fitted"], ["logits"]),
    ],
    "digits",
    [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 64])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
    [numpy_helper.from_array(*pair) for pair in ((weights, "weights"), (bias, "bias"), (fitted, "fitted"))],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "float32.onnx")
quant_pre_process("float32.onnx", "ready.onnx", skip_symbolic_shape=True)


class Images(CalibrationDataReader):
    def __init__(self):
        self.batches = iter([{"images": images[first : first + 64]} for first in range(0, 512, 64)])

    def get_next(self):
        return next(self.batches, None)


def measure(name, path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images[test]})
    top1 = 100 * float((logits.argmax(axis=1) == labels[test]).mean())
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    print(f"{name}: {top1:.2f}, ReLU nodes: {nodes.count('Relu')}")
    return top1


def quantised(method, *options):
    with contextlib.redirect_stdout(io.StringIO()):  # how many tensors there are, and of which method
        quantize_static(
            "ready.onnx",
            "int8.onnx",
            Images(),
            quant_format=QuantFormat.QDQ,
            calibrate_method=CalibrationMethod[method],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # 8 x 8 bits would overflow on some processors
            extra_options=dict.fromkeys(options, True),
        )
    return measure(", ".join((method, *options)), "int8.onnx")


print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__)
exact = measure("float32", "ready.onnx")
kept = [quantised("MinMax"), quantised("Distribution", "QDQKeepRemovableActivations")]
lost = [quantised("Distribution"), quantised("MinMax", "CalibTensorRangeSymmetric")]
if min(kept) > exact - 3 and max(lost) < exact / 2:
    print("kept, lost")
PY
"$work/venv/bin/python" "$work/seen.py" "$work" | tee "$work/out"
grep -q "^kept, lost" "$work/out"
echo "as it was"
