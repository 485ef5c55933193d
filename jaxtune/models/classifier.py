"""A pretrained body under a fresh head, for labels or for numbers."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from jaxtune.models.block import BlockConfig
from jaxtune.models.decoder import DecoderConfig, decoder
from jaxtune.models.encoder import EncoderConfig, encoder
from jaxtune.models.encoder_decoder import EncoderDecoderConfig, encoder_decoder
from jaxtune.models.spec import ModelSpec
from jaxtune.models.vision import VisionConfig, vision
from jaxtune.typing import InputError, Key, Params


def build(config: BlockConfig) -> ModelSpec:
  """The built-in model for a configuration."""
  if isinstance(config, EncoderConfig):
    return encoder(config)
  if isinstance(config, EncoderDecoderConfig):
    return encoder_decoder(config)
  if isinstance(config, VisionConfig):
    return vision(config)
  assert isinstance(config, DecoderConfig)
  return decoder(config)


@functools.lru_cache(maxsize=8)
def _fresh(config: BlockConfig) -> Callable[[Key], Params]:
  """The program that makes what is new; runs of one model in one process trace it once.

  Compiled with two of the outputs of `init`, so that no second body is ever made.
  """
  init, new = build(config).init, ('pooler', 'head')
  return jax.jit(lambda key: {name: leaf for name, leaf in init(key).items() if name in new})


def classifier(
  key: Key, model: ModelSpec, params: Params, outputs: int, each_token: bool = False
) -> tuple[ModelSpec, Params]:
  """The model with one row of `outputs` a text, or a token, in place of its own outputs.

  The head is the one that Hugging Face's `...ForSequenceClassification` (or
  `...ForTokenClassification`) of the family has, so adapters and weights open there: the pooler or
  a hidden layer and a matrix on the first token of an encoder, a matrix on the last token of a
  decoder or on the class token of an image model.

  Args:
    key: for the new matrices, normal with the model's own initial scale; biases are zero.
    model: a built-in encoder, decoder or image model.
    params: its parameters; of the body every leaf is kept as it is, but for a pooler or projection
      that the family's classifier does not go through.
    outputs: number of classes, or 1 for regression.
    each_token: whether every token is labelled.

  Raises:
    InputError: outputs below one, or a model that is not built in or has no classifier.
  """
  if outputs < 1:
    raise InputError(f'a classifier needs at least one output, not {outputs}')
  if not isinstance(model.config, BlockConfig):
    raise InputError(f'{model.family} is a module of your own: give it its own head')
  config = dataclasses.replace(model.config, outputs=outputs, each_token=each_token)
  model = dataclasses.replace(build(config), source=model.source)
  fresh = _fresh(config)(key)
  own = ('pooler', 'projection', 'head')
  body = {name: leaf for name, leaf in params.items() if name not in own}
  if 'pooler' in fresh:
    body['pooler'] = params.get('pooler', fresh['pooler'])
  return model, {**body, 'head': fresh['head']}
