"""Prompts to answer, for learning from the rewards of one's own answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.data.column import column
from jaxtune.data.encode import Encoded, Example
from jaxtune.data.render import render_many
from jaxtune.data.row import RecordError, place
from jaxtune.data.tokenizer import Tokenizer


def encode_prompts(
  tok: Tokenizer,
  records: Sequence[Mapping[str, Any]],
  max_length: int,
  source: str = 'the data',
) -> Encoded:
  """Examples `{tokens int32 [n], row int32}` of `{prompt, ...}`, a text or messages.

  The tokens are those that `data.render` puts ahead of a completion, so that a policy is prompted
  exactly as it was tuned: of messages up to where the assistant begins. `row` is the record's place
  in `records`, by which a reward finds its other columns, such as `answer`.

  Prompts are not cut: without its end a question is another one.

  Raises:
    InputError: as `data.render`, with the row; a prompt that is empty or longer than `max_length`.
  """
  prompts = column(records, 'prompt', source)
  rows = []
  for row, (record, prompt) in enumerate(zip(records, prompts, strict=True), 1):
    if isinstance(prompt, str) and not prompt:
      raise RecordError(f'{place(record, row, source)}: the prompt is empty; give it a text')
    completion = 'a' if isinstance(prompt, str) else [{'role': 'assistant', 'content': 'a'}]
    rows.append({**record, 'completion': completion})
    for other in ('messages', 'text'):
      rows[-1].pop(other, None)
  examples: list[Example] = []
  for row, (tokens, learned) in enumerate(render_many(tok, rows, 'completion', source=source)):
    prompt = tokens[: int(learned.argmax())]
    if len(prompt) > max_length:
      raise RecordError(
        f'{place(records[row], row + 1, source)}: the prompt has {len(prompt):,} tokens, and '
        f'max_length is {max_length:,}; raise it, or shorten or remove the row'
      )
    examples.append({'tokens': prompt, 'row': np.int32(row)})
  return Encoded(examples)
