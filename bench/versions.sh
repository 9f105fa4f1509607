#!/usr/bin/env bash
# Runs a part of the tests with the oldest versions that pyproject.toml allows, or with the newest that there are.
# Usage: bench/versions.sh oldest|newest       (writes its figures into bench/results/versions.json; make test runs those of constraints.txt)
# The environment is made under bench/build, and again when the bounds change. PyPI's torch brings gigabytes of CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."
which=${1:-}
python=${PYTHON:-python3.11}
folder=bench/build/env-$which
tests=(tests/models tests/recipe tests/data tests/export tests/runtime tests/cli tests/api tests/pipeline/test_failures.py)
# the pages are checked against results, of which this is one
tests+=(--deselect tests/cli/test_docs.py::test_the_tables_are_those_of_the_results)

if [ "$which" != oldest ] && [ "$which" != newest ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi

wanted=$("$python" - "$which" <<'PYTHON'
import re
import sys
import tomllib

for line in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    name, lower = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
    print(f"{name}=={lower}" if sys.argv[1] == "oldest" else line)
print("hypothesis\npytest\npytest-timeout")
PYTHON
)
if [ "$(cat "$folder/.wanted" 2>/dev/null)" != "$wanted" ]; then
    rm -rf "$folder"
    "$python" -m venv "$folder"
    echo "$wanted" >"$folder/wanted.txt"
    "$folder/bin/pip" install --quiet --progress-bar off -r "$folder/wanted.txt"
    mv "$folder/wanted.txt" "$folder/.wanted"
fi

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=src
"$folder/bin/python" -m pytest -q -p no:cacheprovider --junitxml "$folder/tests.xml" "${tests[@]}"
"$folder/bin/python" - "$which" "$folder" <<'PYTHON'
import json
import platform
import sys
import xml.etree.ElementTree as tree
from importlib.metadata import version
from pathlib import Path

which, folder = sys.argv[1], Path(sys.argv[2])
suite = tree.parse(folder / "tests.xml").getroot().find("testsuite").attrib
names = ["torch", "transformers", "tokenizers", "safetensors", "compressed-tensors", "gguf", "huggingface_hub", "numpy", "pydantic"]
found = {
    "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    "tests": {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")},
}
path = Path("bench/results/versions.json")
known = json.loads(path.read_text()) if path.exists() else {}
path.write_text(json.dumps({**known, which: found}, indent=2, sort_keys=True) + "\n")
print(json.dumps(found))
PYTHON
