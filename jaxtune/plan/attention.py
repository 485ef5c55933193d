"""Which kernels of attention a compiled step has."""

import re

import jax

from jaxtune import ops


def attention_kernels(compiled: jax.stages.Compiled) -> tuple[str, ...]:
  """The names of `ops.SCOPES` whose operations are in the program; none without attention."""
  text = compiled.as_text() or ''
  return tuple(name for name, scope in ops.SCOPES.items() if re.search(rf'\b{scope}\b', text))
