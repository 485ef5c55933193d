"""How much memory a step needs, read from the compiled step before it runs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxtune import tree


class Forecast(NamedTuple):
  """Bytes on one device while the step runs.

  Attributes:
    base: frozen parameters.
    trainable: trained parameters.
    optimizer: optimizer state, hyperparameters included.
    batch: one batch.
    temporaries: activations and workspace, as the compiler laid them out.
    total: all that the program holds at once: arguments + temporaries + outputs that are not written
      over arguments.
  """

  base: int
  trainable: int
  optimizer: int
  batch: int
  temporaries: int
  total: int


def shapes(values: Any) -> Any:
  """A tree's shapes, types and, where it has them, shardings."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), values
  )


def forecast(step: Callable[..., Any], state: Any, frozen: Any, batch: Any) -> Forecast:
  """Compiles the very step for these shapes, without making an array, and reads its memory.

  Args:
    step: a jitted step, donation and shardings included.
    state: a train state, or its shapes.
    frozen: frozen leaves, or their shapes.
    batch: a batch, or its shapes.
  """
  compiled = step.lower(*map(shapes, (state, frozen, batch))).compile()  # type: ignore[attr-defined]
  memory = compiled.memory_analysis()
  written = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Forecast(
    base=tree.size(frozen),
    trainable=tree.size(state.trainable),
    optimizer=tree.size(state.opt),
    batch=tree.size(batch),
    temporaries=memory.temp_size_in_bytes,
    total=memory.argument_size_in_bytes + memory.temp_size_in_bytes + written,
  )
