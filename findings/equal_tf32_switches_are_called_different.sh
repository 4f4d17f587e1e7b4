#!/usr/bin/env bash
# PyTorch's newer switch for TF32, set for everything, makes its older one unreadable, for a reason that is not true.
#
# torch 2.14.1, CPython 3.11, Linux x86_64; no GPU is needed. torch.backends.fp32_precision = "ieee" asks for exact
# float32 everywhere, and afterwards convolutions, recurrent networks and matrix products all say "ieee". Reading the
# older torch.backends.cudnn.allow_tf32, as programs do that put switches back when they are done (and as
# torch.backends.cudnn.flags() does), raises a RuntimeError: convolutions and recurrent networks had different flags.
# The older way and the newer one are kept apart inside, and setting the newer one for everything changes one half.
# Seen:
#   conv ieee, rnn ieee, matmul ieee
#   RuntimeError: … cuDNN conv and cuDNN RNN have different TF32 flags …
# kd sets the older switches and reads none of them (kd_cli/arithmetic.py: switch).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 numpy
cat > "$work/seen.py" <<'PY'
import torch
from torch import backends

print("torch", torch.__version__)
backends.fp32_precision = "ieee"
precisions = [each.fp32_precision for each in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)]
print("conv {}, rnn {}, matmul {}".format(*precisions))
try:
    print("allow_tf32:", backends.cudnn.allow_tf32)
except RuntimeError as error:
    print("RuntimeError:", str(error).replace("\n", " "))
PY
"$work/venv/bin/python" "$work/seen.py" | tee "$work/out"
grep -q "conv ieee, rnn ieee, matmul ieee" "$work/out"
grep -q "RuntimeError: .*cuDNN conv and cuDNN RNN have different TF32 flags" "$work/out"
echo "as it was"
