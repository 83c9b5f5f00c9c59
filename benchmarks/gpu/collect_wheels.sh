#!/usr/bin/env bash
# Collect wheels of what a GPU machine without internet lacks, for benchmarks/gpu/run.sh:
#
#     bash benchmarks/gpu/collect_wheels.sh [FOLDER]        # ./wheels by default
#
# That machine is taken to have torch, torchvision, transformers, accelerate, peft and the usual
# scientific packages. The versions are constraints.txt's. DeepSpeed is published as source; its
# wheel holds no compiled operators, and is for any machine.
#
#     TARGET    the machine's Python, 3.12 by default; it is x86-64 with glibc 2.28 or newer
#     PYTHON    an interpreter with pip, setuptools and torch, which DeepSpeed's build asks for;
#               .venv/bin/python if there is one, else python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

folder=${1:-wheels}
[[ -x .venv/bin/python ]] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default}
most=64 # MiB, all together

# For the engines; for the command line with its strategies, tasks and scores; for Avalanche, which
# imports wandb.
engines="pydantic pydantic_core annotated-types typing-inspection typing_extensions"
loop="avalanche-lib datasets dill multiprocess nltk defusedxml quadprog qpsolvers gdown
    beautifulsoup4 soupsieve PySocks pytorchcv"
wandb="wandb platformdirs opentelemetry-api opentelemetry-sdk opentelemetry-semantic-conventions
    opentelemetry-proto opentelemetry-exporter-otlp-proto-http opentelemetry-exporter-otlp-common
    opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-http-transport
    googleapis-common-protos"
sources="deepspeed hjson GPUtil" # of which wheels are built here

pinned() { # pinned NAME...
    local name
    for name in "$@"; do
        grep -i "^$name==" constraints.txt || { echo "$name is not in constraints.txt" >&2; exit 1; }
    done
}

mkdir -p "$folder"
echo '*' >"$folder/.gitignore"
# shellcheck disable=SC2046,SC2086
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "${TARGET:-3.12}" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --platform manylinux_2_5_x86_64 --platform manylinux1_x86_64 \
    --dest "$folder" $(pinned $engines $loop $wandb)
# shellcheck disable=SC2046,SC2086
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$python" -m pip wheel --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation --wheel-dir "$folder" $(pinned $sources)

size=$(du --summarize --block-size=1M "$folder" | cut -f1)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $size MiB"
((size < most)) || { echo "more than $most MiB" >&2; exit 1; }
