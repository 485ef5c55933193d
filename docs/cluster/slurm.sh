#!/bin/bash
# sbatch docs/cluster/slurm.sh
#SBATCH --job-name=jaxtune
#SBATCH --nodes=2
#SBATCH --gpus-per-node=4
#SBATCH --ntasks-per-node=4 # one process a GPU: JAX gives each the GPU of its local number
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120 # seconds before the end: the run saves and stops
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxtune-%j.log

srun python -m experiments.finetune --config=configs/sft_smollm2.py --workdir=/shared/runs/sft
code=$?

# Stopped, or a process has died: the same command goes on from the newest checkpoint.
case $code in
75 | 134 | 137 | 143)
  if [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
  ;;
esac
exit $code
