#!/bin/sh
# Everything that needs a GPU, on a machine that has one: the tests marked gpu, and the measurements as JSON.
#
#   sh tool/gpu_check.sh [FOLDER]          FOLDER (default exp/gpu) takes tests.txt, NAME.txt and NAME.json
#
# A step that fails does not keep the others from running; the exit status says whether one did.
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
install_env "[test]" "pytest ruff sklearn hypothesis psutil"
folder=${1:-exp/gpu}
mkdir -p "$folder" || exit 1
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || {
    echo "error: PyTorch sees no GPU here" >&2
    exit 2
}
failed=""

step() {
    name=$1
    shift
    echo "== $name: $*"
    "$PYTHON" -m "$@" >"$folder/$name.txt" 2>&1 || failed="$failed $name"
    tail -n 25 "$folder/$name.txt"
}

step tests pytest -q -m gpu
step data tool.bench data cityscapes sfnet101 --count 16 --workers 8 --train 40 --json "$folder/data.json"
for experiment in semflow18 sfnet_mobile; do
    step "infer_$experiment" tool.bench infer cityscapes $experiment --size 1024 2048 --grow \
        --json "$folder/infer_$experiment.json"
    step "train_$experiment" tool.bench train cityscapes $experiment --size 1024 1024 --batch 16 \
        --json "$folder/train_$experiment.json"
done
step train_sfnet101 tool.bench train cityscapes sfnet101 --size 713 713 --batch 8 \
    --json "$folder/train_sfnet101.json"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
