r"""Goes on with pretraining on the texts of a domain: masked words of reviews, over MiniLM.

MiniLM comes without a head for masked tokens; a fresh one, tied to the embeddings, is learned too.

  python -m experiments.finetune --config=configs/masked_lm_minilm.py --workdir=runs/masked_lm

Expect the loss on held-out reviews to fall from 10.8 (nothing learned) to 5.1 nats a masked token,
and a quarter of the masked tokens to be guessed; this takes about 8 minutes on 2 CPU cores.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.task = 'masked_lm'
  config.objective.options.whole_word = True
  config.data.max_length = 64
  config.data.valid = 0.0
  config.data.test = 500.0
  config.method.name = 'full'
  config.optim.lr = 5e-4
  config.train.steps = 120
  config.train.eval_every = 120
  config.train.save_every = 60
  return config
