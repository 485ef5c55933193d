"""LoRA on embeddings that leaves the head tied to them as it is."""

import dataclasses

import jax

from jaxtune import ops
from jaxtune.adapt.lora import LoRA
from jaxtune.typing import InputError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputLoRA(LoRA):
  """LoRA of what goes in alone; `x @ W^T` of the tied head is the base's.

  `lora` on tied embeddings moves both; PEFT by default (without `ensure_weight_tying`) the
  embeddings alone, so this leaf is how an adapter of its files is read. No one matrix stands for
  both, so it cannot be merged.
  """

  def dot_transposed(self, x: jax.Array) -> jax.Array:
    return ops.dot_transposed(x, self.base)

  def materialize(self) -> jax.Array:
    raise InputError(
      'the embeddings have an adapter that the head tied to them does not have, so they cannot be '
      'merged into one matrix; write the adapter with save_peft'
    )

  def axes(self, names: tuple[str | None, ...]) -> 'InputLoRA':
    plain = LoRA.axes(self, names)
    return InputLoRA(plain.base, plain.a, plain.b, plain.scale)
