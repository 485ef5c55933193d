"""What a run can learn: the records that a task takes, its head, its objectives, its score."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict as Config

from jaxtune import data, models
from jaxtune.data.column import numbers
from jaxtune.models import ModelSpec
from jaxtune.typing import Params

Record = dict[str, Any]
Names = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Task:
  """A kind of learning.

  Attributes:
    kinds: of records that it learns from, as `data.normalize` names them. The columns of a task
      with one kind say nothing about the kind.
    objectives: names in `losses.OBJECTIVES`, the default first.
    encode: canonical records to examples.
    base: what the model has to be, as `ModelSpec.task`; empty for any.
    names: the classes in records, in the order of their numbers.
    check: refuses labels.
    outputs: of a fresh head, from the number of classes; None for the outputs that the model has.
    head: puts it on the body.
    score: of an evaluation, what chooses the best step, greater is better; empty for minus the
      loss.
    counted: what a row of its examples is called.
  """

  kinds: tuple[str, ...]
  objectives: tuple[str, ...]
  encode: Callable[[Config, data.Tokenizer, Sequence[Record], Names], data.Encoded]
  base: str = ''
  names: Callable[[Sequence[Record]], Names] | None = None
  check: Callable[[Sequence[Record]], Any] | None = None
  outputs: Callable[[int], int] | None = None
  head: Callable[[jax.Array, ModelSpec, Params, int], tuple[ModelSpec, Params]] = models.classifier
  score: str = ''
  counted: str = 'rows'


def _classes(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  length = config.data.max_length
  return data.encode_classification(rows, tok.encoder, names=names, max_length=length)


def _numbers(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_regression(rows, tok.encoder, max_length=config.data.max_length)


def _several(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  length = config.data.max_length
  return data.encode_multi_label(rows, tok.encoder, names=names, max_length=length)


def _tags(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_tags(rows, tok.encoder, names=names, max_length=config.data.max_length)


def _masked(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_masked(rows, tok.encoder, max_length=config.data.max_length)


def _prompts(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_prompts(tok, rows, config.data.max_length)


def _language(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.render_many(tok, rows, config.data.supervise, config.data.max_length)


def _pairs(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_pairs(rows, tok.encoder, config.data.max_length)


def _preferences(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_preferences(tok, rows, config.data.max_length)


def _unpaired(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  mismatched = config.objective.name != 'bco'
  return data.encode_unpaired(tok, rows, config.data.max_length, mismatched)


def _rewards(config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: Names) -> Any:
  return data.encode_rewards(tok, rows, config.data.max_length)


def _label_names(rows: Sequence[Record]) -> Names:
  return data.label_names(rows, 'label')


def _class_names(rows: Sequence[Record]) -> Names:
  return data.class_names(rows, 'label')


def _each_token(
  key: jax.Array, model: ModelSpec, params: Params, outputs: int
) -> tuple[ModelSpec, Params]:
  return models.classifier(key, model, params, outputs, each_token=True)


def _masked_head(
  key: jax.Array, model: ModelSpec, params: Params, outputs: int
) -> tuple[ModelSpec, Params]:
  return models.masked_lm(key, model, params)


TASKS = {
  'classification': Task(
    kinds=('labelled',),
    objectives=('classification', 'distillation'),
    encode=_classes,
    names=_label_names,
    check=_label_names,
    outputs=lambda classes: classes,
    score='accuracy',
  ),
  'multi_label': Task(
    kinds=('labelled',),
    objectives=('multi_label',),
    encode=_several,
    names=_class_names,
    check=_class_names,
    outputs=lambda classes: classes,
  ),
  'token_classification': Task(
    kinds=('tags',),
    objectives=('token_classification', 'distillation'),
    encode=_tags,
    names=data.tag_names,
    check=data.tag_names,
    outputs=lambda classes: classes,
    head=_each_token,
    score='accuracy',
    counted='texts',
  ),
  'regression': Task(
    kinds=('labelled',),
    objectives=('mean_squared_error', 'huber'),
    encode=_numbers,
    check=functools.partial(numbers, name='label'),
    outputs=lambda classes: 1,
  ),
  'causal_lm': Task(
    kinds=('text', 'completion', 'messages'),
    objectives=('causal_lm', 'distillation'),
    encode=_language,
    base='causal_lm',
    counted='sequences',
  ),
  'masked_lm': Task(
    kinds=('text',),
    objectives=('masked_lm', 'distillation'),
    encode=_masked,
    outputs=lambda classes: 0,
    head=_masked_head,
    counted='sequences',
  ),
  'embedding': Task(
    kinds=('pair', 'triplet', 'scored_pair', 'text'),  # of a text its halves
    objectives=('info_nce', 'triplet', 'cosine_similarity', 'cosent'),
    encode=_pairs,
    base='features',
  ),
  'preference': Task(
    kinds=('preference',),
    objectives=('dpo', 'simpo', 'cpo', 'orpo'),
    encode=_preferences,
    base='causal_lm',
    counted='pairs',
  ),
  'unpaired_preference': Task(
    kinds=('unpaired',), objectives=('kto', 'bco'), encode=_unpaired, base='causal_lm'
  ),
  'reward': Task(
    kinds=('preference',),
    objectives=('reward',),
    encode=_rewards,
    outputs=lambda classes: 1,
    score='accuracy',
    counted='pairs',
  ),
  'reinforcement': Task(
    kinds=('prompt',),
    objectives=('grpo', 'rloo'),
    encode=_prompts,
    base='causal_lm',
    score='reward',
    counted='prompts',
  ),
}
