"""A saved network as files that run elsewhere: ONNX, PyTorch's own format, or bare weights."""
