"""AdaLoRA's budget: which triplets of singular value and vectors are kept while they train.

Zhang et al. 2023, arXiv:2303.10512, section 3.2 and 3.3.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune import tree
from jaxtune.adapt.adalora import AdaLoRA, Budget, adalora_leaves
from jaxtune.typing import InputError


class BudgetState(NamedTuple):
  """State of `adalora_budget`; its trees hold fields of the AdaLoRA weights and nothing else.

  step: int32, updates made so far.
  sensitivity, uncertainty: float32, the averages of equations 9 and 10 for each a, e and b.
  kept: bool, for each e whether the latest cut has left it.
  inner: the state of the rule.
  """

  step: jax.Array
  sensitivity: Any
  uncertainty: Any
  kept: Any
  inner: Any


def adalora_budget(
  inner: optax.GradientTransformation,
  target_rank: float,
  steps: int,
  warmup: int | float = 0,
  final: int | float = 0,
  interval: int = 1,
  beta1: float = 0.85,
  beta2: float = 0.85,
) -> optax.GradientTransformationExtraArgs:
  r"""Lets `inner` step and then sets the singular values to zero that are outside of the budget.

  After step t, with w the parameters then and g the gradient before it (equations 8 to 11):

  $I = |w\,g|, \quad \bar I \leftarrow \beta_1 \bar I + (1 - \beta_1) I, \quad
  \bar U \leftarrow \beta_2 \bar U + (1 - \beta_2) |I - \bar I|, \quad s = \bar I\,\bar U$

  The score of a triplet is s of its singular value plus the means of s over its column of A and its
  row of B (equation 7). Of all triplets of all weights the best $b(t)$ stay (equation 6): all until
  `warmup`, then a cubic down to `target_rank` times the number of matrices at `steps - final`
  (equation 12). Until there a triplet that was cut may grow from zero again before the next cut;
  then the choice is fixed. This is what PEFT's `RankAllocator` does when it is called with t = 1
  after the first step, but that a gradient that is not finite counts as zero. It takes two float32
  averages for each entry of A, e and B.

  Args:
    inner: the update rule.
    target_rank: how many triplets a matrix has at the end, on the average.
    steps: all steps of the run.
    warmup: steps (an int) or the fraction of `steps` (a float below 1) before the first cut.
    final: the same for those after the last.
    interval: steps between two cuts.
    beta1, beta2: the decays.

  Raises:
    InputError: numbers that leave no step to cut at; at `init`, no AdaLoRA weight, or fewer
      triplets than wanted; `update` without parameters.
  """
  Budget(target_rank, warmup, final, interval, beta1, beta2).check()
  first, last = _count(warmup, steps), steps - _count(final, steps)
  if not first < last:
    raise InputError(
      f'adalora: warmup of {first} and final {steps - last} of {steps} steps leave none to cut '
      'ranks at; shorten them or train longer'
    )
  inner = optax.with_extra_args_support(inner)

  def budget_at(step: jax.Array, params: Any) -> jax.Array:
    """b(t), from a table in Python's floats, so that it is the same number everywhere."""
    start, end = _triplets(params, target_rank)
    falling = [1 - (s - first) / (last - first) for s in range(0, last, interval)]
    table = [int((start - end) * min(x, 1.0) ** 3 + end) for x in falling]
    return jnp.where(step == last, end, jnp.asarray(table, jnp.int32)[step // interval])

  def init(params: Any) -> BudgetState:
    _triplets(params, target_rank)
    fields = _fields(params)
    sensitivity, uncertainty = (
      jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), fields) for _ in range(2)
    )
    kept = tree.map_weights(lambda _, leaf: _only_e(leaf, jnp.ones(leaf.e.shape, bool)), fields)
    return BudgetState(jnp.zeros((), jnp.int32), sensitivity, uncertainty, kept, inner.init(params))

  def update(updates: Any, state: BudgetState, params: Any = None, **extra: Any) -> Any:
    if params is None:
      raise InputError('adalora_budget needs the parameters: update(updates, state, params)')
    gradients = _fields(updates)
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    step = optax.safe_increment(state.step)
    old, moves = _fields(params), _fields(updates)
    learns = step < last

    def importance(p: jax.Array, u: jax.Array, g: jax.Array) -> jax.Array:
      now = jnp.abs(((p + u).astype(p.dtype) * g).astype(jnp.float32))
      return jnp.where(jnp.isfinite(now), now, 0.0)

    now = jax.tree.map(importance, old, moves, gradients)
    sensitivity = jax.tree.map(
      lambda mean, x: jnp.where(learns, beta1 * mean + (1 - beta1) * x, mean),
      state.sensitivity,
      now,
    )
    uncertainty = jax.tree.map(
      lambda doubt, x, mean: jnp.where(
        learns, beta2 * doubt + (1 - beta2) * jnp.abs(x - mean), doubt
      ),
      state.uncertainty,
      now,
      sensitivity,
    )
    cuts = (step == last) | ((first < step) & (step < last) & (step % interval == 0))
    scores = _scores(jax.tree.map(jnp.multiply, sensitivity, uncertainty))
    best = _best(scores, budget_at(step, params))
    kept = jax.tree.map(lambda new, old: jnp.where(cuts, new, old), best, state.kept)
    applies = cuts | (step > last)

    def masked(update: Any, leaf: Any, keep: Any) -> Any:
      if not _trains(update):
        return update
      e = jnp.where(applies & ~keep.e, -leaf.e.astype(update.e.dtype), update.e)
      return dataclasses.replace(update, e=e)

    updates = jax.tree.map(masked, updates, params, kept, is_leaf=_is)
    return updates, BudgetState(step, sensitivity, uncertainty, kept, inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _is(leaf: Any) -> bool:
  return isinstance(leaf, AdaLoRA)


def _trains(leaf: Any) -> bool:
  return _is(leaf) and leaf.e is not None


def _fields(params: Any) -> Any:
  """The a, e and b of AdaLoRA weights at their paths, and nothing else."""

  def fields(_: str, leaf: Any) -> Any:
    return dataclasses.replace(leaf, base=None, scale=None) if _trains(leaf) else None

  return tree.map_weights(fields, params)


def _only_e(leaf: AdaLoRA, e: jax.Array) -> Any:
  nothing: Any = None
  return dataclasses.replace(leaf, a=nothing, e=e, b=nothing)


def _scores(s: Any) -> Any:
  """Equation 7, at the place of e."""

  def score(_: str, leaf: AdaLoRA) -> Any:
    e = leaf.e + jnp.mean(leaf.a, -2) + jnp.mean(leaf.b, -1)
    return _only_e(leaf, e)

  return tree.map_weights(score, s)


def _best(scores: Any, budget: jax.Array) -> Any:
  """Which scores are above the best of those that must go; equals go together, as in PEFT."""
  ordered = jnp.sort(jnp.concatenate([x.ravel() for x in jax.tree.leaves(scores)]))
  surplus = len(ordered) - budget
  threshold = jnp.where(surplus > 0, ordered[jnp.maximum(surplus - 1, 0)], -jnp.inf)
  return jax.tree.map(lambda x: x > threshold, scores)


def _triplets(params: Any, target_rank: float) -> tuple[int, int]:
  """How many triplets there are, and how many of them shall stay.

  Raises:
    InputError: there are no AdaLoRA weights, or fewer triplets than wanted.
  """
  shapes = [leaf.e.shape for _, leaf in adalora_leaves(params)]
  start = sum(int(np.prod(shape)) for shape in shapes)
  matrices = sum(int(np.prod(shape[:-1])) for shape in shapes)
  end = round(target_rank * matrices)
  if not shapes or not 1 <= end <= start:
    raise InputError(
      f'adalora: target_rank is {target_rank}, and {matrices} weights under AdaLoRA have {start} '
      'triplets that train; adapt with adapt.adalora, and choose a target of at most its rank'
    )
  return start, end


def _count(value: int | float, steps: int) -> int:
  """Steps from a count (an int) or a fraction of all (a float)."""
  return value if isinstance(value, int) else round(value * steps)
