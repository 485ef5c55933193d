"""How far what a student says is from what a teacher says."""

import jax
import jax.numpy as jnp

from jaxtune.typing import InputError

KINDS = ('forward', 'reverse', 'js')


def divergence(
  student: jax.Array, teacher: jax.Array, kind: str = 'forward', beta: float = 0.5
) -> jax.Array:
  """Of distributions over the last axis, in nats: float32 `[...]`, at least 0.

  With p the teacher's probabilities and q the student's:

  - 'forward': `KL(p || q) = sum p (log p - log q)`. Hinton et al. 2015, arXiv:1503.02531; the
    student covers all that the teacher holds possible.
  - 'reverse': `KL(q || p)`. MiniLLM, Gu et al. 2023, arXiv:2306.08543; the student leaves out what
    it cannot say as the teacher does.
  - 'js': `beta KL(p || m) + (1 - beta) KL(q || m)` with `m = beta p + (1 - beta) q`. GKD, Agarwal
    et al. 2023, arXiv:2306.13649, equation 1. Over beta it tends to the forward one as beta tends
    to 0, over 1 - beta to the reverse one as it tends to 1; TRL takes these limits at 0 and 1.

  Args:
    student: log-probabilities `[..., C]`, as of `jax.nn.log_softmax`.
    teacher: the same of the teacher; give it under `stop_gradient` where it trains too.
    kind: one of the above.
    beta: of 'js', between 0 and 1.

  Raises:
    InputError: an unknown kind.
  """
  # What is impossible for both adds nothing; as -inf its gradient would be NaN.
  p, q = (jnp.maximum(x.astype(jnp.float32), -1e30) for x in (teacher, student))
  if kind == 'forward':
    return _kl(p, q)
  if kind == 'reverse':
    return _kl(q, p)
  if kind == 'js':
    m = jnp.logaddexp(p + jnp.log(beta), q + jnp.log1p(-beta))
    return beta * _kl(p, m) + (1 - beta) * _kl(q, m)
  raise InputError(f'kind is {kind!r}; known: {", ".join(KINDS)}')


def largest_and_rest(log_probs: jax.Array, indices: jax.Array) -> jax.Array:
  """The log-probabilities of the classes at `indices`, and that of all others as one class.

  `[N, C], [N, K] -> [N, K + 1]`, K below C.
  """
  rows = jnp.arange(log_probs.shape[0])[:, None]
  picked = jnp.take_along_axis(log_probs, indices, axis=1)
  # Not log(1 - sum p), which has lost its digits where the others hold little.
  rest = jax.nn.logsumexp(
    jnp.asarray(log_probs).at[rows, indices].set(-jnp.inf), axis=1, keepdims=True
  )
  return jnp.concatenate([picked, rest], axis=1)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
  return jnp.sum(jnp.exp(p) * (p - q), axis=-1)
