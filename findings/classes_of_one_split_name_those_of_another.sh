#!/usr/bin/env bash
# datasets: Parquet files of two splits whose ClassLabel has its names in another order load without a word, and the
# second split's numbers then stand for the first one's names.
#
# datasets 5.2.0, pyarrow 25.0.1, CPython 3.11, Linux x86_64. Each file carries the names of its classes in its schema,
# as `Dataset.to_parquet` writes them; a single file is loaded with them. So one would expect of two files either that
# labels are brought to common names, or an error: their features differ. But `load_dataset` takes the features of the
# first file for all splits, and casts the others to them: a ClassLabel to a ClassLabel is its number, whatever the
# names. A test file of two cats is then two dogs. The same happens where the names are other ones altogether.
# Seen:
#   test file alone: ['cat', 'cat']
#   test file beside the training file: ['dog', 'dog']
#   names wholly different: ['dog', 'dog']
# kd compares the names in the files' schemas and refuses others (kd_cli/data/hf_dataset.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pyarrow==25.0.1
export HF_HOME="$work/cache" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
cd "$work"
cat > see.py <<'PY'
from datasets import ClassLabel, Dataset, Features, load_dataset


def write(path, names, shown):
    features = Features({"label": ClassLabel(names=names)})
    Dataset.from_dict({"label": [names.index(name) for name in shown]}, features=features).to_parquet(path)


def names_of(split):
    return [split.features["label"].int2str(number) for number in split["label"]]


write("train.parquet", ["dog", "cat"], ["dog", "cat"])
write("test.parquet", ["cat", "dog"], ["cat", "cat"])
write("other.parquet", ["ship", "truck"], ["ship", "ship"])
alone = load_dataset("parquet", data_files={"test": "test.parquet"})
print("test file alone:", names_of(alone["test"]))
both = load_dataset("parquet", data_files={"train": "train.parquet", "test": "test.parquet"})
print("test file beside the training file:", names_of(both["test"]))
others = load_dataset("parquet", data_files={"train": "train.parquet", "test": "other.parquet"})
print("names wholly different:", names_of(others["test"]))
PY
"$work/venv/bin/pip" list 2>/dev/null | grep -i -E "^(datasets|pyarrow) "
venv/bin/python see.py | tee out
grep -qF "test file alone: ['cat', 'cat']" out
grep -qF "test file beside the training file: ['dog', 'dog']" out
grep -qF "names wholly different: ['dog', 'dog']" out
echo "as it was"
