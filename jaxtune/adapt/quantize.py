"""Frozen weights in 4 or 8 bits, block by block; with LoRA over them this is QLoRA.

Dettmers et al. 2023, arXiv:2305.14314.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxtune.adapt.adapted import LINEAR, Select, is_adapter, matrix_sides, replaced
from jaxtune.optim.codecs import Blocks, dynamic_8bit
from jaxtune.typing import InputError, Key, Params, is_weight

Kind = Literal['nf4', 'int4', 'int8']
KINDS: tuple[Kind, ...] = get_args(Kind)

# NormalFloat (section 3): quantiles of N(0, 1) with an exact zero, as bitsandbytes has them.
NF4 = np.array(
  [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
  ],
  np.float32,
)
_LARGEST = {'nf4': 1, 'int4': 7, 'int8': 127}  # symmetric: -8 and -128 stay unused
_MIDDLE = 8  # the code of zero in int4
_OF_SCALES = dynamic_8bit(block=256)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['codes', 'scales', 'scale_maxima', 'offset'],
  meta_fields=['kind', 'block', 'size', 'axis', 'dtype'],
)
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A weight `value(code) * scale`, where `block` neighbours along `axis` share a scale.

  Products dequantize where they are computed: under scan one layer at a time, and once more in the
  backward pass.

  Attributes:
    codes: int8 `[..., in, out]`; of 4 bits two neighbours along `axis` in a byte, the first one in
      the high bits: uint8 `[..., in / 2, out]`. (XLA's own 4-bit types are one byte each in the
      stacks that a scan reads on a CPU.)
    scales: absolute maxima of the blocks, float32 `[..., in / block, out]` (the last block may be
      shorter); with double quantization their codes, uint8.
    scale_maxima: with double quantization, of 256 scales each, float32 `[..., ceil(scales / 256)]`.
    offset: with double quantization, the mean scale, float32 `[...]`.
    kind: 'nf4', 'int4' or 'int8'.
    block: numbers that share a scale.
    size: the weight's size along `axis`.
    axis: along which blocks lie: -2, or -1 for embeddings, whose rows are the vectors.
    dtype: of the dense matrix.
  """

  codes: jax.Array
  scales: jax.Array
  scale_maxima: jax.Array | None
  offset: jax.Array | None
  kind: Kind
  block: int
  size: int
  axis: int
  dtype: Any

  @property
  def shape(self) -> tuple[int, ...]:
    shape = list(self.codes.shape)
    shape[self.axis] = self.size
    return tuple(shape)

  def materialize(self) -> jax.Array:
    return self._dense(self.codes, self._scales())

  def dot(self, x: jax.Array) -> jax.Array:
    return x @ self.materialize().astype(x.dtype)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    return x @ self.materialize().astype(x.dtype).T

  def take(self, ids: jax.Array) -> jax.Array:
    if self.axis == -1:
      return self._dense(self.codes[ids], self._scales()[ids])
    return self.materialize()[ids]

  def axes(self, names: tuple[str | None, ...]) -> 'Quantized':
    """Logical axes of the fields; a mesh axis may fail to divide bytes and blocks."""
    cut = list(names)
    if cut[self.axis] is not None:
      cut[self.axis] = f'{cut[self.axis]}?'
    fields: dict[str, Any] = {'codes': tuple(cut), 'scales': tuple(cut)}
    if self.scale_maxima is not None:
      fields |= {'scale_maxima': (*names[:-2], None), 'offset': names[:-2]}
    return dataclasses.replace(self, **fields)

  def _scales(self) -> jax.Array:
    """The scales `[..., in / block, out]` in float32."""
    if self.scale_maxima is None or self.offset is None:
      return self.scales
    # XLA's CPU takes this into the product with the codes and does it for each of them: a look-up
    # costs 5% of what the codes cost there, the codec's closed form 60%.
    every = Blocks(jnp.arange(256, dtype=jnp.uint8), jnp.ones(1))
    values = jnp.take(_OF_SCALES.decode(every), self.scales.astype(jnp.int32), mode='clip')
    count = math.prod(self.scales.shape[-2:])
    maxima = jnp.repeat(self.scale_maxima, 256, -1)[..., :count]
    return values * _unflat(maxima, self.scales.shape, self.axis) + self.offset[..., None, None]

  def _dense(self, codes: jax.Array, scales: jax.Array) -> jax.Array:
    spread = jnp.repeat(scales, self.block, self.axis)
    values = _values(codes, self.kind, self.axis)
    whole = _first(values, self.size, self.axis) * _first(spread, self.size, self.axis)
    return whole.astype(self.dtype)


def quantize_matrix(
  w: jax.Array, kind: Kind = 'nf4', block: int = 64, double: bool = True, axis: int = -2
) -> Quantized:
  """A matrix, or a stack of them, `[..., in, out]` in few bits.

  A block is `block` neighbours along `axis` (or what is left of it), with the scale
  `s = max |w|` over the block. 'nf4' stores the nearest of the 16 `NF4` numbers to `w / s`, of two
  equally near the lower; 'int4' and 'int8' `round(w / s * 7)` and `round(w / s * 127)`, ties to
  even. `double` quantizes the scales: their mean over the matrix is taken off, and what is left is
  stored by `optim.codecs.dynamic_8bit` in blocks of 256.

  Where `block` divides `in`, codes and scales are those of bitsandbytes for the transposed matrix,
  which it flattens. Bits a number: 4 + 32 / block; with `double` 4 + 8 / block + 32 / (256 block).

  Args:
    w: floating point.
    kind: 'nf4', 'int4' or 'int8'.
    block: numbers that share a scale; from `in` up one scale a column, as LLM.int8() has them
      (arXiv:2208.07339).
    double: whether to quantize the scales too.
    axis: along which blocks lie: -2, or -1 for embeddings.
  """
  return _encode(w, kind, min(block, w.shape[axis]), double, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _encode(w: jax.Array, kind: Kind, block: int, double: bool, axis: int) -> Quantized:
  lead, size = w.shape[:-2], w.shape[axis]
  if lead:
    # One matrix at a time: what is needed on the way is several times the matrix.
    made = lax.map(lambda x: _encode(x, kind, block, double, axis), w.reshape(-1, *w.shape[-2:]))
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), made)
  columns = jnp.moveaxis(w.astype(jnp.float32), axis, -1)
  blocks = jnp.pad(columns, ((0, 0), (0, -size % block))).reshape(len(columns), -1, block)
  scales = jnp.max(jnp.abs(blocks), -1)
  nonzero = jnp.where(scales < jnp.finfo(jnp.float32).tiny, 1, scales)
  codes = _codes(blocks * (1 / nonzero * _LARGEST[kind])[..., None], kind)
  codes = codes.reshape(len(columns), -1)[:, :size]
  if kind != 'int8':
    pairs = jnp.pad(codes, ((0, 0), (0, size % 2))).reshape(len(columns), -1, 2)
    codes = pairs[..., 0] << 4 | pairs[..., 1]
  codes, scales = jnp.moveaxis(codes, -1, axis), jnp.moveaxis(scales, -1, axis)
  maxima = offset = None
  if double:
    shape, offset = scales.shape, jnp.mean(scales)
    flat, maxima = _OF_SCALES.encode(_flat(scales, axis) - offset, jax.random.key(0))
    scales = _unflat(flat, shape, axis)
  return Quantized(codes, scales, maxima, offset, kind, block, size, axis, w.dtype)


def _codes(x: jax.Array, kind: Kind) -> jax.Array:
  """The codes nearest to `x`: int8, or 0 to 15 in uint8."""
  if kind == 'nf4':
    above = [(x > bound).astype(jnp.uint8) for bound in (NF4[1:] + NF4[:-1]) / 2]
    return functools.reduce(jnp.add, above)
  codes = jnp.round(x).astype(jnp.int8)
  return codes if kind == 'int8' else (codes + _MIDDLE).astype(jnp.uint8)


def _values(codes: jax.Array, kind: Kind, axis: int) -> jax.Array:
  """The numbers in [-1, 1] that codes stand for, in float32."""
  if kind == 'int8':
    return codes.astype(jnp.float32) * np.float32(1 / _LARGEST[kind])
  # The two codes of a byte lie on an axis of their own behind `axis`, and merge into it.
  place = codes.ndim + axis + 1
  shift = jnp.array([4, 0], jnp.uint8).reshape(2, *(1,) * (codes.ndim - place))
  pairs = jnp.expand_dims(codes, place) >> jnp.expand_dims(shift, range(place)) & 15
  bits = pairs.reshape(*codes.shape[: place - 1], -1, *codes.shape[place:])
  if kind == 'nf4':
    return jnp.take(NF4, bits.astype(jnp.int32), mode='clip')
  return (bits.astype(jnp.float32) - _MIDDLE) * np.float32(1 / _LARGEST[kind])


def _first(x: jax.Array, size: int, axis: int) -> jax.Array:
  return lax.slice_in_dim(x, 0, size, axis=axis)


def _flat(scales: jax.Array, axis: int) -> jax.Array:
  """Scales in the order of bitsandbytes: those of one vector `[in]` after each other."""
  return jnp.moveaxis(scales, axis, -1).reshape(*scales.shape[:-2], -1)


def _unflat(flat: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
  *lead, rows, columns = shape
  sides = (columns, rows) if axis == -2 else (rows, columns)
  return jnp.moveaxis(flat.reshape(*lead, *sides), -1, axis)


def quantize(
  key: Key,
  params: Params,
  select: Select = LINEAR,
  kind: Kind = 'nf4',
  block: int = 64,
  double: bool = True,
) -> Params:
  """Freezes the chosen weights in few bits; `lora` over the result is QLoRA.

  Which parameters train stays as it was, and codes cannot: a method that would train a quantized
  weight itself is refused when its rules are applied. Of a weight under an adapter the base is
  quantized.

  Args:
    key: unused; every method has one.
    params: plain parameters, or adapted ones.
    select: which weights, all matrices of the layers by default; a rule may set the other options:
      `((r'mlp/', {'kind': 'int8'}), (r'attn/', True), (r'', False))`. Embeddings are quantized
      along their rows.
    kind: 'nf4' for weights that are about normal, 'int4', or 'int8', which is nearly exact.
    block: numbers that share a scale.
    double: whether to quantize the scales too.

  Raises:
    InputError: an unknown kind, a block below 1, a weight that is no matrix or is quantized, or
      nothing chosen.
  """
  del key
  options = {'kind': kind, 'block': block, 'double': double}
  return replaced(params, select, 'quantize', _quantized, options)[0]


def _quantized(path: str, leaf: Any, kind: Kind, block: int, double: bool) -> Any:
  if is_adapter(leaf):
    return dataclasses.replace(leaf, base=_quantized(path, leaf.base, kind, block, double))
  if is_weight(leaf):
    raise InputError(f'quantize: {path!r} is quantized already; narrow what it selects')
  if kind not in KINDS:
    raise InputError(f'quantize: kind is {kind!r}; choose one of {", ".join(KINDS)}')
  if isinstance(block, bool) or not isinstance(block, int) or block < 1:
    raise InputError(f'quantize: block is {block!r}; give a whole number of at least 1')
  matrix_sides(path, leaf, 'quantize')
  return quantize_matrix(leaf, kind, block, double, -1 if path.startswith('embed/') else -2)
