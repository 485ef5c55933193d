"""Several finished adapters above one base answer one batch, each row with its own."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxtune import adapt, tree
from jaxtune.models import ModelSpec
from jaxtune.sweep.lanes import split
from jaxtune.sweep.ranks import fit_ranks, largest
from jaxtune.typing import InputError, Params

Answer = Callable[..., jax.Array]


def serve(model: ModelSpec, adapters: Sequence[Params]) -> Answer:
  """`(tokens, mask, which) -> outputs`: row b is answered by the adapter `which[b]`.

  The products with the base are those of one batch; what an adapter adds is computed row by row.
  A row holds a copy of its adapter while it is answered.

  Args:
    model: of all of them.
    adapters: what a method returned, trained, or `interop.load_peft`; one kind, of any ranks, above
      the very arrays of one base. They may bring a head each.

  Returns:
    A compiled function of int32 `[B, T]` tokens, their mask (bool `[B, T]` or None) and int32 `[B]`
    numbers of adapters, which returns `model.apply`'s outputs.

  Raises:
    InputError: no adapters, adapters of several kinds, or not all above one base; called with a
      number that no adapter has.
  """
  if not adapters:
    raise InputError('no adapters were given; serve at least one')
  like = largest(adapters)
  own, bases = [], []
  for params in adapters:
    trained, frozen = adapt.trainable(fit_ranks(params, like))
    mine, base = split(frozen)
    own.append(tree.combine(trained, mine))
    bases.append(base)
  for number, other in enumerate(bases):
    same = map(lambda a, b: a is b, jax.tree.leaves(bases[0]), jax.tree.leaves(other))
    if not all(same):
      raise InputError(
        f'adapter {number} stands on other arrays than adapter 0; load both on the parameters of '
        'one base'
      )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)

  @jax.jit
  def answered(base: Params, stacked: Params, tokens: Any, mask: Any, which: Any) -> jax.Array:
    def one(own: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
      return model.apply(tree.combine(own, base), tokens[None], mask[None])[0]

    return jax.vmap(one)(jax.tree.map(lambda x: x[which], stacked), tokens, mask)

  def answer(tokens: jax.Array, mask: jax.Array | None, which: Sequence[int]) -> jax.Array:
    wrong = [number for number in which if not 0 <= number < len(adapters)]
    if wrong or len(which) != len(tokens):
      raise InputError(
        f'which is {list(which)} for {len(tokens)} rows; give each row one of the adapters 0 to '
        f'{len(adapters) - 1}'
      )
    mask = jnp.ones(tokens.shape, bool) if mask is None else mask
    return answered(bases[0], stacked, tokens, mask, jnp.asarray(which, jnp.int32))

  return answer
