"""The rows of a run: read, split, and encoded for the configured task."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers

from experiments import tasks
from experiments.keys import Config
from jaxtune import data, interop
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

Record = dict[str, Any]
END_OF_TEXT = '<|endoftext|>'  # of a tokenizer trained here
TELLING = ('messages', 'prompt', 'completion', 'text', 'negative')  # by which encoders know a kind


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
  records, said = read_rows(config, path)
  records, dropped = data.deduplicate(records, duplicates_by(records[0]))
  sizes = {name: held_out(config.data[name], len(records)) for name in ('valid', 'test')}
  splits = data.split(records, sizes, config.seed)
  notes = [
    f'{pathlib.Path(path).name}: '
    + ', '.join(f'{len(rows):,} {name}' for name, rows in splits.items())
    + f' rows; {dropped:,} duplicates left out. Read as {said}.'
  ]
  return splits, notes


def read_rows(config: Config, path: str) -> tuple[list[Record], str]:
  """The rows of a file with the fields of their kind beside their columns, and what they are."""
  records = data.read(path)
  found = data.normalize(records, kind=kind(config), columns=columns(config), source=path)
  known = tasks.TASKS[config.task].kinds
  made, said = found.records, found.said
  if found.kind == 'labelled' and 'text' in known:
    said = 'plain text (the labels are not used)'
  elif found.kind not in known:
    raise InputError(
      f'{path}: these are {said}, and task {config.task} learns from {" or ".join(known)}; take '
      'another task, or set data.kind'
    )
  # Beside the fields of its kind a row keeps its columns, but none that makes another kind of it.
  hidden = set(TELLING) - {config.data.text}
  rows: list[Record] = [
    data.Row({**{k: v for k, v in old.items() if k not in hidden}, **new}, new.place)
    for old, new in zip(records, made, strict=True)
  ]
  if config.task == 'embedding' and 'text' in found.records[0]:
    pairs, left_out = data.halves(rows)
    said += f', of which the halves are pairs; {left_out:,} of one sentence were left out'
    return list(map(dict, pairs)), said
  return rows, said


def kind(config: Config) -> str | None:
  """The kind of the records where the configuration fixes it."""
  if config.data.kind:
    return config.data.kind
  if config.data.prompt:
    return 'completion'
  known = tasks.TASKS[config.task].kinds
  return known[0] if len(known) == 1 else None


def columns(config: Config) -> dict[str, str]:
  """Where fields have another name in the data than in their kind, or are filled by a template."""
  c = config.data
  named = {'text': c.text, 'label': c.label}
  if c.prompt:
    named = {'prompt': c.prompt, 'completion': c.completion}
  if kind(config) not in ('labelled', 'completion'):
    named = {name: column for name, column in named.items() if name == 'text' != column}
  return {**{name: column for name, column in named.items() if column != name}, **dict(c.columns)}


def duplicates_by(record: Record) -> str | None:
  """What makes two rows the same: what the model is asked, or all of it where that is compared."""
  compared = ({'chosen'}, {'positive'}, {'messages'}, {'tags'}, {'completion', 'label'})
  if any(fields <= set(record) for fields in compared):
    return None
  return 'prompt' if 'prompt' in record else 'text'


def held_out(size: float, rows: int) -> int:
  """A count from 1 up; below that a fraction of the rows, and then at least one of them."""
  return int(size) if size >= 1 or size == 0 else max(1, round(size * rows))


def encode(
  config: Config,
  tok: data.Tokenizer,
  model: ModelSpec,
  records: dict[str, list[Record]],
  notes: Sequence[str],
) -> Corpus:
  """Every split as token ids, and what was cut or left out on the way."""
  length, task = config.data.max_length, tasks.TASKS[config.task]
  if length > model.config.positions:
    raise InputError(
      f'data.max_length is {length}, but the model has {model.config.positions} positions; '
      f'set it to {model.config.positions} or less'
    )
  names: tuple[str, ...] = ()
  lines = list(notes)
  if task.names is not None:
    names = task.names(records['train'])
    lines += data.check_classes(records, 'tags' if 'tags' in task.kinds else 'label')
  together = config.data.pack or config.data.buckets  # a step may take more rows, or look ahead
  if config.train.steps and config.task != 'causal_lm' and not together:
    # What the steps will not reach need not be tokenized; the rows are in random order already.
    reach = config.train.steps * config.train.batch_size
    records = {**records, 'train': records['train'][:reach]}
  encoded = {
    split: encode_rows(config, tok, rows, names) for split, rows in records.items() if rows
  }
  for part in encoded.values():
    interop.check_ids(all_tokens(part.examples), tok.encoder, model)
  for split, part in encoded.items():
    lines += remarks(split, part, len(records[split]), length)
  nothing = data.Encoded([])
  return Corpus(
    train=encoded['train'],
    valid=encoded.get('valid', nothing),
    test=encoded.get('test', nothing),
    records=records,
    names=names,
    notes=tuple(lines),
  )


def all_tokens(examples: Iterable[Mapping[str, Any]]) -> Iterator[np.ndarray]:
  """The tokens of examples and of their parts."""
  for example in examples:
    if 'tokens' in example:
      yield example['tokens']
    yield from all_tokens(part for part in example.values() if isinstance(part, Mapping))


def remarks(split: str, part: data.Encoded, rows: int, length: int) -> list[str]:
  """What happened to the rows of a split on the way, a sentence each."""
  lines = []
  if part.truncated:
    ends = f'; {part.unfinished:,} lost the end of what is learned' if part.unfinished else ''
    lines.append(
      f'{part.truncated:,} of {rows:,} {split} rows are longer than {length} tokens and were '
      f'cut{ends}.'
    )
  if part.empty or part.unlearned:
    lines.append(
      f'{split}: {part.empty:,} rows without text and {part.unlearned:,} with nothing to learn '
      'were left out.'
    )
  if part.repeated:
    lines.append(
      f'{split}: {part.repeated:,} rows have the positive of another row, which in one batch '
      'counts as a negative of its anchor.'
    )
  return lines


def encode_rows(
  config: Config, tok: data.Tokenizer, rows: Sequence[Record], names: tuple[str, ...]
) -> data.Encoded:
  """Rows, as `read_rows` gives, as examples of the configured task."""
  if not config.data.end:
    tok = dataclasses.replace(tok, special=tok.special._replace(eos=None))
  return tasks.TASKS[config.task].encode(config, tok, rows, names)


def encode_unlabelled(config: Config, tok: data.Tokenizer, rows: Sequence[Record]) -> data.Encoded:
  """The column of text alone, for prediction; every row is kept."""
  c = config.data
  return data.encode_classification(
    rows, tok.encoder, text=c.text, label=None, max_length=c.max_length
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
  texts = [row['prompt'] if 'prompt' in row else row.get('text', '') for row in rows]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=config.decoder.vocabulary,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer
