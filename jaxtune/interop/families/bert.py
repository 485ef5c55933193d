"""BERT in Hugging Face's files, and what RoBERTa's share with them."""

import dataclasses
from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families.decoder import dense, norm
from jaxtune.interop.names import Family, Name
from jaxtune.models import EncoderConfig, Head


def body(prefix: str) -> tuple[Name, ...]:
  """The rows of the embeddings, the layers and the pooler."""
  embed, layer = f'{prefix}embeddings.', f'{prefix}encoder.layer.{{layer}}.'
  return (
    Name('embed/tokens', f'{embed}word_embeddings.weight'),
    Name('embed/positions', f'{embed}position_embeddings.weight'),
    Name('embed/types', f'{embed}token_type_embeddings.weight'),
    *norm('embed/norm', f'{embed}LayerNorm'),
    *dense('encoder/{layer}/attn/q', f'{layer}attention.self.query'),
    *dense('encoder/{layer}/attn/k', f'{layer}attention.self.key'),
    *dense('encoder/{layer}/attn/v', f'{layer}attention.self.value'),
    *dense('encoder/{layer}/attn/o', f'{layer}attention.output.dense'),
    *norm('encoder/{layer}/attn_norm', f'{layer}attention.output.LayerNorm'),
    *dense('encoder/{layer}/mlp/up', f'{layer}intermediate.dense'),
    *dense('encoder/{layer}/mlp/down', f'{layer}output.dense'),
    *norm('encoder/{layer}/mlp_norm', f'{layer}output.LayerNorm'),
    *dense('pooler/dense', f'{prefix}pooler.dense'),
  )


def decoded(config: EncoderConfig, prefix: str) -> tuple[Name, ...]:
  """The rows of the matrix and the bias of masked tokens, which transformers ties together."""
  matrix, bias = dense('head/dense', f'{prefix}decoder')
  if not config.tied:
    return matrix, bias
  return matrix, Name('head/dense_bias', f'{prefix}bias'), bias


def names(config: EncoderConfig) -> tuple[Name, ...]:
  """The table, with the head that the configuration has."""
  if config.outputs:
    return *body('bert.'), *dense('head/dense', 'classifier')
  return (
    *body('bert.'),
    *dense('head/hidden', 'cls.predictions.transform.dense'),
    *norm('head/norm', 'cls.predictions.transform.LayerNorm'),
    *decoded(config, 'cls.predictions.'),
  )


def read_fields(raw: dict[str, Any], file: str) -> dict[str, Any]:
  """The configuration of the body, but for its positions.

  Dropout is left at 0: it is a choice of the run (`dataclasses.replace`), not of the weights.

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the encoder lacks.
  """
  fields.refuse(
    raw, file, position_embedding_type='absolute', is_decoder=False, add_cross_attention=False
  )
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  fields.check_width(width, heads, file)
  return {
    'vocabulary': fields.integer(raw, file, 'vocab_size'),
    'width': width,
    'hidden': fields.integer(raw, file, 'intermediate_size'),
    'layers': fields.integer(raw, file, 'num_hidden_layers'),
    'heads': heads,
    'types': fields.integer(raw, file, 'type_vocab_size', 2),
    'epsilon': fields.real(raw, file, 'layer_norm_eps', 1e-12),
    'activation': fields.activation(raw, file, 'gelu'),
    'tied': fields.boolean(raw, file, 'tie_word_embeddings', True),
    'init_scale': fields.real(raw, file, 'initializer_range', 0.02),
  }


def read_config(raw: dict[str, Any], file: str) -> EncoderConfig:
  """The encoder that a `config.json` describes.

  Raises:
    InputError: as `read_fields`.
  """
  config = EncoderConfig(
    **read_fields(raw, file), positions=fields.integer(raw, file, 'max_position_embeddings', 512)
  )
  return dataclasses.replace(config, masked_head=Head(config.activation, norm=True))


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the encoder fixes."""
  return {
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'max_position_embeddings': config.first_position + config.positions,
    'type_vocab_size': config.types,
    'layer_norm_eps': config.epsilon,
    'hidden_act': config.activation,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


def classes(stem: str) -> dict[str, str]:
  """The classes that encoder families have."""
  return {
    'features': f'{stem}Model',
    'masked_lm': f'{stem}ForMaskedLM',
    'classification': f'{stem}ForSequenceClassification',
    'token_classification': f'{stem}ForTokenClassification',
  }


BERT = Family(
  'bert',
  'bert.',
  names,
  read_config,
  write_config,
  classes('Bert'),
  left_out=r'^cls\.',
)
