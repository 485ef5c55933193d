"""All examples through a compiled function, with the progress shown."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.tuned import Tuned
from jaxtune import interop, report
from jaxtune.data.batch import Batch
from jaxtune.data.by_length import by_length
from jaxtune.data.encode import Example


def each(run: Tuned, examples: Sequence[Example], compute: Callable[[Batch], Any]) -> Any:
  """What `compute` gives for each example: its tree of `[B, ...]` arrays as one of `[N, ...]`.

  Raises:
    InputError: a token for which the model has no row.
  """
  interop.check_ids([example['tokens'] for example in examples], run.tok.encoder, run.model)
  size, limit = run.config.eval.batch_size, run.model.config.positions
  parts, places, tokens, started = [], [], 0, time.monotonic()
  with report.Progress(math.ceil(len(examples) / size)) as progress:
    for step, (at, batch) in enumerate(by_length(examples, size, limit=limit), 1):
      out = jax.device_get(compute(batch))
      parts.append(jax.tree.map(lambda x: x[: len(at)], out))  # noqa: B023
      places.append(at)
      tokens += int(batch['mask'][: len(at)].sum())
      progress.step(step, {'tokens_per_second': tokens / (time.monotonic() - started)})
  order = np.argsort(np.concatenate(places))
  return jax.tree.map(lambda *xs: np.concatenate(xs)[order], *parts)
