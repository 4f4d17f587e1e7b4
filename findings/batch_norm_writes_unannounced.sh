#!/usr/bin/env bash
# Batch normalisation in training writes to its running statistics, and the operation says of no argument that it does.
#
# torch 2.14.1, CPython 3.11, Linux x86_64. PyTorch's operations mark in their schemas the tensors that they write to,
# `Tensor(a!)`, and count the writes in a tensor's version, by which autograd knows that something it kept was changed.
# nn.BatchNorm2d in training mode is dispatched to aten.native_batch_norm, which moves running_mean and running_var; its
# schema has plain `Tensor?` for both, and their versions stay as they were. Whatever goes by the schemas (a recorder of
# operations that puts back what a trial run has changed, a check for side effects) misses them without a word. The
# counter of batches beside them, `num_batches_tracked += 1`, is a marked operation like any other.
# Seen:
#   native_batch_norm marks 0 arguments as written; running_mean moved: True; its version: 1 before, 1 after
# kd's stand-in for a CUDA graph (tests/support/tape.py) knows these two arguments by name.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 numpy
cat > "$work/seen.py" <<'PY'
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Marked(TorchDispatchMode):
    """How many arguments each operation marks as written to."""

    def __init__(self):
        super().__init__()
        self.counts = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        arguments = func._schema.arguments
        written = [each for each in arguments if each.alias_info is not None and each.alias_info.is_write]
        self.counts[func.overloadpacket.__name__] = len(written)
        return func(*args, **(kwargs or {}))


norm = nn.BatchNorm2d(3).train()
mean, before = norm.running_mean.clone(), norm.running_mean._version
torch.manual_seed(0)
with Marked() as marked:
    norm(torch.randn(2, 3, 4, 4))
moved = not torch.equal(mean, norm.running_mean)
print("torch", torch.__version__)
print(
    f"native_batch_norm marks {marked.counts['native_batch_norm']} arguments as written; running_mean moved: {moved}; "
    f"its version: {before} before, {norm.running_mean._version} after"
)
PY
"$work/venv/bin/python" "$work/seen.py" | tee "$work/out"
grep -q "marks 0 arguments as written; running_mean moved: True; its version: 1 before, 1 after" "$work/out"
echo "as it was"
