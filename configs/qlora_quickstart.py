"""The quickstart under QLoRA: the same run, its frozen matrices in 4 bits.

  python -m experiments.finetune --config=configs/qlora_quickstart.py --workdir=runs/qlora

It reaches an accuracy of about 0.80, as the quickstart does, over matrices of an eighth of the
bytes; --config.method.quantize=int8 takes twice as many, and is exact to a percent of each weight.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.method.quantize = 'nf4'
  return config
