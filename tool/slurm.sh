#!/bin/sh
# Trains an experiment on the machines of a SLURM job, one launcher per machine, one process per GPU.
#
#   sbatch --nodes=2 --gres=gpu:8 tool/slurm.sh cityscapes sfnet101 [section.key=value ...]
#
# Two minutes before the time is up, or when the job must make room, SLURM sends SIGUSR1: the run saves, ends with
# status 75, and the job is put back into the queue, where the same command continues it.
#
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
NNODES=${SLURM_NNODES:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
RDZV_ENDPOINT="$first:$((29400 + SLURM_JOB_ID % 1000))" RDZV_ID=$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}
export NNODES RDZV_ENDPOINT RDZV_ID
# A launcher that loses another machine must stay for its return; by itself srun ends all with the first.
srun --kill-on-bad-exit=0 sh -c 'NODE_RANK=$SLURM_NODEID exec sh tool/train.sh "$@"' sh "$@" &
steps=$!
# The signal reaches this shell alone (B:): one launcher on each machine is told by srun, which passes it on.
trap 'kill -USR1 "$steps" 2>/dev/null' USR1 TERM
wait "$steps"
status=$?
while kill -0 "$steps" 2>/dev/null; do # the signal has only interrupted the waiting
    wait "$steps"
    status=$?
done
if [ "$status" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID" || exit 75
fi
exit "$status"
