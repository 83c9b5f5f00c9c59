#!/usr/bin/env bash
# Everything that is measured on a GPU, in one command and under ten minutes on one GPU:
#
#     bash benchmarks/gpu/run.sh
#
# Each stage writes <stage>.json into RESULTS (by default OUT, else docs/results/gpu): what it found,
# and the date, hardware and versions. A stage that fails does not stop the others; the exit code
# then is 1. Arguments go to every stage: `--size tiny --device cpu` tries all of it without a GPU.
#
#     RESULTS   folder for the results
#     PYTHON    the interpreter; .venv/bin/python if there is one, else python3
#     WHEELS    folder of wheels of what PYTHON lacks (benchmarks/gpu/collect_wheels.sh makes it);
#               ./wheels if there is one. They are unpacked beside the installed packages, not
#               among them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

[[ -x .venv/bin/python ]] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default}
wheels=${WHEELS:-wheels}
export RESULTS=${RESULTS:-${OUT:-docs/results/gpu}}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false PIP_ROOT_USER_ACTION=ignore
mkdir -p "$RESULTS" || exit 1

if [[ -d $wheels ]]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --target "$site" "$wheels"/*.whl || exit 1
    PYTHONPATH=$PYTHONPATH:$site
elif [[ -n ${WHEELS:-} ]]; then
    echo "WHEELS=$WHEELS: there is no such folder" >&2
    exit 1
fi
# DeepSpeed looks for CUDA's compiler when it is imported beside a GPU.
if [[ -z ${CUDA_HOME:-} ]] && nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null); then
    export CUDA_HOME=${nvcc%/bin/nvcc}
fi

failed=0
stage() { # stage NAME SECONDS [ARGUMENT...]
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    echo "== $name"
    timeout "$seconds" "$python" -m "benchmarks.gpu.$name" "$@" || { echo "== $name failed ($?)"; failed=1; }
    echo "== $name: $((SECONDS - began)) s"
}

stage selection 90 "$@"
stage optimizer 90 "$@"
stage training 190 "$@"
stage scoring 70 "$@"
stage engines 160 "$@"
exit $failed
