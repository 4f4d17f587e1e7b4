#!/usr/bin/env bash
# Hydra: an override whose value is an interpolation is named by what it stands for in a run, and by its escaped text in
# a sweep of that run.
#
# hydra-core 1.3.8, omegaconf 2.3.1, CPython 3.11, Linux x86_64. `hydra.job.override_dirname` is there to name folders by
# what was typed, the same for a run and for a sweep's point with the same overrides. Both do the same work here, a = 5.
# Seen, of `python app.py a=${b} b=5` and of `python app.py -m a=${b} b=5`:
#   alone    a = 5, named a=5,b=5
#   a sweep  a = 5, named a=$\{b\},b=5
# So a run by itself is not found where the sweep would have put it, and the folder's name has backslashes and braces in
# it, which the next shell, glob or override grammar reads as something else. `hydra.overrides.task`, the list of what was
# typed, differs in the same way: who iterates over it in a run gets `a=5`, and never the word that was typed.
# kd leaves its own such overrides out of the name (kd_cli/config/overrides.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q hydra-core==1.3.8 omegaconf==2.3.1
cat > "$work/app.py" <<'PY'
import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig


@hydra.main(version_base="1.3", config_path=None, config_name="numbers")
def main(config):
    print(f"a = {config.a}, named {HydraConfig.get().job.override_dirname}")


ConfigStore.instance().store("numbers", {"a": 0, "b": 1})
main()
PY
cd "$work"
# shellcheck disable=SC2016 # the interpolation is Hydra's
{
  echo "alone    $(venv/bin/python app.py 'a=${b}' b=5)"
  echo "a sweep  $(venv/bin/python app.py -m 'a=${b}' b=5 | grep '^a = ')"
} | tee out
grep -qxF 'alone    a = 5, named a=5,b=5' out
grep -qxF 'a sweep  a = 5, named a=$\{b\},b=5' out
echo "as it was"
