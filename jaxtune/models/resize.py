"""Rows for new tokens."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import tree
from jaxtune.models.classifier import build
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Key, Params, is_weight


def resize(
  key: Key, model: ModelSpec, params: Params, vocabulary: int, *, noise: float = 0.0
) -> tuple[ModelSpec, Params]:
  """The model with an embedding of `vocabulary` rows; the new ones are the mean of the old.

  So are the columns of a head that is not the embedding transposed, and its biases. With the mean a
  new token takes at most 1/V of the probability and leaves the others' as they were; a random row
  may outshout all of them (Hewitt 2021, "Initializing new word embeddings for pretrained language
  models"). To train the new rows alone, beside any method:
  `adapt.trainable_tokens(key, params, tokens=range(old, vocabulary))`.

  An adapter trained on a resized model belongs to it: before it is loaded again call `resize` with
  the same size, and in PEFT `base.resize_token_embeddings(size)`, whose rows are random until the
  adapter puts its own there. Or write the whole model with `interop.save_hf`.

  Args:
    key: for the noise.
    model: a built-in model of tokens.
    params: its parameters, whose embedding and head are plain arrays: adapt it afterwards.
    vocabulary: rows from now on, as many as there are or more.
    noise: standard deviation of the new rows about the mean, in that of the old rows, each of the D
      numbers by itself. 0 makes the new rows equal; what they are trained on tells them apart.

  Raises:
    InputError: fewer rows than the model has, a model without tokens, or an adapter on them.
  """
  rows = getattr(model.config, 'vocabulary', None)
  if rows is None:
    raise InputError(f'resize: {model.family} has no vocabulary; only models of tokens have one')
  if vocabulary < rows:
    raise InputError(
      f'resize: vocabulary is {vocabulary}, but the model has {rows} rows and none can be dropped; '
      f'give {rows} or more'
    )
  if not 0 <= noise < float('inf'):
    raise InputError(f'resize: noise is {noise}; give a number from 0')
  words = {'embed/tokens': 0}
  if not model.config.outputs:  # else the head is a classifier's
    words |= {'head/dense': -1, 'head/dense_bias': -1}

  def grown(path: str, leaf: Any) -> Any:
    if path not in words or vocabulary == rows:
      return leaf
    if is_weight(leaf):
      raise InputError(
        f'resize: {path!r} is a {type(leaf).__name__}; resize the model before it is adapted'
      )
    own = jax.random.fold_in(key, list(words).index(path))
    return _grown(own, leaf, words[path], vocabulary, noise)

  config = dataclasses.replace(model.config, vocabulary=vocabulary)
  larger = dataclasses.replace(build(config), source=model.source)
  return larger, tree.map_weights(grown, params)


def _grown(key: Key, leaf: jax.Array, axis: int, size: int, noise: float) -> jax.Array:
  wide = leaf.astype(jnp.float32)
  new = jnp.mean(wide, axis=axis, keepdims=True)
  shape = list(leaf.shape)
  shape[axis] = size - leaf.shape[axis]
  new = jnp.broadcast_to(new, shape)
  if noise:
    spread = jnp.std(wide, axis=axis, keepdims=True)
    new = new + noise * spread * jax.random.normal(key, shape)
  return jnp.concatenate([leaf, new.astype(leaf.dtype)], axis=axis)
