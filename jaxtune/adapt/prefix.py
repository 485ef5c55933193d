"""Prefix tuning: trained keys and values that stand before those of the text in every layer.

Li & Liang 2021, arXiv:2101.00190.
"""

import jax
import jax.numpy as jnp

from jaxtune.adapt.adapted import HEAD, Adapted
from jaxtune.adapt.prompt import check_built_in, check_tokens, with_virtual
from jaxtune.typing import InputError, Key, Params


def prefix(
  key: Key,
  params: Params,
  tokens: int = 20,
  start: str = 'random',
  *,
  also: str | None = HEAD,
) -> Adapted:
  """Trains keys and values of P virtual tokens, `[L, P, G*K]` each, and no weight.

  `h_i = P[i]` for the indices of the prefix in equation (3), given directly as what attention reads
  of it: keys as they are after their norm and rotation. The text's positions are counted on from P.
  Every token of the text sees the prefix, in packed rows too.

  The paper makes them with an MLP while it trains; here they are trained as they are, as PEFT does
  unless it is told otherwise (`prefix_projection`). PEFT's files hold the result of the MLP, and
  load either way.

  The first forward pass is not the base model's: even zeros take a share of the attention.

  Args:
    key: for the start.
    params: of a built-in decoder or encoder.
    tokens: P, at least 1; they take places of the model's context.
    start: 'random' for a standard normal, or 'zero', as PEFT has them.
    also: regular expression over parameters to train as they are, by default a fresh head.

  Raises:
    InputError: no built-in model, or one that has a prefix; no tokens, or an unknown start.
  """
  stack = params[check_built_in(params, 'prefix')]
  if start not in ('random', 'zero'):
    raise InputError(f"prefix: start is {start!r}; it must be 'random' or 'zero'")
  keys = [segment['attn']['k'] for segment in stack.values()]
  shape = (sum(k.shape[0] for k in keys), check_tokens(tokens, 'prefix'), keys[0].shape[-1])
  made = {
    name: jax.random.normal(own, shape) if start == 'random' else jnp.zeros(shape)
    for name, own in zip(('keys', 'values'), jax.random.split(key), strict=True)
  }
  return with_virtual(params, 'prefix', made, also)
