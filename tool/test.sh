#!/bin/sh
# Evaluates the checkpoint of an experiment on all visible GPUs (or the CPU).
#
#   sh tool/test.sh cityscapes sfnet101 [section.key=value ...]
started_in=$PWD
cd "$(dirname "$0")/.." || exit 1
. tool/env.sh
need_env
work_in "$started_in" "$@"
exec "$PYTHON" -m tool.launch test "$@"
