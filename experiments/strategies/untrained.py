"""Zero-shot and few-shot: what the model knows before any step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import dataset
from experiments.evaluation import by_words
from experiments.keys import Config
from experiments.strategies import settings
from experiments.tuned import Tuned
from jaxtune import data, interop, models
from jaxtune.data import few_shot
from jaxtune.typing import InputError


def zero_shot(config: Config, run: Tuned, corpus: dataset.Corpus) -> np.ndarray:
  """The label whose description is nearest to the text; of a decoder, whose word is likeliest."""
  if run.model.family == 'decoder':
    return _asked(config, run, corpus, 0, 0)
  texts = settings.descriptions(config, corpus.names)
  rows = [{run.config.data.text: text} for text in texts]
  described = dataset.encode_unlabelled(run.config, run.tok, rows)
  return _nearest(_embedded(run, corpus.test), _embedded(run, described))


def few_shot_of(config: Config, run: Tuned, corpus: dataset.Corpus, seed: int) -> np.ndarray:
  """The label whose mean embedding over a few labelled rows is nearest; of a decoder, by prompt.

  Prototypes (Snell et al. 2017, arXiv:1703.05175, equation 1) on normalized sentence embeddings.
  """
  shots = config.compare.shots
  if run.model.family == 'decoder':
    return _asked(config, run, corpus, shots, seed)
  labels = [int(example['label']) for example in corpus.train.examples]
  chosen = few_shot.draw_examples(labels, corpus.names, shots * len(corpus.names), seed)
  shown = _embedded(run, data.Encoded([corpus.train.examples[i] for i in chosen]))
  places = np.array([labels[i] for i in chosen])
  means = np.stack([shown[places == label].mean(axis=0) for label in range(len(corpus.names))])
  return _nearest(_embedded(run, corpus.test), means)


def _asked(config: Config, run: Tuned, corpus: dataset.Corpus, shots: int, seed: int) -> np.ndarray:
  one = run.config.copy_and_resolve_references()
  one.evaluate.shots, one.evaluate.seed = shots, seed
  found = by_words.measure(
    run._replace(config=one), corpus.records['test'], corpus.records['train']
  )
  return np.array([corpus.names.index(str(row['predicted'])) for row in found.rows])


def _embedded(run: Tuned, part: data.Encoded) -> np.ndarray:
  """Normalized embeddings `[N, D]`: the mean of the tokens, or what the model's folder says."""
  try:
    pooling = interop.load_pooling(run.source or '').pooling
  except InputError:
    pooling = 'mean'
  embed = jax.jit(functools.partial(models.embed, run.model, pooling=pooling))
  batches = dataset.eval_batches(run.config, part)
  return dataset.of_real_rows(batches, lambda b: embed(run.params, b['tokens'], b['mask']))


def _nearest(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
  means = means / np.linalg.norm(means, axis=1, keepdims=True)
  return np.asarray(jnp.argmax(jnp.asarray(rows @ means.T), axis=1))
