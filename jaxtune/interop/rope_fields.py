"""Rotary positions in `config.json`, as transformers 4 and 5 write them."""

import dataclasses
import math
from typing import Any

from jaxtune.interop import fields
from jaxtune.ops import Rope
from jaxtune.ops.rope import SCALINGS
from jaxtune.typing import InputError

Raw = dict[str, Any]

_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def read_rope(
  raw: Raw,
  file: str,
  head_width: int,
  positions: int,
  *,
  base: float = 10000.0,
  base_key: str = 'rope_theta',
  part: float = 1.0,
  part_key: str = 'partial_rotary_factor',
) -> Rope:
  """The rotation that all layers of a model have.

  It is in `rope_scaling` beside `rope_theta` and `partial_rotary_factor` (transformers 4), or in
  `rope_parameters` (transformers 5); `rope_scaling` wins where both are set, as in transformers.

  Args:
    raw: the file's object.
    file: for messages.
    head_width: of a head.
    positions: the model's context length.
    base: where the file has none.
    base_key: the family's own word for it outside of `rope_parameters`.
    part: of a head that is rotated, where the file does not say.
    part_key: the family's own word for it.

  Raises:
    InputError: a number is missing or malformed, or the scaling is unknown.
  """
  key = 'rope_scaling' if raw.get('rope_scaling') else 'rope_parameters'
  found = _object(raw, file, key)
  nested = [name for name in (_FULL, _SLIDING) if name in found]
  if nested:
    raise InputError(
      f'{file}: {key} differs by kind of layer ({", ".join(nested)}), which jaxtune computes for '
      'Gemma 3 and ModernBERT alone; choose another checkpoint'
    )
  base = fields.real(raw, file, base_key, base)
  part = fields.real(raw, file, part_key, part)
  return _read(found, f'{file}: {key}', raw, head_width, positions, base, part)


def read_ropes(
  raw: Raw,
  file: str,
  head_width: int,
  positions: int,
  *,
  base: float,
  local_base: float,
  base_key: str = 'rope_theta',
  local_key: str = 'rope_local_base_freq',
) -> tuple[Rope, Rope]:
  """The rotations of the layers that see everything and of those with a window.

  They are in `rope_parameters` under `full_attention` and `sliding_attention` (transformers 5), or
  in two bases with `rope_scaling` for the former alone (transformers 4).

  Args:
    raw, file, head_width, positions: as for `read_rope`.
    base, local_base: where the file has none.
    base_key, local_key: the family's words for them.

  Raises:
    InputError: as `read_rope`.
  """
  found = _object(raw, file, 'rope_parameters')
  strange = [name for name in found if name not in (_FULL, _SLIDING)]
  if strange:
    raise InputError(
      f'{file}: rope_parameters has {strange[0]!r} where {_FULL} and {_SLIDING} belong; '
      'save the model again with transformers 5'
    )
  ropes = []
  for name, key, default in ((_FULL, base_key, base), (_SLIDING, local_key, local_base)):
    own, where = _object(found, f'{file}: rope_parameters', name), f'{file}: rope_parameters.{name}'
    if name == _FULL and raw.get('rope_scaling'):
      own, where = own | _object(raw, file, 'rope_scaling'), f'{file}: rope_scaling'
    default = fields.real(raw, file, key, default)
    ropes.append(_read(own, where, raw, head_width, positions, default, 1.0))
  return ropes[0], ropes[1]


def write_rope(rope: Rope, head_width: int) -> Raw:
  """The fields that `read_rope` reads, for transformers 4 and 5 alike.

  The scaling 'dynamic' takes its original length from the model's context length, which is written
  elsewhere.
  """
  parameters = _write(rope, head_width)
  scaling = {key: value for key, value in parameters.items() if key not in ('rope_theta', _PART)}
  raw = {
    'rope_theta': rope.base,
    'rope_scaling': None if rope.scaling == 'default' else scaling,
    'rope_parameters': parameters,
  }
  if _PART in parameters:
    raw[_PART] = parameters[_PART]
  if rope.scaling == 'longrope':  # where Phi-3 has it
    raw['original_max_position_embeddings'] = rope.original
  return raw


def write_ropes(rope: Rope, local_rope: Rope, head_width: int) -> Raw:
  """`rope_parameters` for each kind of layer; transformers 4 has family-specific words instead."""
  each = {_FULL: _write(rope, head_width), _SLIDING: _write(local_rope, head_width)}
  return {'rope_parameters': each}


_PART = 'partial_rotary_factor'


def _object(raw: Raw, file: str, key: str) -> Raw:
  found = raw.get(key) or {}
  if not isinstance(found, dict):
    raise InputError(f'{file}: {key} is {found!r}; it must be an object')
  return found


def _read(
  found: Raw, where: str, raw: Raw, head_width: int, positions: int, base: float, part: float
) -> Rope:
  kind = found.get('rope_type') or found.get('type') or 'default'
  if kind == 'su' or kind == 'yarn' and 'short_factor' in found:
    kind = 'longrope'  # its names in early Phi-3
  if kind not in SCALINGS:
    raise InputError(
      f'{where} asks for rotary scaling {kind!r}; known: {", ".join(SCALINGS)}; '
      'choose another checkpoint'
    )
  fields.refuse(found, where, mrope_section=None)
  base = fields.real(found, where, 'rope_theta', base)
  part = fields.real(found, where, _PART, part)
  width = int(head_width * part)
  if base <= 1 or part > 1 or width % 2 or width < 2:
    raise InputError(
      f'{where}: base {base:g} and {part:g} of heads of width {head_width} make no rotation (it '
      'needs a base above 1, an even number); take the config that belongs to the weights'
    )
  rope = Rope(base, 0 if width == head_width else width, kind)
  if kind == 'default':
    return rope
  if kind == 'linear':
    return dataclasses.replace(rope, factor=fields.real(found, where, 'factor'))
  if kind == 'dynamic':
    return dataclasses.replace(rope, factor=fields.real(found, where, 'factor'), original=positions)
  key = 'original_max_position_embeddings'
  original = fields.integer(raw if raw.get(key) else found, where, key, positions)
  if original < 2:
    raise InputError(f'{where}: {key} is {original}; it must be at least 2')
  rope = dataclasses.replace(rope, original=original)
  if kind == 'llama3':
    return _read_llama3(found, where, rope)
  factor = fields.real(found, where, 'factor', positions / original)
  rope = dataclasses.replace(rope, factor=factor)
  if found.get('attention_factor') is not None:
    rope = dataclasses.replace(rope, attention_factor=fields.real(found, where, 'attention_factor'))
  if kind == 'yarn':
    return _read_yarn(found, where, rope)
  return dataclasses.replace(
    rope,
    short=_divisors(found, where, 'short_factor', width // 2),
    long=_divisors(found, where, 'long_factor', width // 2),
  )


def _read_llama3(found: Raw, where: str, rope: Rope) -> Rope:
  factor, low, high = (
    fields.real(found, where, key) for key in ('factor', 'low_freq_factor', 'high_freq_factor')
  )
  if low >= high:
    raise InputError(
      f'{where}: low_freq_factor {low:g} is not below high_freq_factor {high:g}; '
      'take the config that belongs to the weights'
    )
  return dataclasses.replace(rope, factor=factor, low=low, high=high)


def _read_yarn(found: Raw, where: str, rope: Rope) -> Rope:
  slow = fields.real(found, where, 'beta_slow', 1.0)
  fast = fields.real(found, where, 'beta_fast', 32.0)
  if slow >= fast:
    raise InputError(
      f'{where}: beta_slow {slow:g} is not below beta_fast {fast:g}; '
      'take the config that belongs to the weights'
    )
  truncate = found.get('truncate', True)
  if not isinstance(truncate, bool):
    raise InputError(f'{where}: truncate is {truncate!r}; it must be true or false')
  rope = dataclasses.replace(rope, slow=slow, fast=fast, truncate=truncate)
  if rope.attention_factor or not (found.get('mscale') and found.get('mscale_all_dim')):
    return rope
  # DeepSeek's form: what of the factor belongs to the scores is divided out again.
  over, under = (
    0.1 * fields.real(found, where, key) * math.log(max(rope.factor, 1.0)) + 1.0
    for key in ('mscale', 'mscale_all_dim')
  )
  return dataclasses.replace(rope, attention_factor=over / under)


def _divisors(found: Raw, where: str, key: str, count: int) -> tuple[float, ...]:
  values = found.get(key)
  if not isinstance(values, list) or len(values) != count:
    length = f'{len(values)} numbers' if isinstance(values, list) else repr(values)
    raise InputError(
      f'{where}: {key} is {length}; it must be a list of {count} numbers, one for each pair'
    )
  return tuple(fields.real({f'{key}[{i}]': x}, where, f'{key}[{i}]') for i, x in enumerate(values))


def _write(rope: Rope, head_width: int) -> Raw:
  raw: Raw = {'rope_theta': rope.base, 'rope_type': rope.scaling}
  if rope.width and rope.width != head_width:
    part = rope.width / head_width
    # Readers truncate the product, which rounding may have put below the whole number.
    raw[_PART] = part if int(head_width * part) == rope.width else math.nextafter(part, 1.0)
  if rope.scaling != 'default':
    raw['factor'] = rope.factor
  if rope.scaling in ('llama3', 'yarn', 'longrope'):
    raw['original_max_position_embeddings'] = rope.original
  if rope.scaling == 'llama3':
    raw |= {'low_freq_factor': rope.low, 'high_freq_factor': rope.high}
  if rope.scaling == 'yarn':
    raw |= {'beta_slow': rope.slow, 'beta_fast': rope.fast, 'truncate': rope.truncate}
  if rope.scaling == 'longrope':
    raw |= {'short_factor': list(rope.short), 'long_factor': list(rope.long)}
  if rope.attention_factor:
    raw['attention_factor'] = rope.attention_factor
  return raw
