"""The rows of a run: read, split, and encoded for the configured task."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from experiments.keys import Config
from jaxtune import data, interop
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

Record = dict[str, Any]
END_OF_TEXT = '<|endoftext|>'  # of a tokenizer trained here


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The data of a run, encoded: what is learned, what chooses, and what only measures."""

  train: data.Encoded
  valid: data.Encoded
  test: data.Encoded
  records: dict[str, list[Record]]
  names: tuple[str, ...]
  notes: tuple[str, ...]


def resolve(source: str) -> str:
  """A path or Hub id as it is; `package://NAME/PATH` as the file inside the installed package."""
  match = re.fullmatch(r'package://(\w+)/(.+)', source)
  if not match:
    return source
  spec = importlib.util.find_spec(match[1])
  if spec is None or not spec.submodule_search_locations:
    raise InputError(f'{source}: the package {match[1]!r} is not installed')
  return str(pathlib.Path(spec.submodule_search_locations[0]) / match[2])


def read_records(config: Config) -> tuple[dict[str, list[Record]], list[str]]:
  """Rows of each split, without duplicates, and remarks for the report."""
  path = resolve(config.data.path)
  records = read_rows(config, path)
  field = 'prompt' if config.data.prompt else config.data.text
  records, dropped = data.deduplicate(records, field)
  sizes = {name: held_out(config.data[name], len(records)) for name in ('valid', 'test')}
  splits = data.split(records, sizes, config.seed)
  notes = [
    f'{pathlib.Path(path).name}: '
    + ', '.join(f'{len(rows):,} {name}' for name, rows in splits.items())
    + f' rows; {dropped:,} duplicates left out.'
  ]
  return splits, notes


def read_rows(config: Config, path: str) -> list[Record]:
  """The rows of a file, its columns checked; for pairs, as their prompts and completions."""
  records = data.read(path)
  if not config.data.prompt:
    data.column(records, config.data.text, path)
  if config.data.prompt:
    records = [render(config, row, number) for number, row in enumerate(records, 1)]
  return records


def render(config: Config, row: Record, number: int) -> Record:
  """The row as `prompt` and `completion`: a column each, or a template over the columns."""

  def text(name: str) -> str:
    template = config.data[name]
    try:
      return template.format_map(row) if '{' in template else str(row[template])
    except KeyError as error:
      raise InputError(
        f'data.{name} asks for the column {error.args[0]!r}, which row {number} does not have; '
        f'its columns are {", ".join(row)}'
      ) from None
    except (ValueError, IndexError) as error:
      raise InputError(f'data.{name} is not a template like "{{column}}": {error}') from None

  return {'prompt': text('prompt'), 'completion': text('completion')}


def held_out(size: float, rows: int) -> int:
  """A count from 1 up; below that a fraction of the rows, and then at least one of them."""
  return int(size) if size >= 1 or size == 0 else max(1, round(size * rows))


def encode(
  config: Config,
  tokenizer: tokenizers.Tokenizer,
  special: data.SpecialTokens,
  model: ModelSpec,
  records: dict[str, list[Record]],
  notes: Sequence[str],
) -> Corpus:
  """Every split as token ids, and what was cut or left out on the way."""
  length = config.data.max_length
  if length > model.config.positions:
    raise InputError(
      f'data.max_length is {length}, but the model has {model.config.positions} positions; '
      f'set it to {model.config.positions} or less'
    )
  names: tuple[str, ...] = ()
  if config.task == 'classification':
    names = data.label_names(records['train'], config.data.label)
  if config.train.steps and config.task != 'causal_lm':
    # What the steps will not reach need not be tokenized; the rows are in random order already.
    reach = config.train.steps * config.train.batch_size
    records = {**records, 'train': records['train'][:reach]}
  encoded = {
    split: encode_rows(config, tokenizer, special, rows, names)
    for split, rows in records.items()
    if rows
  }
  for part in encoded.values():
    interop.check_ids((example['tokens'] for example in part.examples), tokenizer, model)
  lines = list(notes)
  for split, part in encoded.items():
    cut = f'{part.truncated:,} of {len(records[split]):,} {split} rows are longer than {length} '
    if part.truncated:
      lines.append(cut + 'tokens and were cut.')
    if part.empty or part.unlearned:
      lines.append(
        f'{split}: {part.empty:,} rows without text and {part.unlearned:,} with nothing to learn '
        'were left out.'
      )
  nothing = data.Encoded([])
  return Corpus(
    train=encoded['train'],
    valid=encoded.get('valid', nothing),
    test=encoded.get('test', nothing),
    records=records,
    names=names,
    notes=tuple(lines),
  )


def encode_rows(
  config: Config,
  tokenizer: tokenizers.Tokenizer,
  special: data.SpecialTokens,
  rows: Sequence[Record],
  names: tuple[str, ...],
  labelled: bool = True,
) -> data.Encoded:
  """Rows as examples of the configured task; without labels for prediction."""
  c = config.data
  label = c.label if labelled else None
  if config.task == 'classification':
    return data.encode_classification(
      rows, tokenizer, text=c.text, label=label, names=names, max_length=c.max_length
    )
  if config.task == 'regression':
    return data.encode_regression(
      rows, tokenizer, text=c.text, label=label, max_length=c.max_length
    )
  if c.prompt:
    return data.encode_completions(
      rows,
      tokenizer,
      prompt='prompt',
      completion='completion',
      max_length=c.max_length,
      eos=special.eos,
    )
  return data.encode_text(
    rows, tokenizer, text=c.text, max_length=c.max_length, bos=special.bos, eos=special.eos
  )


def eval_batches(config: Config, part: data.Encoded) -> list[dict[str, Any]]:
  """Every example once and in order, in batches of one shape; none without examples."""
  if not part.examples:
    return []
  return data.eval_batches(
    part.examples,
    config.eval.batch_size,
    max_length=config.data.max_length,
    pack=config.data.pack,
  )


def of_real_rows(
  batches: Sequence[Mapping[str, Any]], compute: Callable[[Mapping[str, Any]], jax.Array]
) -> np.ndarray:
  """What `compute(batch)` gives for every example, in order, without the rows that fill up."""
  return np.concatenate(
    [np.asarray(compute(batch))[np.asarray(batch['weight']) > 0] for batch in batches]
  )


def train_tokenizer(config: Config, rows: Sequence[Record]) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer of `decoder.vocabulary` tokens, trained on the training rows."""
  field = 'prompt' if config.data.prompt else config.data.text
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=config.decoder.vocabulary,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(data.column(rows, field), trainer)
  return tokenizer
