r"""Regresses a number from text: how much a reviewer liked the film, by mean squared error.

python -m experiments.finetune --config=configs/regression.py --workdir=runs/regression
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.task = 'regression'
  return config
