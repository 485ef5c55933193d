"""A pretrained body under a fresh head, for labels or for numbers."""

import dataclasses

import jax

from jaxtune.models.decoder import DecoderConfig, decoder
from jaxtune.models.encoder import EncoderConfig, encoder
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Key, Params


def build(config: EncoderConfig | DecoderConfig) -> ModelSpec:
  """The built-in model for a configuration."""
  return encoder(config) if isinstance(config, EncoderConfig) else decoder(config)


def classifier(
  key: Key, model: ModelSpec, params: Params, outputs: int
) -> tuple[ModelSpec, Params]:
  """The model with one row of `outputs` a text in place of its own outputs.

  The head is the one that Hugging Face's `...ForSequenceClassification` has, so adapters and
  weights open there: pooler and matrix on the first token of an encoder, a matrix on the last
  token of a decoder.

  Args:
    key: for the new matrix, normal with the model's own initial scale; the bias is zero.
    model: a built-in encoder or decoder.
    params: its parameters; every leaf but the head is kept as it is.
    outputs: number of classes, or 1 for regression.

  Raises:
    InputError: outputs below one, or a model that is not built in.
  """
  if outputs < 1:
    raise InputError(f'a classifier needs at least one output, not {outputs}')
  if not isinstance(model.config, EncoderConfig | DecoderConfig):
    raise InputError(f'{model.family} is a module of your own: give it its own head')
  model = build(dataclasses.replace(model.config, outputs=outputs))
  # Compiled with two of its outputs, so that no second body is ever made.
  fresh = jax.jit(
    lambda key: {name: leaf for name, leaf in model.init(key).items() if name in ('pooler', 'head')}
  )(key)
  body = {name: leaf for name, leaf in params.items() if name != 'head'}
  if 'pooler' in fresh:
    body.setdefault('pooler', fresh['pooler'])
  return model, {**body, 'head': fresh['head']}
