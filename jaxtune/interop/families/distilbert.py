"""DistilBERT in Hugging Face's files."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import bert
from jaxtune.interop.families.decoder import dense, norm
from jaxtune.interop.names import Family, Name
from jaxtune.models import EncoderConfig, Head

_EMBED = 'distilbert.embeddings.'
_LAYER = 'distilbert.transformer.layer.{layer}.'

BODY = (
  Name('embed/tokens', _EMBED + 'word_embeddings.weight'),
  Name('embed/positions', _EMBED + 'position_embeddings.weight'),
  *norm('embed/norm', _EMBED + 'LayerNorm'),
  *dense('encoder/{layer}/attn/q', _LAYER + 'attention.q_lin'),
  *dense('encoder/{layer}/attn/k', _LAYER + 'attention.k_lin'),
  *dense('encoder/{layer}/attn/v', _LAYER + 'attention.v_lin'),
  *dense('encoder/{layer}/attn/o', _LAYER + 'attention.out_lin'),
  *norm('encoder/{layer}/attn_norm', _LAYER + 'sa_layer_norm'),
  *dense('encoder/{layer}/mlp/up', _LAYER + 'ffn.lin1'),
  *dense('encoder/{layer}/mlp/down', _LAYER + 'ffn.lin2'),
  *norm('encoder/{layer}/mlp_norm', _LAYER + 'output_layer_norm'),
)


def names(config: EncoderConfig) -> tuple[Name, ...]:
  """The table, with the head that the configuration has."""
  if config.outputs:
    return *BODY, *dense('head/hidden', 'pre_classifier'), *dense('head/dense', 'classifier')
  return (
    *BODY,
    *dense('head/hidden', 'vocab_transform'),
    *norm('head/norm', 'vocab_layer_norm'),
    *dense('head/dense', 'vocab_projector'),
  )


def read_config(raw: dict[str, Any], file: str) -> EncoderConfig:
  """The encoder that a `config.json` describes.

  `sinusoidal_pos_embds` says only how the positions were first filled.

  Raises:
    InputError: a field is missing or malformed.
  """
  width = fields.integer(raw, file, 'dim')
  heads = fields.integer(raw, file, 'n_heads')
  fields.check_width(width, heads, file)
  activation = fields.activation(raw, file, 'gelu', 'activation')
  return EncoderConfig(
    model_type='distilbert',
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'hidden_dim'),
    layers=fields.integer(raw, file, 'n_layers'),
    heads=heads,
    positions=fields.integer(raw, file, 'max_position_embeddings', 512),
    types=0,
    activation=activation,
    tied=fields.boolean(raw, file, 'tie_word_embeddings', True),
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
    pooler=False,
    text_head=Head('relu'),
    masked_head=Head(activation, norm=True),
  )


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the encoder fixes; the epsilon is the family's own."""
  return {
    'vocab_size': config.vocabulary,
    'dim': config.width,
    'hidden_dim': config.hidden,
    'n_layers': config.layers,
    'n_heads': config.heads,
    'max_position_embeddings': config.positions,
    'activation': config.activation,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }


DISTILBERT = Family(
  'distilbert',
  'distilbert.',
  names,
  read_config,
  write_config,
  bert.classes('DistilBert'),
  left_out=r'^vocab_\w+\.',
)
