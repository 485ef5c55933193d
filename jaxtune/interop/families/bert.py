"""BERT in Hugging Face's files."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.names import Family, Name
from jaxtune.models import EncoderConfig
from jaxtune.typing import InputError

_LAYER = 'encoder.layer.{layer}.'


def _dense(ours: str, theirs: str) -> tuple[Name, Name]:
  return Name(ours, f'{theirs}.weight', True), Name(f'{ours}_bias', f'{theirs}.bias')


def _norm(ours: str, theirs: str) -> tuple[Name, Name]:
  return Name(f'{ours}/scale', f'{theirs}.weight'), Name(f'{ours}/bias', f'{theirs}.bias')


NAMES = (
  Name('embed/tokens', 'embeddings.word_embeddings.weight'),
  Name('embed/positions', 'embeddings.position_embeddings.weight'),
  Name('embed/types', 'embeddings.token_type_embeddings.weight'),
  *_norm('embed/norm', 'embeddings.LayerNorm'),
  *_dense('encoder/{layer}/attn/q', _LAYER + 'attention.self.query'),
  *_dense('encoder/{layer}/attn/k', _LAYER + 'attention.self.key'),
  *_dense('encoder/{layer}/attn/v', _LAYER + 'attention.self.value'),
  *_dense('encoder/{layer}/attn/o', _LAYER + 'attention.output.dense'),
  *_norm('encoder/{layer}/attn_norm', _LAYER + 'attention.output.LayerNorm'),
  *_dense('encoder/{layer}/mlp/up', _LAYER + 'intermediate.dense'),
  *_dense('encoder/{layer}/mlp/down', _LAYER + 'output.dense'),
  *_norm('encoder/{layer}/mlp_norm', _LAYER + 'output.LayerNorm'),
  *_dense('pooler/dense', 'pooler.dense'),
  *_dense('head/dense', 'classifier'),
)


def read_config(raw: dict[str, Any], file: str, outputs: int) -> EncoderConfig:
  """The encoder that a `config.json` describes.

  Dropout is left at 0: it is a choice of the run (`dataclasses.replace`), not of the weights.

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the encoder lacks.
  """
  fields.refuse(raw, file, position_embedding_type='absolute', is_decoder=False)
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  if width % heads:
    raise InputError(
      f'{file}: hidden_size {width} is not a multiple of num_attention_heads {heads}; '
      'take the config.json that belongs to the weights'
    )
  return EncoderConfig(
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'intermediate_size'),
    layers=fields.integer(raw, file, 'num_hidden_layers'),
    heads=heads,
    positions=fields.integer(raw, file, 'max_position_embeddings', 512),
    types=fields.integer(raw, file, 'type_vocab_size', 2),
    epsilon=fields.real(raw, file, 'layer_norm_eps', 1e-12),
    activation=fields.activation(raw, file, 'gelu'),
    outputs=outputs,
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
  )


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the encoder fixes."""
  return {
    'architectures': ['BertForSequenceClassification' if config.outputs else 'BertModel'],
    'model_type': 'bert',
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'max_position_embeddings': config.positions,
    'type_vocab_size': config.types,
    'layer_norm_eps': config.epsilon,
    'hidden_act': config.activation,
    'initializer_range': config.init_scale,
  }


BERT = Family('bert', 'bert.', lambda config: NAMES, read_config, write_config)
