"""Scion: every step goes to the corner of a norm ball, with a norm for each kind of layer."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtune import tree
from jaxtune.optim.bucket import bucket_by_shape
from jaxtune.optim.matrices import Matrix, for_matrices
from jaxtune.optim.orthogonalize import Coefficients, orthogonalize
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import BIASES, EMBEDDINGS, HEADS, NORMS, multiply_by_rules
from jaxtune.typing import InputError


class Ball(NamedTuple):
  r"""The ball $\{W : \lVert W \rVert \le \rho\}$ that a leaf `[in, out]` moves in.

  norm: by the corner of its unit ball in the direction of a gradient G,
    'spectral': $\sqrt{out/in}\, U V^\top$ of $G = U \Sigma V^\top$, for hidden matrices;
    'sign': $\mathrm{sign}(G) / in$, for an output layer;
    'per_output': the weights of each output, $G_{:j} / (\sqrt{in}\, \lVert G_{:j} \rVert)$;
    'per_input': the weights of each input, $\sqrt{out}\, G_{i:} / \lVert G_{i:} \rVert$, for an
      input layer of tokens;
    'rms': the whole leaf, $\sqrt n\, G / \lVert G \rVert$, for norms and biases, and whatever the
      rule says for a leaf with fewer than two axes beside its stacked ones.
  radius: $\rho$.
  transposed: the leaf is `[out, in]`, as an embedding is that serves as the output layer too.
  matrix: of 'spectral', which axes make the matrix. None takes a leaf with exactly two axes beside
    its stacked ones, and leaves one with more to 'rms'.
  """

  norm: str
  radius: float = 1.0
  transposed: bool = False
  matrix: Matrix | None = None


SCION: Sequence[tuple[str, Ball]] = (
  (BIASES, Ball('rms', 50.0)),
  (NORMS, Ball('rms', 50.0)),
  (EMBEDDINGS, Ball('sign', 3000.0, transposed=True)),
  (HEADS, Ball('sign', 3000.0)),
  (r'.*', Ball('spectral', 50.0)),
)
"""The paper's balls for a language model whose embedding is its output layer: radius 50 and 3000.

For an embedding of its own the paper's norm is `Ball('per_input', 50.0)`.
"""

BALLS = ('spectral', 'sign', 'per_output', 'per_input', 'rms')


def scale_by_lmo(
  balls: Sequence[tuple[str, Ball]] = SCION,
  *,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Replaces each leaf by the corner of its ball that it points to, $-\mathrm{lmo}(g)$.

  $\mathrm{lmo}(g) = \arg\min_{\lVert x \rVert \le \rho} \langle g, x \rangle$ (Pethick et al.,
  arXiv 2502.07529, table 2). The length of a gradient is of no effect; zeros give zeros. No state.

  Args:
    balls: `(pattern, Ball)`, see `Ball` and `SCION`.
    steps: Newton-Schulz iterations for the spectral norm.
    coefficients: of these, see `newton_schulz`.
    dtype: of the factors of their products; None is float32.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`: layers have their own balls.

  Raises:
    InputError: an unknown norm or a radius that is not positive; at `init`, a leaf that no rule
      covers, or a `Matrix` that does not fit.
  """
  for pattern, ball in balls:
    if ball.norm not in BALLS:
      raise InputError(
        f'ball rule {pattern!r} has the norm {ball.norm!r}; choose one of {", ".join(BALLS)}'
      )
    if not 0 < ball.radius < float('inf'):
      raise InputError(f'ball rule {pattern!r} has the radius {ball.radius}; give one above 0')
    if ball.norm == 'spectral' and ball.transposed:
      raise InputError(f'ball rule {pattern!r} transposes a spectral norm; use Ball(matrix=...)')
  matrices = [(p, b.norm == 'spectral' and (b.matrix or True)) for p, b in balls]
  spectral = orthogonalize(steps, coefficients, dtype, adjust='mup')
  others = _others(balls, axes)
  return in_precision(
    optax.chain(
      for_matrices(bucket_by_shape(spectral), others, matrices=matrices, axes=axes),
      multiply_by_rules([(pattern, ball.radius) for pattern, ball in balls]),
    )
  )


def scion(
  learning_rate: optax.ScalarOrSchedule,
  momentum: float = 0.9,
  *,
  constrained: bool = True,
  steps: int = 5,
  coefficients: Coefficients = 'standard',
  dtype: Any = None,
  balls: Sequence[tuple[str, Ball]] = SCION,
  axes: Sequence[tuple[str, int]] = STACKED,
) -> optax.GradientTransformationExtraArgs:
  r"""Conditional gradients: steps to the corners of norm balls, one kind of ball for each layer.

  $d \leftarrow \mu d + (1-\mu)\, g$, then $\theta \leftarrow (1-\alpha)\,\theta + \alpha\,
  \mathrm{lmo}(d)$, which stays inside the balls once it is there, or without `constrained`
  $\theta \leftarrow \theta + \alpha\, \mathrm{lmo}(d)$; see `scale_by_lmo` (Pethick et al., arXiv
  2502.07529, algorithms 1 and 2). State: 4 bytes a parameter.

  The constraint is a weight decay of 1 on everything, so a step has the radius as a factor and
  $\alpha$ is small: the authors' language model has radii of 50 and 3000 and $\alpha$ of $2^{-12}$
  to $2^{-11}$, which makes steps of 0.012 to 0.024 in a hidden matrix's norm. It starts on the
  surface of the balls; a model that starts outside, as a pretrained one may, is drawn in.

  Where we differ: `momentum` is the weight of the past $\mu$; the paper's $\alpha_k$ and the
  argument of its code are $1 - \mu$. Norms and biases, which that model does not have, get 'rms'.

  Args:
    learning_rate: $\alpha$ (the paper's $\gamma_k$), a number or a function from the step to one.
    momentum: $\mu$, in [0, 1).
    constrained: whether parameters stay in their balls.
    steps: Newton-Schulz iterations for the spectral norm.
    coefficients: of these, see `newton_schulz`.
    dtype: of the factors of their products; None is float32.
    balls: `(pattern, Ball)`, norm and radius by parameter, see `SCION`.
    axes: `(pattern, number of stacked leading axes)`, see `STACKED`.
  """
  return in_precision(
    optax.chain(
      optax.ema(momentum, debias=False),
      scale_by_lmo(balls, steps=steps, coefficients=coefficients, dtype=dtype, axes=axes),
      optax.add_decayed_weights(1.0) if constrained else optax.identity(),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


def _others(
  balls: Sequence[tuple[str, Ball]], axes: Sequence[tuple[str, int]]
) -> optax.GradientTransformation:
  def update(updates, params):
    leaves, structure = jax.tree.flatten(updates)
    routes = zip(leaves, tree.routing(balls, updates), tree.routing(axes, updates), strict=True)
    return structure.unflatten([_corner(g, ball.value, stack.value) for g, ball, stack in routes])

  return optax.stateless(update)


def _corner(g: jax.Array, ball: Ball, stacked: int) -> jax.Array:
  own = tuple(range(stacked, g.ndim))
  if len(own) < 2 or ball.norm in ('rms', 'spectral'):
    return math.sqrt(math.prod(g.shape[stacked:])) * _unit(g, own)
  output, inputs = (own[0], own[1:]) if ball.transposed else (own[-1], own[:-1])
  count = math.prod(g.shape[axis] for axis in inputs)
  if ball.norm == 'sign':
    return jnp.sign(g) / count
  if ball.norm == 'per_output':
    return _unit(g, inputs) / math.sqrt(count)
  return math.sqrt(g.shape[output]) * _unit(g, (output,))


def _unit(g: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  length = jnp.sqrt(jnp.sum(g * g, axis=axes, keepdims=True))
  return jnp.where(length > 0, g / jnp.where(length > 0, length, 1), 0)
