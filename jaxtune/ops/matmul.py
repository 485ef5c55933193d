"""A product with a matrix whose gradient is fast on CPU."""

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
  """`x @ w`, `[..., in] @ [in, out] -> [..., out]`.

  The gradient of w is `x^T g`. As it stands XLA's CPU compiler gives it to a slower kernel than it
  gives other products: it takes seven times as long where `out` is 16 as in an adapter, up to a
  third longer where it is a few hundred. With g turned before, `(g^T x)^T`, it takes the fast one.
  """
  return x @ w


def _tangent(primals, tangents):
  (x, w), (dx, dw) = primals, tangents
  y = x @ w
  terms = [] if isinstance(dx, SymbolicZero) else [dx @ w]
  if not isinstance(dw, SymbolicZero):
    plain = dw.shape[-1] > dw.shape[-2] or x.ndim != 2
    terms.append(x @ dw if plain else lax.platform_dependent(x, dw, cpu=_turned, default=_plain))
  return y, sum(terms[1:], terms[0]) if terms else SymbolicZero(jax.typeof(y))


matmul.defjvp(_tangent, symbolic_zeros=True)


def _plain(x: jax.Array, dw: jax.Array) -> jax.Array:
  return x @ dw


def _turned(x: jax.Array, dw: jax.Array) -> jax.Array:
  """`x @ dw`, so written that its transpose turns the gradient, which the barriers keep apart."""
  lay = lax.optimization_barrier
  return lay(lax.dot_general(lay(dw.T), x, (((1,), (1,)), ((), ())))).T
