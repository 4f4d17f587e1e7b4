#!/usr/bin/env bash
# The first optimizer of a process imports PyTorch's compiler, though nothing is compiled.
#
# torch 2.14.1, CPython 3.11, Linux x86_64. `import torch` alone leaves torch._dynamo out, as one would hope; the
# constructor of torch.optim.SGD brings it, sympy and some nine hundred other modules: methods of Optimizer are wrapped
# by torch._disable_dynamo, which imports torch._dynamo to be kept out of it. `step` does so once more by itself.
# Seen:
#   torch._dynamo after import torch: False; after torch.optim.SGD: True; sympy: True; modules more: over 500
# Reached through inspect.unwrap, the same methods work without it, to the same bits:
#   torch._dynamo after an unwrapped training step: False; same weights: True
# kd does the second (kd_cli/training/optim.py: without_compiler). When this fails, look whether it still has to.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.14.1 numpy
cat > "$work/seen.py" <<'PY'
import inspect, sys
import torch


def train(rule):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    optimizer = rule(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return layer.weight.detach().clone()


before = "torch._dynamo" in sys.modules
names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
methods = {name: inspect.unwrap(getattr(torch.optim.SGD, name)) for name in names}
methods["step"] = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))
ours = train(type("SGD", (torch.optim.SGD,), methods))
unwrapped = "torch._dynamo" in sys.modules
modules = len(sys.modules)
torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.1)
after, more = "torch._dynamo" in sys.modules, len(sys.modules) - modules
same = torch.equal(ours, train(torch.optim.SGD))
print("torch", torch.__version__)
print(f"torch._dynamo after import torch: {before}; after torch.optim.SGD: {after}; sympy: {'sympy' in sys.modules};", end=" ")
print("modules more: over 500" if more > 500 else f"modules more: {more}")
print(f"torch._dynamo after an unwrapped training step: {unwrapped}; same weights: {same}")
PY
"$work/venv/bin/python" "$work/seen.py" | tee "$work/out"
grep -q "after import torch: False; after torch.optim.SGD: True; sympy: True; modules more: over 500" "$work/out"
grep -q "after an unwrapped training step: False; same weights: True" "$work/out"
echo "as it was"
