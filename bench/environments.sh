#!/usr/bin/env bash
# Makes one environment a peer under bench/build/, because the peers pin versions that exclude each other.
# Usage: bench/environments.sh [llm-compressor] [auto-round] [llama-cpp] [torch-pruning] [aqlm]
# All by default; llama-cpp compiles for over ten minutes. aqlm is a checkout, since its package on PyPI only runs models: AQLM_SOURCE says
# where to clone it from.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p build
python=${PYTHON:-python3}

make() {
    local name=$1
    shift
    local folder=build/env-$name
    if [ -f "$folder/.done" ]; then
        echo "$name: already there"
        return
    fi
    rm -rf "$folder"
    "$python" -m venv "$folder"
    "$folder/bin/pip" install --quiet torch==2.13.0
    "$folder/bin/pip" install --quiet "$@"
    touch "$folder/.done"
    echo "$name: made"
}

clone() {
    local folder=build/$1 source=$2 commit=$3
    if [ -f "$folder/.done" ]; then
        echo "$1: already there"
        return
    fi
    rm -rf "$folder"
    git clone --quiet "$source" "$folder"
    git -C "$folder" checkout --quiet "$commit"
    touch "$folder/.done"
    echo "$1: made"
}

for peer in "${@:-llm-compressor auto-round llama-cpp torch-pruning aqlm}"; do
    for name in $peer; do
        case $name in
        llm-compressor) make llm-compressor torch==2.13.0 llmcompressor==0.14.0.1 ;;
        auto-round) make auto-round torch==2.13.0 auto-round==0.16.1 transformers==5.23.0 ;;
        llama-cpp) make llama-cpp torch==2.13.0 transformers==5.23.0 gguf==0.19.0 llama-cpp-python==0.3.36 ;;
        torch-pruning) make torch-pruning torch==2.13.0 transformers==5.23.0 torch-pruning==1.6.1 ;;
        aqlm) clone aqlm "${AQLM_SOURCE:-https://github.com/Vahe1994/AQLM}" e79a896ed6656fe4ed06193d42d004e7d0bbdbb2 ;;
        *)
            echo "unknown peer $name; there are llm-compressor, auto-round, llama-cpp, torch-pruning, aqlm" >&2
            exit 2
            ;;
        esac
    done
done
