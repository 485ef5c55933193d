"""Writes tests/losses/golden/embeddings.npz: losses on embeddings as in sentence-transformers.

python -m scripts.golden_embeddings

Needs the extra `peers`. Values and gradients by the embeddings, which are given.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'losses' / 'golden' / 'embeddings.npz'
ROWS, WIDTH = 5, 12
PARTS = ('anchor', 'positive', 'negative')

# name: (objective, its options, parts)
CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
  'info_nce': ('info_nce', {}, PARTS[:2]),
  'info_nce_negative': ('info_nce', {'temperature': 0.1}, PARTS),
  'info_nce_symmetric': ('info_nce', {'symmetric': True}, PARTS),
  'info_nce_product': ('info_nce', {'normalize': False, 'temperature': 2.0}, PARTS),
  'triplet_euclidean': (
    'triplet', {'distance': 'euclidean', 'margin': 1.0, 'normalize': False}, PARTS,
  ),
  'triplet_cosine': ('triplet', {'distance': 'cosine', 'margin': 0.5}, PARTS),
  'cosine_similarity': ('cosine_similarity', {}, PARTS[:2]),
  'cosent': ('cosent', {'temperature': 0.1}, PARTS[:2]),
  'matryoshka_info_nce': (
    'info_nce', {'dimensions': (12, 6, 3), 'dimension_weights': (1.0, 0.5, 0.25)}, PARTS,
  ),
  'matryoshka_cosent': ('cosent', {'dimensions': (12, 4)}, PARTS[:2]),
}  # fmt: skip


def inputs() -> dict[str, np.ndarray]:
  """Embeddings of the parts, and a label a row, two of them equal."""
  rng = np.random.default_rng(0)
  found = {part: np.float32(rng.normal(size=(ROWS, WIDTH))) for part in PARTS}
  return {**found, 'label': np.array([0.1, 0.8, 0.8, -0.2, 0.5], np.float32)}


def peer_loss(name: str, found: dict[str, np.ndarray]) -> tuple[float, list[np.ndarray]]:
  """The mean loss of a case, and its gradients by the embeddings of each part."""
  import torch
  from sentence_transformers.sentence_transformer import losses

  objective, options, parts = CASES[name]
  given = [torch.tensor(found[part], requires_grad=True) for part in parts]
  model = given_embeddings()
  scale = 1 / options.get('temperature', 0.05)
  makers: dict[str, Callable[[], Any]] = {
    'info_nce': lambda: losses.MultipleNegativesRankingLoss(
      model, scale, **_similarity(options), **_directions(options)
    ),
    'triplet': lambda: losses.TripletLoss(
      model,
      getattr(losses.TripletDistanceMetric, options['distance'].upper()),
      options['margin'],
    ),
    'cosine_similarity': lambda: losses.CosineSimilarityLoss(model),
    'cosent': lambda: losses.CoSENTLoss(model, scale),
  }
  loss = makers[objective]()
  if 'dimensions' in options:
    loss = losses.MatryoshkaLoss(
      model, loss, options['dimensions'], options.get('dimension_weights')
    )
  features = [{'sentence_embedding': x} for x in given]
  value = loss(features, torch.tensor(found['label']))
  value.backward()
  return float(value.detach()), [x.grad.numpy() for x in given]


def given_embeddings() -> Any:
  """A model whose features are embeddings already."""
  import torch

  class Model(torch.nn.Module):
    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
      return dict(features)

    def get_embedding_dimension(self) -> int:
      return WIDTH

  return Model()


def _similarity(options: dict[str, Any]) -> dict[str, Any]:
  from sentence_transformers import util

  return {} if options.get('normalize', True) else {'similarity_fct': util.dot_score}


def _directions(options: dict[str, Any]) -> dict[str, Any]:
  if not options.get('symmetric'):
    return {}
  return {'directions': ('query_to_doc', 'doc_to_query'), 'partition_mode': 'per_direction'}


def main() -> None:
  found = inputs()
  saved = dict(found)
  for name, (_, _, parts) in CASES.items():
    value, gradients = peer_loss(name, found)
    saved[f'{name}/loss'] = np.float32(value)
    saved |= {f'{name}/{part}': x for part, x in zip(parts, gradients, strict=True)}
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **saved)


if __name__ == '__main__':
  main()
