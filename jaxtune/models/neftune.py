"""NEFTune: noise on the embeddings of the tokens while a model trains.

Jain et al. 2023, arXiv:2310.05914.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import ops
from jaxtune.models.spec import ModelSpec
from jaxtune.typing import InputError, Key, Params


def neftune(model: ModelSpec, alpha: float = 5.0) -> ModelSpec:
  """The model whose embeddings get noise in training: `e + alpha / sqrt(L D) u`, u uniform in ±1.

  Algorithm 1 of the paper. L is the number of real tokens of the text, of a packed document its
  own: the noise of a text has a length of about `alpha / sqrt(3)`, whatever it is batched with.
  Transformers and TRL count padding, too, and so give short texts in a batch of long ones less.

  Give it to an objective, `losses.causal_lm(models.neftune(model))`, and to nothing else: the
  parameters stay what they are. As with dropout there is noise where features get a key, so
  evaluations, references, and a head tied to the embeddings have none.

  Args:
    model: a built-in decoder or encoder.
    alpha: the paper takes 5, 10 or 15; 0 is the model as it is.

  Raises:
    InputError: another model, or an alpha that is no number from 0.
  """
  if model.family not in ('decoder', 'encoder'):
    raise InputError(
      f'neftune: noise goes on the tokens of a built-in decoder or encoder, not of {model.family}'
    )
  if not 0 <= alpha < float('inf'):
    raise InputError(f'neftune: alpha is {alpha!r}; give a number from 0, such as 5')
  if not alpha:
    return model

  def features(
    params: Params,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    *,
    segments: jax.Array | None = None,
    key: Key | None = None,
    **options: Any,
  ) -> jax.Array:
    if key is not None:
      key, own = jax.random.split(key)
      table = params['embed']['tokens']
      length = _lengths(tokens, mask, segments) * table.shape[-1]
      noisy = NoisyRows(table, alpha * jax.lax.rsqrt(length), own)
      params = {**params, 'embed': {**params['embed'], 'tokens': noisy}}
    return model.features(params, tokens, mask, segments=segments, key=key, **options)

  return dataclasses.replace(model, features=features)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoisyRows:
  """An embedding whose rows are looked up with noise, for one batch.

  Attributes:
    base: `[V, D]`, an array or another weight leaf.
    scale: the largest noise on each token, float32 `[B, T]`.
    key: of the noise.
  """

  base: Any
  scale: jax.Array
  key: Key

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  def materialize(self) -> jax.Array:
    return ops.materialize(self.base)

  def dot(self, x: jax.Array) -> jax.Array:
    return ops.dot(x, self.base)

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    return ops.dot_transposed(x, self.base)

  def axes(self, names: tuple[str | None, ...]) -> 'NoisyRows':
    return NoisyRows(ops.axes(self.base, names), (None, None), ())  # type: ignore[arg-type]

  def take(self, ids: jax.Array) -> jax.Array:
    rows = ops.take(self.base, ids)
    noise = jax.random.uniform(self.key, rows.shape, minval=-1.0, maxval=1.0)
    return rows + (noise * self.scale[..., None]).astype(rows.dtype)


def _lengths(tokens: jax.Array, mask: jax.Array | None, segments: jax.Array | None) -> jax.Array:
  """Real tokens of the text or document of each token, at least 1: float32 `[B, T]`."""
  real = jnp.ones(tokens.shape, bool) if mask is None else mask
  if segments is None:
    count = jnp.broadcast_to(real.sum(axis=1, keepdims=True), tokens.shape)
  else:
    count = jnp.sum((segments[:, :, None] == segments[:, None, :]) & real[:, None, :], axis=2)
  return jnp.maximum(count, 1).astype(jnp.float32)
