#!/usr/bin/env bash
# timm's list of a network's stages names modules that the network does not have: MViTv2 and Twins.
#
# timm 1.0.31, torch 2.14.1, CPython 3.11, Linux x86_64. Every network of timm has `feature_info`, one entry for each
# stage with its channels, its reduction and the name of the module whose output it is: `layer1` of a ResNet, `stages.0`
# of a ConvNeXt. A forward hook on that module gives the stage. In MViTv2 and in both kinds of Twins the names are
# `block.0` … `block.3`, and there is no module `block`: MViTv2's stages are `stages.0` …, Twins' are `blocks.0` ….
# `features_only=True` works all the same, since it asks the network itself (`forward_intermediates`) and not its modules,
# and hands on the same names, by `feature_info.module_name()`.
# Seen:
#   mvitv2_tiny: ['block.0', 'block.1', 'block.2', 'block.3'], of which 0 are modules
#   twins_svt_small: ['block.0', 'block.1', 'block.2', 'block.3'], of which 0 are modules
#   convnext_atto: ['stages.0', 'stages.1', 'stages.2', 'stages.3'], of which 4 are modules
# So kd finds taps in timm's networks only where the name is a module's (docs/networks.md lists which).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile timm==1.0.31 torch==2.14.1 torchvision
cat > "$work/seen.py" <<'PY'
import timm

for name in ("mvitv2_tiny", "twins_svt_small", "convnext_atto"):
    network = timm.create_model(name)
    modules = {module for module, _ in network.named_modules()}
    stages = [stage["module"] for stage in network.feature_info]
    print(f"{name}: {stages}, of which {sum(stage in modules for stage in stages)} are modules")
features = timm.create_model("mvitv2_tiny", features_only=True)
print("features_only names them", features.feature_info.module_name())
PY
"$work/venv/bin/python" "$work/seen.py" | tee "$work/out"
grep -q "^mvitv2_tiny: .*, of which 0 are modules" "$work/out"
grep -q "^twins_svt_small: .*, of which 0 are modules" "$work/out"
grep -q "^convnext_atto: .*, of which 4 are modules" "$work/out"
grep -q "features_only names them \['block.0', 'block.1', 'block.2', 'block.3'\]" "$work/out"
echo "as it was"
