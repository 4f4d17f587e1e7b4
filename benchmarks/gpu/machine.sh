#!/usr/bin/env bash
# The GPU's tests and benchmark on a machine without a network, whose python3 has PyTorch, torchvision, safetensors,
# pytest, xdist, typer and rich. In a checkout:
#   benchmarks/gpu/machine.sh wheels DIR                     with a network: what that machine lacks, into DIR
#   benchmarks/gpu/machine.sh test DIR                       there
#   benchmarks/gpu/machine.sh measure DIR OUT.json [BEFORE]  there; BEFORE: another checkout, measured beside this one
# PYTHON is another interpreter, PROCESSES how many run the tests (4), NAMES the measurements, all unless it is set.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# //p' "$0"; exit 2; }
what=$1 wheels=$(mkdir -p "$2" && cd "$2" && pwd) python=${PYTHON:-python3}
[ -z "${3:-}" ] || out=$(realpath "$3")
[ -z "${4:-}" ] || before=$(cd "$4" && pwd)
cd "$(dirname "$0")/../.."

# What is lacking goes beside what the interpreter has, not into it.
install() {
  [ -d "$wheels/site" ] ||
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$wheels/site" "$wheels"/*.whl
  export PYTHONPATH=$wheels/site
}

case $what in
  wheels)
    "$python" -m pip wheel -q --no-deps -w "$wheels" \
      antlr4-python3-runtime==4.9.3 'hydra-core>=1.3.8,<1.4' 'omegaconf>=2.3,<2.4' .
    git describe --always --dirty > "$wheels/commit"
    ;;
  test)
    install
    "$python" -m pytest -p no:benchmark -m gpu -n "${PROCESSES:-4}" --durations=10 tests/gpu
    ;;
  measure)
    install
    "$python" -m benchmarks.gpu --out "$out" --commit "$(cat "$wheels/commit")" ${before:+--before "$before"} ${NAMES:-}
    ;;
  *)
    echo "there is no $what: wheels, test or measure" >&2
    exit 2
    ;;
esac
