#!/usr/bin/env bash
# Slurm, one node or several:
#
#   sbatch launch/slurm.sh experiment=flowers102_64
#   sbatch --nodes=4 launch/slurm.sh experiment=flowers102_64 train.batch_size=512
#   sbatch --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh …
#
# Two minutes before the job's time is over or it is preempted, Slurm warns each process; they save and leave with exit
# code 75, and the job goes back into the queue. What a person must look at (codes 2, 3, 4) ends it. Outputs belong on a
# shared disk; without one, add checkpoint.mirror=s3://bucket/runs.
#SBATCH --job-name=ddpm-train
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# One task is one process. Not torchrun: it hides the exit code and dies of Slurm's warning. The first process to leave
# must not take along the one that still saves, hence --kill-on-bad-exit=0.
# shellcheck disable=SC2016  # the variables are each task's own
srun --kill-on-bad-exit=0 --wait=120 --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c '
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS
  export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  exec ddpm-train "$@"' ddpm-train "$@"
code=$?

case $code in
  0 | 2 | 3 | 4) ;;
  75 | 138 | 143) scontrol requeue "$SLURM_JOB_ID" ;; # asked to stop; 138 and 143: before Python was there to hear it
  *) [ "${SLURM_RESTART_COUNT:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID" ;; # killed, or an error
esac
exit "$code"
