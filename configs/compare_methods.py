r"""Compares fine-tuning strategies on one real job, each with learning rates of its own.

  python -m experiments.compare_methods --config=configs/compare_methods.py --workdir=runs/methods

Zero-shot, few-shot, probe, BitFit, IA3, prompt tuning, LoRA and its variants, and full fine-tuning
of MiniLM on the same movie reviews, in the same number of steps: about half an hour on 2 CPU cores.
LoRA, its variants, IA3 and full fine-tuning end within two points of each other (0.710 to 0.721,
benchmarks/RESULTS.md), BitFit at 0.669, zero-shot at 0.622. Some of them alone, or others:

  ... --config=configs/compare_methods.py:lora,loha,norms,full
"""

import ml_collections

from configs import quickstart


def get_config(strategies: str = '') -> ml_collections.ConfigDict:
  config = quickstart.get_config()
  config.data.max_length = 32
  config.data.valid = 0.015  # chooses the learning rates
  config.data.test = 0.025
  config.train.steps = 100
  config.train.batch_size = 16

  config.compare = ml_collections.ConfigDict()
  config.compare.tuning_seeds = 1  # runs at each learning rate
  config.compare.seeds = 3  # further runs at the best of them, which are compared
  config.compare.shots = 16  # rows of each label that few-shot sees
  # Of each label, what zero-shot compares a text with: 'label=text|label=text'.
  config.compare.descriptions = '0=a bad, boring movie|1=a great, wonderful movie'
  config.compare.reference = 'lora'  # the strategy that the others are measured against
  config.compare.variants = 'lora,rslora,dora,pissa'  # said to tie once tuned, 2602.04998
  config.compare.margin = 0.02  # of accuracy, within which they tie
  config.compare.confidence = 0.95

  # `method` names the method where the label does not; `options` are the method's own.
  known = {
    'zero_shot': {},
    'few_shot': {},
    'probe': {'rates': (1e-2, 3e-2, 1e-1)},
    'bitfit': {'rates': (3e-3, 1e-2, 3e-2)},
    'norms': {'rates': (1e-3, 3e-3, 1e-2)},
    'ia3': {'rates': (1e-2, 3e-2, 1e-1)},
    'prompt': {'rates': (1e-2, 3e-2, 1e-1)},
    'lora': {'rates': (5e-4, 1e-3, 2e-3)},
    'rslora': {'method': 'lora', 'options': {'rslora': True}, 'rates': (1.25e-4, 2.5e-4, 5e-4)},
    'dora': {'rates': (5e-4, 1e-3, 2e-3)},
    'pissa': {'method': 'lora', 'options': {'start': 'pissa'}, 'rates': (2.5e-4, 5e-4, 1e-3)},
    'loha': {'rates': (1e-3, 2e-3, 4e-3)},
    'full': {'rates': (3e-5, 1e-4, 3e-4)},
  }
  more = ('norms', 'loha')  # on demand
  names = [name.strip() for name in strategies.split(',') if name.strip()]
  names = names or [name for name in known if name not in more]
  config.strategies = {name: known.get(name, {'rates': (1e-3,)}) for name in names}
  return config
