"""RoBERTa in Hugging Face's files: BERT's layers, other positions and heads."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import bert
from jaxtune.interop.families.decoder import dense, norm
from jaxtune.interop.names import Family, Name
from jaxtune.models import EncoderConfig, Head
from jaxtune.typing import InputError


def names(config: EncoderConfig) -> tuple[Name, ...]:
  """The table, with the head that the configuration has."""
  rows = bert.body('roberta.')
  if config.outputs and config.each_token:
    return *rows, *dense('head/dense', 'classifier')
  if config.outputs:
    head = dense('head/hidden', 'classifier.dense') + dense('head/dense', 'classifier.out_proj')
    return *rows, *head
  return (
    *rows,
    *dense('head/hidden', 'lm_head.dense'),
    *norm('head/norm', 'lm_head.layer_norm'),
    *bert.decoded(config, 'lm_head.'),
  )


def read_config(raw: dict[str, Any], file: str) -> EncoderConfig:
  """The encoder that a `config.json` describes.

  A text's first token has the position after that of padding, whose number is the token's.

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the encoder lacks.
  """
  rows = fields.integer(raw, file, 'max_position_embeddings', 512)
  first = fields.integer(raw, file, 'pad_token_id', 1, least=0) + 1
  if rows <= first:
    raise InputError(
      f'{file}: max_position_embeddings is {rows}, but the positions begin at {first}, behind '
      'pad_token_id; take the config that belongs to the weights'
    )
  return EncoderConfig(
    model_type='roberta',
    **bert.read_fields(raw, file),
    positions=rows - first,
    first_position=first,
    text_head=Head('tanh'),
  )


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the encoder fixes."""
  return bert.write_config(config) | {'pad_token_id': config.first_position - 1}


ROBERTA = Family(
  'roberta',
  'roberta.',
  names,
  read_config,
  write_config,
  bert.classes('Roberta'),
  left_out=r'^lm_head\.',
)
