"""Path-rule tables of update rules: which rule, which rate and which decay for which parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune import tree
from jaxtune.typing import InputError

# What parameters are called by their kind, for the tables of rules.
BIASES = r'(?i)(^|[/_])(bias|scale|offset|magnitude)$'
NORMS = r'(?i)(norm|(^|[/_])ln)(_?\d+|_[a-z]+)?(/|$)'
EMBEDDINGS = r'(?i)embed|(^|[/_])(wte|wpe)(/|$)'
HEADS = r'(?i)(^|[/_])(head|classifier|logits|score)(/|$)'

DECAY: Sequence[tuple[str, bool]] = (
  (BIASES, False),
  (NORMS, False),
  (r'.*', True),
)
"""Weight decay by default: biases and norms are left alone, all else decays.

Not decayed: names that end in bias, scale, offset or magnitude (`attn/q_bias`, `norm/scale`, the
scale of an adapter), and everything in a norm (`attn_norm`, `LayerNorm_0`, `ln_1`,
`input_layernorm/weight`). Matrices, embeddings and the factors `a`, `b` of LoRA decay. It goes by
name and never by `ndim`: stacked norms `[L, D]` look like matrices. Print it with
`tree.format_routing(tree.routing(optim.DECAY, params))`.
"""


def decay_mask(rules: Sequence[tuple[str, bool]] = DECAY) -> Callable[[Any], Any]:
  """A mask for the `mask` argument of Optax's rules: a function from a tree to a tree of bools."""
  return lambda params: jax.tree.map(bool, tree.match(rules, params))


DECAYED = decay_mask()
"""The mask that ready chains decay by unless told otherwise."""


def by_rules(
  rules: Sequence[tuple[str, optax.GradientTransformation]],
) -> optax.GradientTransformationExtraArgs:
  """Applies to each parameter the update rule of the first pattern that matches its path.

  Each rule sees only its own parameters (a global-norm clip inside one is over those alone). The
  state is that of `optax.partition`, with the position in the table as the label;
  `optax.set_to_zero()` freezes.

  Args:
    rules: `(pattern, transformation)`, see `jaxtune.tree`.

  Raises:
    InputError: at `init`, a parameter that no pattern covers.
  """
  labels = [(pattern, str(i)) for i, (pattern, _) in enumerate(rules)]
  transforms = {str(i): rule for i, (_, rule) in enumerate(rules)}
  return optax.partition(transforms, lambda params: tree.label(params, labels))


def multiply_by_rules(rules: Sequence[tuple[str, Any]]) -> optax.GradientTransformationExtraArgs:
  """Multiplies the updates of each parameter by a number: learning rates per parameter.

  Chain it after a rule: `optax.chain(optim.create('adamw', 1e-3), optim.multiply_by_rules(...))`;
  decoupled weight decay, being part of the update, is multiplied too. For stacked layers the
  number may be an array along the leaf's leading axes: `[L]` numbers for a leaf `[L, in, out]`.

  Args:
    rules: `(pattern, multiplier)`, finite and >= 0, see `jaxtune.tree`.

  Raises:
    InputError: a multiplier out of range; a parameter that no pattern covers; an array that does
      not fit.
  """
  for pattern, value in rules:
    if not np.all(np.isfinite(value)) or np.any(np.asarray(value) < 0):
      raise InputError(
        f'multiplier of rule {pattern!r} is {value!r}; give finite numbers of at least 0'
      )

  def init(params):
    tree.match(rules, params)
    return optax.EmptyState()

  def update(updates, state, params=None, **extra):
    del params, extra
    leaves, structure = jax.tree.flatten(updates)
    routes = tree.routing(rules, updates)
    scaled = [_multiply(x, route) for x, route in zip(leaves, routes, strict=True)]
    return structure.unflatten(scaled), state

  return optax.GradientTransformationExtraArgs(init, update)


def _multiply(x: jax.Array, route: tree.Route) -> jax.Array:
  m = np.asarray(route.value)
  if m.shape != x.shape[: m.ndim]:
    raise InputError(
      f'rule {route.pattern!r} gives {route.path!r} of shape {x.shape} multipliers of shape '
      f'{m.shape}; they must follow its leading axes'
    )
  return x * jnp.asarray(m, x.dtype).reshape(m.shape + (1,) * (x.ndim - m.ndim))
