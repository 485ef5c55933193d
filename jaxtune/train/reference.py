"""A reference model that runs once for each text, and not in every step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxtune import shard
from jaxtune.data.by_length import by_length
from jaxtune.data.encode import Example
from jaxtune.losses import log_probs
from jaxtune.models import ModelSpec
from jaxtune.typing import Params


def reference_log_probs(
  model: ModelSpec,
  params: Params,
  examples: Sequence[Example],
  batch_size: int,
  *,
  max_length: int,
  chunk: int | None = None,
  place: Callable[[Any], Any] = lambda batch: batch,
) -> list[Example]:
  """The examples with `reference`, the log-probability of what is supervised, in each part.

  `losses.log_probs` under these parameters, float32 in nats, without dropout. A loss on preferences
  then needs the policy alone: no second copy of weights that train, and a third less work in a
  step; once through the data now, which pays from the second epoch on.

  Texts go through the model by length, so that little of it is padding. A longer batch of a run
  pads them further, which changes last bits.

  Args:
    model: a causal language model.
    params: of the reference: those of the run before its first step.
    examples: from `data.encode_preferences` or `data.encode_unpaired`.
    batch_size: texts at a time.
    max_length: tokens of the longest.
    chunk: predictions whose logits are held at a time; None for `ops.automatic_chunk`.
    place: puts a batch on the devices.
  """

  @jax.jit
  def compute(params: Params, batch: Any) -> jax.Array:
    return log_probs(model, params, batch, chunk=chunk)[0]

  texts = [text for example in examples for text in _texts(example)]
  found = np.zeros(len(texts), np.float32)
  for places, batch in by_length(texts, batch_size, limit=max_length):
    found[places] = np.asarray(shard.gather(compute(params, place(batch))))[: len(places)]
  left = iter(found)
  return [_filled(example, left) for example in examples]


def _texts(example: Mapping[str, Any]) -> Iterator[Example]:
  """What has tokens to predict: the example, and its parts in their order."""
  if 'supervised' in example:
    yield {name: example[name] for name in ('tokens', 'supervised')}
  for value in example.values():
    if isinstance(value, Mapping):
      yield from _texts(value)


def _filled(example: Mapping[str, Any], values: Iterator[np.float32]) -> Example:
  own = {'reference': np.asarray(next(values))} if 'supervised' in example else {}
  return {
    **{k: _filled(v, values) if isinstance(v, Mapping) else v for k, v in example.items()},
    **own,
  }
