#!/usr/bin/env bash
# Table 2 with SmolLM2-135M on two CPU cores, in one command that goes on where it was stopped:
#
#     MODEL=./SmolLM2 DATA=./TRACE-500 bash benchmarks/table2/run.sh [tune] [table] [page]
#
# Named, only those parts run. `tune` tries MoFO's fractions and learning rates for every row on
# validation data; it changes nothing: the recipe table2-smollm2-cpu has what was chosen. `table` runs
# the recipe. `page` puts the figures of both into docs/results/table2-smollm2, without texts and
# weights, and writes docs/results/table2-smollm2.md from there.
#
#     MODEL    a folder with SmolLM2-135M-Instruct
#     DATA     a folder with TRACE's 500-example variant
#     PROSE    a text that no task is about; made in OUT by default
#     OUT      where the runs go; outputs/table2-smollm2 by default
#     JOBS     processes of one thread each that share the runs (2)
#     PYTHON   the interpreter; .venv/bin/python if there is one, else python3
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

[[ -x .venv/bin/python ]] && default=$PWD/.venv/bin/python || default=python3
python=${PYTHON:-$default}
out=${OUT:-outputs/table2-smollm2}
recipe=table2-smollm2-cpu
export OMP_NUM_THREADS=1 TRACE_DIR=${DATA:?a folder with TRACE} PROSE=${PROSE:-$out/prose.txt}
mkdir -p "$out" || exit 1
[[ -e $PROSE ]] || "$python" -m benchmarks.table2.prose "$PROSE" || exit 1

share() { # share COMMAND...: as many processes share a command's runs as JOBS says
    local job jobs=() code=0
    for ((job = 0; job < ${JOBS:-2}; job++)); do
        "$python" -m cl_mofo "$@" --model "${MODEL:?a folder with SmolLM2-135M}" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    return $code
}
rows=(sequential hft mofo gem gem+mofo ewc ewc+mofo replay replay+mofo lora lora+mofo)
walk() { # walk ROW: try four rates, then past the grid's end while the best is there
    local rates=1.25e-5,5e-5,2e-4,8e-4
    while [[ $rates ]]; do
        "$python" -m cl_mofo tune "$recipe" --model "${MODEL:?a folder with SmolLM2-135M}" \
            --strategy "$1" "${proxy[@]}" --grid "optimizer.lr=$rates" --out "$out/rates" &&
            rates=$("$python" -m benchmarks.table2.choices "$out/rates" "$1") || return
    done
}
each() { # each COMMAND: for all rows, which JOBS processes share
    local job row jobs=() code=0
    for ((job = 0; job < ${JOBS:-2}; job++)); do
        (for ((row = job; row < ${#rows[@]}; row += ${JOBS:-2})); do "$1" "${rows[row]}" || exit; done) &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || code=$?; done
    return $code
}
wanted() { [[ $parts == " " || $parts == *" $1 "* ]]; }
parts="$* "
[[ $parts == " " ]] || parts=" $parts"

# The proxy: four tasks, 64 training and 40 validation examples of each, as short as the table's.
proxy=(--set 'tasks.only=[FOMC, Py150, ScienceQA, NumGLUE-ds]' --set data.train_limit=64
    --set data.eval_limit=40 --set evaluation.tasks=seen --set data.prose=null --set seed=42)
if wanted tune; then
    share tune "$recipe" --strategy mofo "${proxy[@]}" --set optimizer.lr=2e-4 \
        --grid mofo.update_fraction=0.05,0.1,0.15,0.2,0.4,0.8 --out "$out/fractions" || exit
    each walk || exit
fi
if wanted table; then
    share run "$recipe" --out "$out/table" || exit
    share run "$recipe" --strategy sequential --set optimizer.lr=2e-4 --out "$out/same_rate" || exit
    share run "$recipe" --strategy sequential --set data.train_limit=8 --set 'sweep.vary.seed=[1]' \
        --set evaluation.initial=true --out "$out/before" || exit # for the scores before training
fi
if wanted page; then
    kept=docs/results/table2-smollm2
    "$python" -m benchmarks.table2.kept "$out" $kept && "$python" -m benchmarks.table2.page $kept
fi
