#!/bin/bash
# bash docs/cluster/openmpi.sh HOSTFILE
# Two hosts with four GPUs each: one process a GPU. Open MPI 5 needs mpi4py in the environment.
set -u

for attempt in 1 2 3 4 5; do
  mpirun --hostfile "$1" --map-by ppr:4:node -np 8 \
    python -m experiments.finetune --config=configs/sft_smollm2.py --workdir=/shared/runs/sft
  code=$?
  # Stopped, or a process has died: the same command goes on from the newest checkpoint.
  case $code in
  75 | 134 | 137 | 143) echo "start $attempt ended with $code" >&2 ;;
  *) break ;;
  esac
done
exit $code
