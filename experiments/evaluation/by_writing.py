"""A language model, by what it writes behind prompts."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.evaluation.measured import Measured
from experiments.keys import Config
from experiments.sources import Record
from experiments.tuned import Tuned
from jaxtune import report
from jaxtune.data.by_length import longest_first
from jaxtune.models.generate import generate
from jaxtune.report import generated
from jaxtune.typing import InputError


def metrics(config: Config) -> list[str]:
  """The names in `evaluate.metrics`.

  Raises:
    InputError: one that is not known, or there is nothing to compare with.
  """
  names = [name.strip() for name in config.evaluate.metrics.split(',') if name.strip()]
  generated.check(names)
  if names and not (config.task == 'causal_lm' and config.data.prompt):
    raise InputError(
      f'evaluate.metrics is {config.evaluate.metrics!r}, which compares what is written behind '
      'data.prompt with data.completion; set both, and task to causal_lm'
    )
  return names


def measure(run: Tuned, rows: Sequence[Record], names: Sequence[str]) -> Measured:
  """The metrics of what the likeliest tokens spell behind each prompt, beside its completion."""
  written = write(run, [row['prompt'] for row in rows])
  found = generated.generation(written, [row['completion'] for row in rows], names)
  lines = [{**row, 'written': text} for row, text in zip(rows, written, strict=True)]
  return Measured(found, lines)


def write(run: Tuned, prompts: Sequence[str]) -> list[str]:
  """What follows each prompt, in batches of about one length.

  Raises:
    InputError: a prompt that the model cannot read, or reads and cannot go on from.
  """
  c, positions = run.config, run.model.config.positions
  ids = [run.tok.encoder.encode(text, add_special_tokens=False).ids for text in prompts]
  for number, (text, tokens) in enumerate(zip(prompts, ids, strict=True), 1):
    if not 0 < len(tokens) < positions:
      raise InputError(
        f'row {number} ({text[:40]!r}): its prompt has {len(tokens):,} tokens, and the model has '
        f'{positions:,} positions; there must be at least one, and room for one more'
      )
  size = c.eval.batch_size
  texts: dict[int, Any] = {}
  with report.Progress(math.ceil(len(ids) / size)) as progress:
    for step, places in enumerate(longest_first([len(tokens) for tokens in ids], size), 1):
      out = generate(
        run.model,
        run.params,
        [ids[i] for i in places],
        max_tokens=c.evaluate.new_tokens,
        eos=run.tok.special.ends,
        tokenizer=run.tok.encoder,
      )
      texts.update((i, one.text) for i, one in zip(places, out, strict=True))
      progress.step(step, {})
  return [texts[i] for i in range(len(prompts))]
