#!/bin/sh
# Trains an experiment on all visible GPUs (or the CPU), continues it if it was interrupted, then evaluates it.
#
#   sh tool/train.sh cityscapes sfnet101 [section.key=value ...]
#
# NGPU=2 sh tool/train.sh ...              two processes
# NNODES=4 NODE_RANK=0 RDZV_ENDPOINT=host0:29400 sh tool/train.sh ...   on each of four machines
started_in=$PWD
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
need_env
work_in "$started_in" "$@"
exec "$PYTHON" -m tool.launch train "$@"
