"""A pretrained encoder under a head for masked tokens."""

import dataclasses

import jax

from jaxtune.models.encoder import EncoderConfig, encoder
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Key, Params


def masked_lm(key: Key, model: ModelSpec, params: Params) -> tuple[ModelSpec, Params]:
  """The encoder with logits of the masked tokens in place of its own outputs.

  The head is that of Hugging Face's `...ForMaskedLM` of the family, its matrix the embedding,
  transposed, where the family ties them. A model that has one keeps it. So an encoder that was made
  for other ends, as sentence embeddings, goes on with masked language modelling (Gururangan et al.
  2020, arXiv:2004.10964); afterwards its body goes under any other head.

  Args:
    key: for the new matrices, normal with the model's own initial scale; biases are zero.
    model: a built-in encoder.
    params: its parameters; of the body every leaf is kept as it is, without a pooler.

  Raises:
    InputError: another model.
  """
  if not isinstance(model.config, EncoderConfig):
    raise InputError(
      f'masked_lm: {model.family} has no masked tokens; take an encoder, as BERT, or the task '
      'causal_lm'
    )
  if model.task == 'masked_lm':
    return model, params
  config = dataclasses.replace(model.config, outputs=0, each_token=False, masked_lm=True)
  model = dataclasses.replace(encoder(config), source=model.source)
  # Compiled with one of its outputs, so that no second body is ever made.
  head = jax.jit(lambda key: model.init(key)['head'])(key)
  body = {name: leaf for name, leaf in params.items() if name not in ('pooler', 'head')}
  return model, {**body, 'head': head}
