"""What llama.cpp calls the weights of its decoders, and how it stores them."""

import numpy as np

from jaxtune.interop.names import Name
from jaxtune.models import DecoderConfig

_OURS, _THEIRS = 'decoder/{layer}/', 'blk.{layer}.'
_DENSE = {
  'attn/v': 'attn_v',
  'attn/o': 'attn_output',
  'mlp/gate': 'ffn_gate',
  'mlp/up': 'ffn_up',
  'mlp/down': 'ffn_down',
}
_NORMS = {
  'attn/q_norm': 'attn_q_norm',
  'attn/k_norm': 'attn_k_norm',
  'attn_norm': 'attn_norm',
  'mlp_norm': 'ffn_norm',
  'attn_post_norm': 'post_attention_norm',
  'mlp_post_norm': 'post_ffw_norm',
}
_MIXTURE = {
  'router/dense': 'ffn_gate_inp',
  'experts/gate': 'ffn_gate_exps',
  'experts/up': 'ffn_up_exps',
  'experts/down': 'ffn_down_exps',
}


def names(config: DecoderConfig, interleaved: bool) -> tuple[Name, ...]:
  """The table of a model.

  Args:
    config: of the model.
    interleaved: whether the rows of q and k are in the order in which llama.cpp rotates
      neighbours, `x_0 x_{K/2} x_1 x_{K/2+1} ...` of each head.
  """
  turned = {'attn/q': ('attn_q', config.heads), 'attn/k': ('attn_k', config.kv_heads)}
  rows = [
    Name('embed/tokens', 'token_embd.weight'),
    Name('norm/scale', 'output_norm.weight'),
    Name('head/dense', 'output.weight', True),
  ]
  for ours, (theirs, heads) in turned.items():
    part = _order(heads, config.head_width) if interleaved else None
    rows += [row._replace(part=part) for row in _dense(ours, theirs)]
  for ours, theirs in _DENSE.items():
    rows += _dense(ours, theirs)
  for ours, theirs in _NORMS.items():
    rows.append(Name(f'{_OURS}{ours}/scale', f'{_THEIRS}{theirs}.weight'))
  for ours, theirs in _MIXTURE.items():
    rows.append(Name(_OURS + ours, f'{_THEIRS}{theirs}.weight', True))
  return tuple(rows)


def _dense(ours: str, theirs: str) -> list[Name]:
  weight = Name(_OURS + ours, f'{_THEIRS}{theirs}.weight', True)
  return [weight, Name(f'{_OURS}{ours}_bias', f'{_THEIRS}{theirs}.bias')]


def _order(heads: int, width: int) -> np.ndarray:
  """Which of their rows is each of ours."""
  return np.arange(heads * width).reshape(heads, width // 2, 2).swapaxes(1, 2).reshape(-1)
