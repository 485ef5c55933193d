#!/bin/sh
# Installs jaxtune into a virtual environment of its own and runs the main job: a real pretrained
# encoder, fine-tuned with LoRA on real movie reviews. Flags go to the experiment:
#   sh scripts/quickstart.sh --config.train.steps=20
set -eu
cd "$(dirname "$0")/.."
. scripts/venv.sh
exec "$VENV/bin/python" -m experiments.finetune \
  --config=configs/quickstart.py --workdir="${WORKDIR:-runs/quickstart}" "$@"
