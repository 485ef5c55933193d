"""ModernBERT in Hugging Face's files (Warner et al. 2024, arXiv:2412.13663)."""

from typing import Any

from jaxtune.interop import fields
from jaxtune.interop.families import bert, decoder
from jaxtune.interop.families.decoder import dense, fused, norm
from jaxtune.interop.names import Family, Name
from jaxtune.interop.rope_fields import read_ropes, write_ropes
from jaxtune.models import EncoderConfig, Head
from jaxtune.typing import InputError

_OURS, _LAYER = 'encoder/{layer}/', 'model.layers.{layer}.'
POOLINGS = {'cls': 'first', 'mean': 'mean'}


def names(config: EncoderConfig) -> tuple[Name, ...]:
  """The table, with the head that the configuration has."""
  return (
    Name('embed/tokens', 'model.embeddings.tok_embeddings.weight'),
    *norm('embed/norm', 'model.embeddings.norm'),
    *norm(_OURS + 'attn_norm', _LAYER + 'attn_norm'),
    *fused(_LAYER + 'attn.Wqkv', {f'{_OURS}attn/{name}': config.width for name in 'qkv'}),
    *dense(_OURS + 'attn/o', _LAYER + 'attn.Wo'),
    *norm(_OURS + 'mlp_norm', _LAYER + 'mlp_norm'),
    *fused(_LAYER + 'mlp.Wi', {f'{_OURS}mlp/{name}': config.hidden for name in ('gate', 'up')}),
    *dense(_OURS + 'mlp/down', _LAYER + 'mlp.Wo'),
    *norm('norm', 'model.final_norm'),
    *dense('head/hidden', 'head.dense'),
    *norm('head/norm', 'head.norm'),
    *dense('head/dense', 'classifier' if config.outputs else 'decoder'),
  )


def read_config(raw: dict[str, Any], file: str) -> EncoderConfig:
  """The encoder that a `config.json` describes, as transformers 4 or 5 writes it.

  Half of `local_attention` is on either side of a token.

  Raises:
    InputError: a field is missing, malformed, or asks for arithmetic that the encoder lacks.
  """
  fields.refuse(raw, file, rope_scaling=None)
  width = fields.integer(raw, file, 'hidden_size')
  heads = fields.integer(raw, file, 'num_attention_heads')
  fields.check_width(width, heads, file)
  layers = fields.integer(raw, file, 'num_hidden_layers')
  positions = fields.integer(raw, file, 'max_position_embeddings', 8192)
  base = fields.real(raw, file, 'global_rope_theta', 160000.0)
  rope, local_rope = read_ropes(
    raw,
    file,
    width // heads,
    positions,
    base=base,
    local_base=base if 'local_rope_theta' in raw else 10000.0,  # null is for the same
    base_key='global_rope_theta',
    local_key='local_rope_theta',
  )
  if rope.width or local_rope.width:
    raise InputError(
      f'{file}: rope_parameters has a partial_rotary_factor, which ModernBERT does not have; '
      'take the config that belongs to the weights'
    )
  period = fields.integer(raw, file, 'global_attn_every_n_layers', 3)
  window = fields.integer(raw, file, 'local_attention', 128, least=2) // 2
  pooling = raw.get('classifier_pooling') or 'cls'
  if pooling not in POOLINGS:
    raise InputError(f'{file}: classifier_pooling is {pooling!r}; known: {", ".join(POOLINGS)}')
  head = Head(
    fields.activation(raw, file, 'gelu', 'classifier_activation'),
    bias=fields.boolean(raw, file, 'classifier_bias', False),
    norm=True,
  )
  biased = fields.boolean(raw, file, 'attention_bias', False)
  return EncoderConfig(
    model_type='modernbert',
    vocabulary=fields.integer(raw, file, 'vocab_size'),
    width=width,
    hidden=fields.integer(raw, file, 'intermediate_size'),
    layers=layers,
    heads=heads,
    epsilon=fields.real(raw, file, 'norm_eps', 1e-5),
    norm_bias=fields.boolean(raw, file, 'norm_bias', False),
    order='pre',
    first_norm=False,
    activation=fields.activation(raw, file, 'gelu', 'hidden_activation'),
    gated=True,
    qkv_bias=biased,
    o_bias=biased,
    mlp_bias=fields.boolean(raw, file, 'mlp_bias', False),
    rope=rope,
    local_rope=local_rope,
    **decoder.read_window(raw, file, layers, window, [i % period > 0 for i in range(layers)]),
    positions=positions,
    types=0,
    learned_positions=False,
    tied=fields.boolean(raw, file, 'tie_word_embeddings', True),
    init_scale=fields.real(raw, file, 'initializer_range', 0.02),
    pooler=False,
    pooling=POOLINGS[pooling],
    text_head=head,
    token_head=head,
    masked_head=head._replace(output_bias=fields.boolean(raw, file, 'decoder_bias', True)),
  )


def write_config(config: EncoderConfig) -> dict[str, Any]:
  """The fields of `config.json` that the encoder fixes."""
  assert config.rope is not None and config.local_rope is not None
  raw = {
    'vocab_size': config.vocabulary,
    'hidden_size': config.width,
    'intermediate_size': config.hidden,
    'num_hidden_layers': config.layers,
    'num_attention_heads': config.heads,
    'max_position_embeddings': config.positions,
    'norm_eps': config.epsilon,
    'norm_bias': config.norm_bias,
    'hidden_activation': config.activation,
    'attention_bias': config.qkv_bias,
    'mlp_bias': config.mlp_bias,
    **write_ropes(config.rope, config.local_rope, config.head_width),
    'global_rope_theta': config.rope.base,
    'local_rope_theta': config.local_rope.base,
    'layer_types': decoder.layer_types(config),
    'classifier_pooling': next(
      theirs for theirs, ours in POOLINGS.items() if ours == config.pooling
    ),
    'classifier_activation': config.text_head.activation,
    'classifier_bias': config.text_head.bias,
    'decoder_bias': config.masked_head.output_bias,
    'tie_word_embeddings': config.tied,
    'initializer_range': config.init_scale,
  }
  return raw | ({'local_attention': 2 * config.window} if config.window else {})


MODERNBERT = Family(
  'modernbert', 'model.', names, read_config, write_config, bert.classes('ModernBert')
)
