#!/bin/sh
# Trains an experiment on the machines of a SLURM job, one launcher per machine, one process per GPU.
#
#   sbatch --nodes=2 --gres=gpu:8 tool/slurm.sh cityscapes sfnet101 [section.key=value ...]
#
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
NNODES=${SLURM_NNODES:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
RDZV_ENDPOINT="$first:$((29400 + SLURM_JOB_ID % 1000))" RDZV_ID=$SLURM_JOB_ID
export NNODES RDZV_ENDPOINT RDZV_ID
exec srun sh -c 'NODE_RANK=$SLURM_NODEID exec sh tool/train.sh "$@"' sh "$@"
