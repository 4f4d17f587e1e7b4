#!/usr/bin/env bash
# hydra-optuna-sweeper, merely installed, breaks an application with a file conf/hydra/sweeper/optuna.yaml of its own.
#
# hydra-core 1.3.8, hydra-optuna-sweeper 1.3.0, CPython 3.11, Linux x86_64. Files in an application's folder of options
# come before what plugins bring, so one would expect its own file to be taken, whatever else is installed. But the
# plugin, which Hydra imports at every start, registers a schema of that name, and Hydra still holds every file to the
# schema of its name (its message says that this ends with 1.2, and version_base="1.3" does not end it); since this
# schema has a defaults list, Hydra refuses outright. Nothing of the plugin was asked for, and the message does not name
# it. Under another name the same file works. (To be short, it names Hydra's basic sweeper here.)
# Seen:
#   without the plugin: ran with 3 (exit code 0)
#   with the plugin: 'hydra/sweeper/optuna' is validated against ConfigStore schema with the same name. (exit code 1)
#   with the plugin, under another name: ran with 3 (exit code 0)
# kd takes the plugin's schema out of the store (kd_cli/config/search_path.py: _take_plugins).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q hydra-core==1.3.8
mkdir -p "$work/conf/hydra/sweeper"
cat > "$work/app.py" <<'PY'
import hydra


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(options):
    print("ran with", options.lr)


main()
PY
cat > "$work/conf/config.yaml" <<'YAML'
defaults:
  - override hydra/sweeper: optuna
  - _self_
lr: 3
YAML
cat > "$work/conf/hydra/sweeper/optuna.yaml" <<'YAML'
_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper
max_batch_size: null
params: null
YAML
cp "$work/conf/hydra/sweeper/optuna.yaml" "$work/conf/hydra/sweeper/mine.yaml"

see() { # how, arguments of the application
  local code=0
  (cd "$work" && venv/bin/python app.py "${@:2}") > "$work/said" 2>&1 || code=$?
  echo "$1: $(grep -m 1 -E "^ran with|same name" "$work/said" || tail -n 1 "$work/said") (exit code $code)"
}

{
  see "without the plugin"
  "$work/venv/bin/pip" install -q hydra-optuna-sweeper==1.3.0 >&2
  "$work/venv/bin/pip" list 2>/dev/null | grep -i -E "^(hydra|optuna)"
  see "with the plugin"
  cat "$work/said"
  see "with the plugin, under another name" hydra/sweeper=mine
} | tee "$work/out"
grep -q "^without the plugin: ran with 3 (exit code 0)" "$work/out"
grep -q "^with the plugin: .* is validated against ConfigStore schema with the same name. (exit code 1)" "$work/out"
grep -q "^with the plugin, under another name: ran with 3 (exit code 0)" "$work/out"
echo "as it was"
