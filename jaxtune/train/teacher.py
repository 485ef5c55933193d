"""What a teacher says of every example, computed once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import shard
from jaxtune.data.by_length import by_length
from jaxtune.data.encode import Example
from jaxtune.losses.divergence import largest_and_rest
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

_ROWS = 256  # predictions whose logits are held at a time


def teacher_outputs(
  model: ModelSpec,
  params: Params,
  examples: Sequence[Example],
  batch_size: int,
  *,
  top_k: int | None = None,
  temperature: float = 1.0,
  place: Callable[[Any], Any] = lambda batch: batch,
) -> list[Example]:
  """The examples with what the teacher says of them, for `losses.distillation`.

  Of a classifier of texts `teacher_logits` float32 `[C]`. Of a model of tokens, in each place,
  `teacher_indices` int32 `[n, K]`, the most probable first, and `teacher_values` float32
  `[n, K + 1]`: `log softmax(logits / temperature)` of these, and of all others together. Place t of
  a causal language model holds what comes after token t. 8 K + 4 bytes a token.

  Packed rows have room for one text only: set `pack` to False.

  Args:
    model: the teacher; a masked language model, which sees other tokens in every step, is not for
      caching.
    params: its parameters; any weight may be a weight leaf.
    examples: with `tokens`.
    batch_size: examples at a time.
    top_k: K, of a model of tokens; at most the classes but one, which is all of them.
    temperature: of the probabilities that are cut to the most probable; the student gets it too.
    place: puts a batch on the devices.

  Raises:
    InputError: no examples, a model that is not for caching, or a K that is none.
  """
  texts = model.task == 'classification'
  if not texts and model.task not in ('causal_lm', 'token_classification'):
    raise InputError(f'what a model for {model.task} says is not cached; give it as a teacher')
  if texts != (top_k is None) or (top_k is not None and top_k < 1):
    raise InputError(
      f'top_k is {top_k} for {model.task}; set it to at least 1 for a model of tokens, and to None '
      'for a classifier of texts'
    )
  if not temperature > 0:
    raise InputError(f'temperature is {temperature}; it must be above 0')
  if not examples:
    raise InputError('there are no examples to ask a teacher about')

  @jax.jit
  def compute(params: Params, tokens: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    if texts:
      return {'teacher_logits': model.apply(params, tokens, mask).astype(jnp.float32)}
    features = model.features(params, tokens, mask)

    def most_probable(row: jax.Array) -> tuple[jax.Array, jax.Array]:
      logits = model.head(params, row[None]).astype(jnp.float32)
      said = jax.nn.log_softmax(logits / temperature)
      _, indices = jax.lax.top_k(said, min(top_k or 1, said.shape[1] - 1))
      return indices[0], largest_and_rest(said, indices)[0]

    flat = features.reshape(-1, features.shape[-1])
    found = jax.lax.map(most_probable, flat, batch_size=min(_ROWS, len(flat)))
    indices, values = (x.reshape(*tokens.shape, -1) for x in found)
    return {'teacher_indices': indices, 'teacher_values': values}

  made: list[Example] = [dict(example) for example in examples]
  plain = [{'tokens': example['tokens']} for example in examples]
  longest = max(len(example['tokens']) for example in plain)
  for places, batch in by_length(plain, batch_size, limit=longest):
    placed = place({'tokens': batch['tokens'], 'mask': batch['mask']})
    computed = shard.gather(compute(params, **placed))
    found = {name: np.asarray(x) for name, x in computed.items()}
    for row, at in enumerate(places):
      length = len(examples[at]['tokens'])
      for name, values in found.items():
        made[at][name] = values[row] if texts else values[row, :length]
      if not texts:
        made[at]['teacher_temperature'] = np.float32(temperature)
  return made
