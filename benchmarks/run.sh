#!/usr/bin/env bash
# Everything that is compared on a CPU, in one command: 8 minutes on 2 quiet cores with the embedded
# model and suite, 50 with SmolLM2-135M on TRACE:
#
#     bash benchmarks/run.sh [STAGE...]
#
# Each stage writes benchmarks/results/<stage>.json; at the end docs/performance.md is written from
# them. A stage that fails does not stop the others; the exit code then is 1. Named, only those
# stages run: optimizer, training, training-float32, scoring, strategies, growth, sharded,
# checkpoints.
#
#     MODEL    a checkpoint's folder for training and scoring; the embedded model without it
#     DATA     a TRACE folder; the embedded suite without it
#     TRACE    the folder of TRACE's own code, if its collator is to be compared too
#     AUTHORS  the optimizer of MoFO's authors, a file or a folder, if it is to be compared too
#     THREADS  torch's threads (2)
#     PYTHON   the interpreter; .venv/bin/python if there is one, else python3
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

[[ -x .venv/bin/python ]] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default}
threads=${THREADS:-2}
export OMP_NUM_THREADS=$threads TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
what=(--threads "$threads" ${MODEL:+--model "$MODEL"} ${DATA:+--data "$DATA"})
trace=(${TRACE:+--trace "$TRACE"})
wanted=" $* "
failed=0

stage() { # stage NAME MINUTES MODULE [ARGUMENT...]: MINUTES is what it takes, twice that its limit
    local name=$1 minutes=$2 module=$3 began=$SECONDS
    shift 3
    [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
    echo "== $name (about $minutes minutes)"
    timeout $((minutes * 120)) "$python" -m "benchmarks.$module" "$@" ||
        { echo "== $name failed ($?)"; failed=1; }
    echo "== $name: $((SECONDS - began)) s"
}

# The others compute logits at all positions: texts are cut at 512 + 128 tokens and padded by eights,
# which takes SmolLM2-135M 17 GB. float32 is measured on the tasks of short texts.
stage optimizer 3 optimizer --threads "$threads" --sizes 1e5 1e6 1e7 1e8 1e9 ${AUTHORS:+--authors "$AUTHORS"}
stage training 15 training "${what[@]}" "${trace[@]}" --precision bfloat16 \
    --micro-batch 8 --prompt-tokens 512 --answer-tokens 128 --memory-task Py150 --out benchmarks/results/training.json
stage training-float32 2 training "${what[@]}" "${trace[@]}" --precision float32 \
    --micro-batch 8 --tasks FOMC NumGLUE-cm NumGLUE-ds --out benchmarks/results/training-float32.json
stage scoring 20 scoring "${what[@]}" --examples 12
stage strategies 2 strategies --threads "$threads"
stage growth 2 growth --threads "$threads"
stage sharded 1 sharded
stage checkpoints 1 checkpoints
"$python" -m benchmarks.page || failed=1
exit $failed
