"""The objectives that the contract runs over: of which model, on which batch.

A new objective is one entry of `ROWS`: its model's name, its batch, its options.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import adapt, losses, models
from jaxtune.typing import Params
from tests.contracts.methods import SIZES

B, T = 8, 6  # rows that eight devices and four micro-batches divide


def _decoder(**fields: Any) -> Callable[[], Any]:
  return lambda: models.build(models.DecoderConfig(**SIZES, kv_heads=1, tied=True, **fields))


def _encoder(**fields: Any) -> Callable[[], Any]:
  return lambda: models.build(models.EncoderConfig(**SIZES, positions=16, **fields))


# The kind that the contract of methods has for each, and the model itself.
MODELS: dict[str, tuple[str, Callable[[], Any]]] = {
  'language': ('decoder', _decoder()),
  'rewards': ('decoder', _decoder(outputs=1)),
  'classes': ('encoder', _encoder(outputs=3)),
  'number': ('encoder', _encoder(outputs=1)),
  'tags': ('encoder', _encoder(outputs=3, each_token=True)),
  'masked': ('encoder', _encoder(masked_lm=True)),
  'embeddings': ('encoder', _encoder()),
}

RNG = np.random.default_rng(0)


def tiny(name: str) -> models.ModelSpec:
  """A model of the same task that compiles in no time: rows of a table under one matrix."""
  real = model_of(name)
  config = types.SimpleNamespace(vocabulary=SIZES['vocabulary'], outputs=real.config.outputs)

  def head(params: Params, features: jax.Array, mask: Any = None) -> jax.Array:
    if real.task == 'classification':
      features = (features * mask[..., None]).sum(axis=1)
    return features @ params['head']['dense']

  def features(params: Params, tokens: jax.Array, mask: Any = None, **_: Any) -> jax.Array:
    return params['embed']['tokens'][tokens]

  return models.ModelSpec('tiny', config, real.task, init=None, features=features, head=head)


def tiny_params(name: str) -> Params:
  """Parameters of `tiny` under full fine-tuning, with what the objective needs beside them."""
  rng = np.random.default_rng(1)
  outputs = model_of(name).config.outputs or SIZES['vocabulary']
  shapes = {'embed': {'tokens': (SIZES['vocabulary'], 8)}, 'head': {'dense': (8, outputs)}}
  params = {k: {n: np.float32(rng.normal(0, 0.5, s)) for n, s in v.items()}
            for k, v in shapes.items()}  # fmt: skip
  return ROWS[name].prepare(adapt.full(jax.random.key(0), params))


def texts(**more: Any) -> dict[str, Any]:
  """Rows of three to T tokens, with padding."""
  mask = np.arange(T) < RNG.integers(3, T + 1, (B, 1))
  tokens = np.where(mask, RNG.integers(1, SIZES['vocabulary'], (B, T)), 0).astype(np.int32)
  return {'tokens': tokens, 'mask': mask, **more}


def answers(**more: Any) -> dict[str, Any]:
  """Rows whose tokens are supervised but for the first two."""
  rows = texts()
  return {**rows, 'supervised': rows['mask'] & (np.arange(T) >= 2), **more}


def normal(*shape: int) -> np.ndarray:
  return np.float32(RNG.normal(size=shape))


def pairs() -> dict[str, Any]:
  return {'chosen': answers(), 'rejected': answers()}


CLASS = RNG.integers(0, 3, B).astype(np.int32)
TAGS = RNG.integers(0, 3, (B, T)).astype(np.int32)
GOOD = np.array([True, False, True, False, False, True, False, True])
REFERENCE = {'reference': adapt.policy_and_reference}


@dataclasses.dataclass(frozen=True)
class Row:
  """An objective under the contract.

  Attributes:
    model: a name in `MODELS`.
    batch: B rows, without `weight`.
    options: of the objective.
    prepare: what is done to the parameters that a method returned: a start or a teacher beside
      them.
    within: whether a row's loss depends on the other rows, so that micro-batches are apart.
    make: the objective itself, where it is none by name: `(model) -> Objective`.
  """

  model: str
  batch: Mapping[str, Any]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prepare: Callable[[Params], Params] = lambda params: params
  within: bool = False
  make: Callable[[Any], losses.Objective] | None = None


def _taught(params: Params) -> Params:
  teacher = jax.tree.map(lambda x: jnp.flip(x, -1), dict(adapt.merge(params)))
  return adapt.with_teacher(params, teacher)


def _penalized(model: Any) -> losses.Objective:
  return losses.penalized(losses.classification(model), adapt.l2_sp(0.1))


def _near(model: Any) -> losses.Objective:
  return losses.kl_to_reference(losses.causal_lm(model), model, adapt.policy_and_reference, 0.5, 7)


ROWS: dict[str, Row] = {
  'causal_lm': Row('language', answers(), {'chunk': 7}),
  'masked_lm': Row('masked', texts(), {'mask_token': 3, 'probability': 0.5}),
  'classification': Row('classes', texts(label=CLASS)),
  'multi_label': Row('classes', texts(label=np.float32(RNG.random((B, 3)) < 0.5))),
  'token_classification': Row('tags', texts(tags=TAGS)),
  'mean_squared_error': Row('number', texts(label=normal(B))),
  'huber': Row('number', texts(label=normal(B))),
  'dpo': Row('language', pairs(), {**REFERENCE, 'chunk': 7}, adapt.with_start),
  'simpo': Row('language', pairs()),
  'cpo': Row('language', pairs()),
  'orpo': Row('language', pairs()),
  'kto': Row('language', answers(label=GOOD, mismatched=answers()), REFERENCE, adapt.with_start,
             within=True),
  'bco': Row('language', answers(label=GOOD), REFERENCE, adapt.with_start, within=True),
  'reward': Row('rewards', {'chosen': texts(), 'rejected': texts(), 'margin': np.abs(normal(B))}),
  'grpo': Row('language', answers(advantages=normal(B)), {**REFERENCE, 'beta': 0.1},
              adapt.with_start),
  'rloo': Row('language', answers(advantages=normal(B), old=0.1 * normal(B, T) - 3)),
  'info_nce': Row('embeddings', {'anchor': texts(), 'positive': texts()}, within=True),
  'triplet': Row('embeddings', {k: texts() for k in ('anchor', 'positive', 'negative')},
                 {'margin': 2.0}),
  'cosine_similarity': Row('embeddings', {'anchor': texts(), 'positive': texts(),
                                          'label': normal(B)}),
  'cosent': Row('embeddings', {'anchor': texts(), 'positive': texts(), 'label': normal(B)},
                within=True),
  'distillation': Row('language', answers(), {'teacher': adapt.student_and_teacher, 'chunk': 7},
                      _taught),
  'penalized': Row('classes', texts(label=CLASS), prepare=adapt.with_start, make=_penalized),
  'kl_to_reference': Row('language', answers(), prepare=adapt.with_start, make=_near),
}  # fmt: skip
WRAPPERS = ('penalized', 'kl_to_reference')  # objectives that are made of others


@functools.cache
def _model(name: str) -> models.ModelSpec:
  return MODELS[name][1]()


def model_of(name: str) -> models.ModelSpec:
  return _model(ROWS[name].model)


def objective_of(name: str, model: Any) -> losses.Objective:
  row = ROWS[name]
  return row.make(model) if row.make else losses.create(name, model, **row.options)


def batch_of(name: str) -> dict[str, Any]:
  """The row's batch with weights."""
  return {**ROWS[name].batch, 'weight': np.float32([1, 2, 0.5, 1, 1, 0.25, 1, 3])}


def with_noise(batch: Mapping[str, Any]) -> dict[str, Any]:
  """With other tokens, and tags, in the padding."""
  found = {k: with_noise(v) if isinstance(v, Mapping) else v for k, v in batch.items()}
  for key in ('tokens', 'tags'):
    if key in found:
      found[key] = np.where(found['mask'], found[key], 1)
  return found


def only(batch: Mapping[str, Any], rows: slice, copy: bool = False) -> dict[str, Any]:
  """The batch with weight for these rows alone; with `copy` the others are copies of the first."""
  there = np.zeros(B, bool)
  there[rows] = True

  def one(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
      return {k: one(k, v) for k, v in value.items()}
    wide = there.reshape(-1, *[1] * (value.ndim - 1))
    if key in ('weight', 'supervised'):
      return np.where(wide, value, np.zeros_like(value))
    return np.where(wide, value, value[rows][:1]) if copy else value

  return {key: one(key, value) for key, value in batch.items()}
