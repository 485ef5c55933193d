"""T5 in Hugging Face's files: the first release, 1.1 and FLAN; whole, or its encoder alone."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.names import Family, Name
from jaxtune.models import EncoderDecoderConfig
from jaxtune.typing import InputError


def _attention(ours: str, theirs: str) -> tuple[Name, ...]:
  return tuple(Name(f'{ours}/{x}', f'{theirs}.{x}.weight', True) for x in 'qkvo')


def _layers(stack: str, last: int) -> tuple[Name, ...]:
  ours, theirs = f'{stack}/{{layer}}', f'{stack}.block.{{layer}}.layer'
  table = f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight'
  return (
    Name(f'{stack}_bias', table),
    Name(f'{ours}/attn_norm/scale', f'{theirs}.0.layer_norm.weight'),
    *_attention(f'{ours}/attn', f'{theirs}.0.SelfAttention'),
    Name(f'{ours}/mlp_norm/scale', f'{theirs}.{last}.layer_norm.weight'),
    Name(f'{ours}/mlp/down', f'{theirs}.{last}.DenseReluDense.wo.weight', True),
    Name(f'{stack}_norm/scale', f'{stack}.final_layer_norm.weight'),
  )


_CROSS = (
  Name('decoder/{layer}/cross_norm/scale', 'decoder.block.{layer}.layer.1.layer_norm.weight'),
  *_attention('decoder/{layer}/cross', 'decoder.block.{layer}.layer.1.EncDecAttention'),
)


def names(config: EncoderDecoderConfig) -> tuple[Name, ...]:
  """The table, with the MLP that the configuration has."""
  up = {'gate': 'wi_0', 'up': 'wi_1'} if config.gated else {'up': 'wi'}
  return (
    Name('embed/tokens', 'shared.weight'),
    Name('embed/tokens', 'encoder.embed_tokens.weight'),
    Name('embed/tokens', 'decoder.embed_tokens.weight'),
    *_layers('encoder', 1),
    *_layers('decoder', 2),
    *_CROSS,
    *(
      Name(
        f'{stack}/{{layer}}/mlp/{ours}',
        f'{stack}.block.{{layer}}.layer.{last}.DenseReluDense.{theirs}.weight',
        True,
      )
      for stack, last in (('encoder', 1), ('decoder', 2))
      for ours, theirs in up.items()
    ),
    Name('head/dense', 'lm_head.weight', True),
  )


def _mlp(raw: dict[str, Any], file: str) -> dict[str, Any]:
  """The kind of the MLP: `feed_forward_proj`, unless its two parts have fields of their own."""
  kind = raw.get('feed_forward_proj') or 'relu'
  words = kind.split('-') if isinstance(kind, str) else []
  if not words or words[2:] or words[1:] and words[0] != 'gated':
    raise InputError(
      f'{file}: feed_forward_proj is {kind!r}, which jaxtune cannot compute (only an activation, '
      "or 'gated-' and one); choose another checkpoint"
    )
  # T5 1.1 says gelu and means its tanh approximation.
  name = 'gelu_new' if kind == 'gated-gelu' else words[-1]
  key = 'dense_act_fn' if raw.get('dense_act_fn') else 'feed_forward_proj'
  return {
    'gated': fields.boolean(raw, file, 'is_gated_act', words[0] == 'gated'),
    'activation': fields.activation({key: raw.get('dense_act_fn') or name}, file, name, key),
  }


def read_config(raw: dict[str, Any], file: str) -> EncoderDecoderConfig:
  """The encoder and decoder that a `config.json` describes; the encoder alone for its own class.

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the model lacks.
  """
  fields.refuse(raw, file, is_decoder=False, tie_encoder_decoder=False)
  layers = fields.integer(raw, file, 'num_layers')
  alone = (raw.get('architectures') or [''])[0] == 'T5EncoderModel'
  buckets = fields.integer(raw, file, 'relative_attention_num_buckets', 32)
  distance = fields.integer(raw, file, 'relative_attention_max_distance', 128)
  if buckets < 4 or buckets % 2 or distance <= buckets // 2:
    raise InputError(
      f'{file}: relative_attention_num_buckets {buckets} and relative_attention_max_distance '
      f'{distance} do not fit (an even number from 4, more than half of it); '
      'take the config that belongs to the weights'
    )
  tied = fields.boolean(raw, file, 'tie_word_embeddings', True)
  pad = fields.integer(raw, file, 'pad_token_id', 0, least=0)
  return EncoderDecoderConfig(
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=fields.integer(raw, file, 'd_model'),
    hidden=fields.integer(raw, file, 'd_ff'),
    layers=layers,
    decoder_layers=0 if alone else fields.integer(raw, file, 'num_decoder_layers', layers),
    heads=fields.integer(raw, file, 'num_heads'),
    head_width=fields.integer(raw, file, 'd_kv'),
    epsilon=fields.real(raw, file, 'layer_norm_epsilon', 1e-6),
    **_mlp(raw, file),
    buckets=buckets,
    distance=distance,
    tied=tied,
    # Before transformers 5 the heads that are tied were those that are scaled.
    scaled=fields.boolean(raw, file, 'scale_decoder_outputs', tied),
    start=fields.integer(raw, file, 'decoder_start_token_id', pad, least=0),
  )


def write_config(config: EncoderDecoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the model fixes."""
  kind = 'gelu' if config.gated and config.activation == 'gelu_new' else config.activation
  written = {
    'vocab_size': config.vocabulary,
    'd_model': config.width,
    'd_ff': config.hidden,
    'd_kv': config.head_width,
    'num_layers': config.layers,
    'num_heads': config.heads,
    'layer_norm_epsilon': config.epsilon,
    'feed_forward_proj': f'gated-{kind}' if config.gated else kind,
    'is_gated_act': config.gated,
    'dense_act_fn': config.activation,
    'relative_attention_num_buckets': config.buckets,
    'relative_attention_max_distance': config.distance,
    'tie_word_embeddings': config.tied,
    'scale_decoder_outputs': config.scaled,
    'decoder_start_token_id': config.start,
    'is_encoder_decoder': config.decoder_layers > 0,
  }
  if not config.decoder_layers:
    return written | {'architectures': ['T5EncoderModel']}
  return written | {'num_decoder_layers': config.decoder_layers}


T5 = Family(
  't5',
  '',
  names,
  read_config,
  write_config,
  classes={'seq2seq': 'T5ForConditionalGeneration', 'features': 'T5Model'},
  left_out=r'EncDecAttention\.relative_attention_bias',  # in the first release, and never used
)
