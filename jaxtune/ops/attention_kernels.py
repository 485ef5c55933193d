"""Which kernel computes attention, and those that others have written for one kind of device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune.ops.visible import FAR, NOBODY, Visible, allowed

# The compiled operations of a kernel are named after it, so that a program says what it has.
SCOPES = {
  'scores': 'attention_scores',  # all scores at once
  'blocks': 'attention_blocks',  # `chunked_attention`
  'cudnn': 'attention_cudnn',
  'splash': 'attention_splash',  # of Pallas, for TPU
}
LONG = 512 * 512  # pairs of a query and a key from which on blocks are faster than all scores
_MASKED = 4096 * 4096  # pairs up to which cuDNN is given a mask, a byte or two each
_LANES = 128  # of a TPU


def attention_kernel(
  q: jax.Array,
  k: jax.Array,
  seen: Visible | jax.Array | None,
  causal: bool,
  cap: float,
) -> str:
  """A name of `SCOPES`: the fastest that is known to take such arguments where it will run.

  That is where the mesh of `jax.set_mesh` has its devices, which need not be here, else JAX's
  default. Splash attention needs a causal order, rows of a multiple of 128 tokens and heads as wide
  as a multiple of 64; cuDNN 16-bit types, which it is asked about, and no cap.

  Args:
    q, k, seen, causal, cap: as of `attention`.
  """
  pairs = q.shape[1] * k.shape[1]
  if isinstance(seen, jax.Array | np.ndarray):
    return 'scores'
  platform = _platform()
  if platform == 'tpu' and _splash_takes(q, k, seen, causal):
    return 'splash'
  if platform in ('gpu', 'cuda') and cap == 0 and (seen is None or pairs <= _MASKED):
    if q.dtype in (jnp.bfloat16, jnp.float16) and _cudnn_takes(q, k, seen is not None):
      return 'cudnn'
  return 'blocks' if pairs >= LONG else 'scores'


def _platform() -> str:
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def _splash_takes(q: jax.Array, k: jax.Array, seen: Visible | None, causal: bool) -> bool:
  fixed = seen is None or (isinstance(seen.behind, np.integer) and not seen.shared)
  square = q.shape[1] == k.shape[1] and q.shape[1] % _LANES == 0
  return causal and fixed and square and q.shape[-1] % (_LANES // 2) == 0


def _cudnn_takes(q: jax.Array, k: jax.Array, masked: bool) -> bool:
  """Whether JAX's own checks pass, of shapes, the device and the version that is installed."""

  def total(q: jax.Array, k: jax.Array) -> jax.Array:
    mask = jnp.ones((1, 1, q.shape[1], k.shape[1]), bool) if masked else None
    y = jax.nn.dot_product_attention(q, k, k, mask=mask, implementation='cudnn')
    return y.astype(jnp.float32).sum()

  try:
    jax.eval_shape(jax.grad(total), *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k)))
  except (NotImplementedError, RuntimeError, ValueError):
    return False
  return True


def cudnn(
  q: jax.Array, k: jax.Array, v: jax.Array, seen: Visible | None, scale: float
) -> jax.Array:
  """cuDNN's flash attention through `jax.nn`."""
  mask = None if seen is None else allowed(seen)[:, None]
  return jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation='cudnn')


def splash(
  q: jax.Array, k: jax.Array, v: jax.Array, seen: Visible | None, scale: float, cap: float
) -> jax.Array:
  """Splash attention of Pallas, causal; it leaves out blocks that a window or the order hides."""
  from jax.experimental.pallas.ops.tpu import splash_attention as lib

  length, heads = q.shape[1:3]
  square = (length, length)
  mask: lib.Mask = lib.CausalMask(square)
  if seen is not None and int(seen.behind) < FAR:
    mask = lib.LocalMask(square, (int(seen.behind), 0), 0)
  size = next(n for n in (512, 256, 128) if length % n == 0)
  names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
  sizes: Any = {f'block_{name}': size for name in names}
  kernel = lib.make_splash_mha(
    lib.MultiHeadMask([mask] * heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=lib.BlockSizes(**sizes),
    attn_logits_soft_cap=cap or None,
    residual_checkpoint_name='product',
  )
  ids = None
  if seen is not None and seen.key_segments is not None and seen.query_segments is not None:
    # A hidden token sees hidden ones, itself among them: no row of scores is empty.
    keys = jnp.broadcast_to(seen.key_segments, (len(q), length))
    ids = lib.SegmentIds(jnp.where(keys == NOBODY, NOBODY, seen.query_segments), keys)
  turned = (x.swapaxes(1, 2) for x in (q * scale, k, v))
  return jax.vmap(kernel)(*turned, ids).swapaxes(1, 2).astype(q.dtype)
