r"""Searches learning rate, rank and seed of the quickstart; about 7 minutes on 2 CPU cores.

  python -m experiments.sweep --config=configs/sweep_quickstart.py --workdir=runs/sweep

Other values, as one tuple of lines:

  --config.sweep.space="('optim.lr 1e-4..1e-2 log', 'optim.warmup 0, 0.06, 0.2')"
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.data.max_length = 48
  config.data.valid = 256
  config.data.test = 512
  config.train.batch_size = 16
  config.train.steps = 48
  config.train.eval_every = 0
  config.train.save_every = 0
  config.sweep.space = ('optim.lr 3e-4..1e-2 log', 'method.rank 4, 8, 16', 'seed 0, 1, 2')
  config.sweep.candidates = 16
  config.sweep.first = 16
  return config
