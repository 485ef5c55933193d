"""Metrics of a whole split, in float64: pure functions of NumPy arrays.

What would be 0 / 0 is 0, but for correlations of what does not vary, which are nan.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

IGNORED = -100  # a tag that is none: of a special token, or of a word's later tokens


def accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
  """The share of rows that are right."""
  return float(np.mean(np.asarray(true) == np.asarray(predicted)))


def f1(true: np.ndarray, predicted: np.ndarray, average: str = 'macro') -> float:
  """`F1 = 2 TP / (2 TP + FP + FN)`, the harmonic mean of precision and recall.

  Args:
    true: labels `[N]`, or of several labels a row bool or 0/1 `[N, C]`.
    predicted: of the same shape.
    average: 'macro' is the mean over the labels, of `[N]` those that are true or predicted
      somewhere; 'micro' counts all labels together, of `[N]` that is the accuracy; 'binary' is that
      of label 1.

  Raises:
    ValueError: an unknown average.
  """
  true, predicted = np.asarray(true), np.asarray(predicted)
  if true.ndim == 1:
    labels = np.union1d(true, predicted)
    if average == 'binary':
      labels = np.ones(1, labels.dtype)
    true, predicted = true[:, None] == labels, predicted[:, None] == labels
  elif average == 'binary':
    raise ValueError(f'f1: binary is for labels [N], not for {list(true.shape)}')
  true, predicted = true.astype(bool), predicted.astype(bool)
  hits = np.sum(true & predicted, axis=0)
  total = true.sum(axis=0) + predicted.sum(axis=0)  # 2 TP + FP + FN
  if average == 'micro':
    return _ratio(2 * hits.sum(), total.sum())
  if average not in ('macro', 'binary'):
    raise ValueError(f'f1: average is {average!r}; known: macro, micro, binary')
  return float(np.mean([_ratio(2 * hit, all) for hit, all in zip(hits, total, strict=True)]))


def matthews(true: np.ndarray, predicted: np.ndarray) -> float:
  """Correlation of true and predicted labels `[N]`, -1 to 1 and 0 for guessing.

  With more than two labels R_K (Gorodkin 2004, Comput. Biol. Chem. 28, 367). 0 where one side has
  one label only.
  """
  true, predicted = np.asarray(true), np.asarray(predicted)
  labels = np.union1d(true, predicted)
  rows = np.array([np.sum(true == label) for label in labels], np.float64)
  taken = np.array([np.sum(predicted == label) for label in labels], np.float64)
  total, hits = float(true.size), float(np.sum(true == predicted))
  spread = (total**2 - float(rows @ rows)) * (total**2 - float(taken @ taken))
  return _ratio(hits * total - float(rows @ taken), math.sqrt(spread))


def pearson(true: np.ndarray, predicted: np.ndarray) -> float:
  """Pearson's correlation of numbers `[N]`; nan where one side is the same in all rows."""
  x, y = (np.asarray(side, np.float64) for side in (true, predicted))
  x, y = x - x.mean(), y - y.mean()
  scale = float(np.linalg.norm(x) * np.linalg.norm(y))
  return float(x @ y) / scale if scale else float('nan')


def spearman(true: np.ndarray, predicted: np.ndarray) -> float:
  """Pearson's correlation of the ranks; equal numbers share the mean of theirs."""
  return pearson(_ranks(true), _ranks(predicted))


def perplexity(nats: np.ndarray, weight: np.ndarray) -> float:
  """`exp(sum of nats / sum of weights)`."""
  return float(np.exp(np.sum(nats, dtype=np.float64) / np.sum(weight, dtype=np.float64)))


def ranks(queries: np.ndarray, documents: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
  """Where each query finds its own document by the product, from 1, int `[N]`.

  Others with the same product stand before it, so that documents which are all the same are not
  found.

  Args:
    queries: embeddings `[N, D]`, normalized for the cosine.
    documents: `[M, D]`.
    own: the place of each query's document, `[N]`; by default document n is that of query n.
  """
  own = np.arange(len(queries)) if own is None else own
  found = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), 1024):  # [1024, M] products at a time
    part = np.asarray(queries[start : start + 1024], np.float64)
    products = part @ np.asarray(documents, np.float64).T
    mine = products[np.arange(len(part)), own[start : start + len(part)]]
    found[start : start + len(part)] = np.sum(products >= mine[:, None], axis=1)
  return found


def is_bio(names: Sequence[str]) -> bool:
  """Whether tags are `O`, `B-...` and `I-...`, which mark entities."""
  return 'O' in names and all(name == 'O' or name[:2] in ('B-', 'I-') for name in names)


def entities(tags: Iterable[str]) -> set[tuple[int, int, str]]:
  """`(start, end, kind)` of every entity in the BIO tags of a text.

  As CoNLL's script and seqeval read them by default: `B-x` begins an entity; `I-x` goes on with one
  of kind x, and begins one where there is none.
  """
  found, start, kind = set(), 0, ''
  for place, tag in enumerate([*tags, 'O']):
    prefix, _, own = tag.partition('-')
    goes_on = prefix == 'I' and own == kind and kind
    if kind and not goes_on:
      found.add((start, place, kind))
      kind = ''
    if prefix in ('B', 'I') and not goes_on:
      start, kind = place, own
  return found


def entity_f1(
  true: Iterable[Iterable[str]], predicted: Iterable[Iterable[str]]
) -> dict[str, float]:
  """`entity_precision`, `entity_recall` and `entity_f1` of whole entities, over all texts (micro).

  An entity is right when its start, end and kind are.
  """
  hits = said = there = 0
  for truth, guess in zip(true, predicted, strict=True):
    a, b = entities(truth), entities(guess)
    hits, there, said = hits + len(a & b), there + len(a), said + len(b)
  return {
    'entity_precision': _ratio(hits, said),
    'entity_recall': _ratio(hits, there),
    'entity_f1': _ratio(2 * hits, said + there),
  }


def _ranks(values: np.ndarray) -> np.ndarray:
  _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else 0.0
