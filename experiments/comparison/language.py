"""A small language model on real text, its tokenizer included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from experiments import dataset, parameters, sources
from experiments.comparison.tasks import Task
from experiments.keys import Config
from jaxtune import data, losses, tree
from jaxtune.typing import Batch, InputError, Key


def language(config: Config) -> Task:
  """Next-token prediction: a decoder from scratch on texts that are joined and cut into windows.

  Raises:
    InputError: no such file or column, sizes that do not fit, or too little text.
  """
  c = config.language
  recipe = base.get_config()
  recipe.task = 'causal_lm'
  recipe.data.path, recipe.data.text, recipe.data.max_length = c.path, c.text, c.length
  for name in recipe.decoder:
    recipe.decoder[name] = c[name]
  rows, _ = sources.read_file(recipe, sources.resolve(c.path))
  rows, _ = data.deduplicate(rows, 'text')
  splits = data.split(rows, {'held_out': max(1, min(c.rows, len(rows)) // 10)}, seed=0)
  learned = splits['train'][: c.rows]
  tokenizer = dataset.train_tokenizer(recipe, learned)
  model = parameters.fresh_decoder(recipe, tokenizer)

  def windows(rows: list[dict[str, Any]]) -> np.ndarray:
    """`[N, T]`: the texts one after another, each with its end, and what is left over dropped."""
    end = tokenizer.token_to_id(dataset.END_OF_TEXT)
    texts = tokenizer.encode_batch_fast([row['text'] for row in rows])
    stream = [token for text in texts for token in (*text.ids, end)]
    return np.array(stream[: len(stream) // c.length * c.length], np.int32).reshape(-1, c.length)

  train, held_out = windows(learned), windows(splits['held_out'])
  measured = c.held_out // c.batch_size * c.batch_size
  if len(held_out) < measured or not measured or not len(train):
    raise InputError(
      f'language.rows {c.rows} of {c.path} give {len(train):,} windows of {c.length} tokens to '
      f'learn from and {len(held_out):,} held out, of which language.held_out asks for '
      f'{c.held_out} in batches of {c.batch_size}; raise rows or lower the others'
    )

  def draw(train: Any, key: Key) -> Batch:
    rows = jax.random.randint(key, (c.batch_size,), 0, train['tokens'].shape[0])
    return {'tokens': train['tokens'][rows]}

  return Task(
    name='language',
    about=f'A {tree.count(model.shapes()) / 1e6:.2f}M-parameter decoder with a byte-level BPE '
    f'tokenizer of {tokenizer.get_vocab_size():,} tokens, from scratch on {len(learned):,} real '
    f'texts in batches of {c.batch_size} x {c.length} tokens; the loss is measured on '
    f'{measured * (c.length - 1):,} tokens of other texts.',
    init=model.init,
    objective=losses.causal_lm(model),
    draw=draw,
    train={'tokens': jnp.asarray(train)},
    held_out={'tokens': jnp.asarray(held_out[:measured]).reshape(-1, c.batch_size, c.length)},
    unit='nats a token',
  )
