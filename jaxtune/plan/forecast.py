"""How much memory a step needs, read from the compiled step before it runs."""

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
    total: all that the program holds at once: arguments + temporaries + outputs that are not
      written over arguments.
  """

  base: int
  trainable: int
  optimizer: int
  batch: int
  temporaries: int
  total: int


def forecast(compiled: jax.stages.Compiled, state: Any, frozen: Any, batch: Any) -> Forecast:
  """Reads the memory of a compiled step.

  The step may have been compiled from shapes alone, by lowering it for `jax.ShapeDtypeStruct`s: no
  array need exist.

  Args:
    compiled: the train step.
    state: its train state, or the shapes of it.
    frozen: frozen leaves, or their shapes.
    batch: a batch, or its shapes.
  """
  memory: Any = compiled.memory_analysis()
  written = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Forecast(
    base=tree.size(frozen),
    trainable=tree.size(state.trainable),
    optimizer=tree.size(state.opt),
    batch=tree.size(batch),
    temporaries=memory.temp_size_in_bytes,
    total=memory.argument_size_in_bytes + memory.temp_size_in_bytes + written,
  )
