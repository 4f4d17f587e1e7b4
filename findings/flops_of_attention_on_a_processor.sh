#!/usr/bin/env bash
# torch.utils.flop_counter counts no FLOPs for attention on a processor, without a word.
#
# torch 2.14.1, CPython 3.11, Linux x86_64. scaled_dot_product_attention of 5 tokens of width 16 (2 heads of 8) has two
# matrix products, 2 * 5 * 5 * 16 FLOPs each: 1,600 in all. On a processor it is dispatched to
# aten._scaled_dot_product_flash_attention_for_cpu, for which the counter has no formula (it has one for the same
# operation on CUDA), and operations without one count as nothing. A Vision Transformer looks cheaper on a processor
# than on a GPU, the more so the more tokens it has.
# Seen:
#   chosen by itself: 0; SDPBackend.MATH: 1600
# kd counts under SDPBackend.MATH (kd_cli/metrics/cost.py: count_flops).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 numpy
cat > "$work/seen.py" <<'PY'
from contextlib import nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def flops(backend):
    query = torch.zeros(1, 2, 5, 8)  # batch, heads, tokens, width of a head
    with FlopCounterMode(display=False) as counter, torch.no_grad(), backend:
        scaled_dot_product_attention(query, query, query)
    return counter.get_total_flops()


print("torch", torch.__version__)
print(f"chosen by itself: {flops(nullcontext())}; SDPBackend.MATH: {flops(sdpa_kernel(SDPBackend.MATH))}")
PY
"$work/venv/bin/python" "$work/seen.py" | tee "$work/out"
grep -q "chosen by itself: 0; SDPBackend.MATH: 1600" "$work/out"
echo "as it was"
