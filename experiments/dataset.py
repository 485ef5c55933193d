"""The rows of a run encoded for the configured task."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import tokenizers

from experiments import sources, tasks
from experiments.keys import Config
from experiments.sources import Record, Rows
from jaxtune import data, interop
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError

WINDOW = 4096  # rows of a stream that are shuffled among each other
END_OF_TEXT = '<|endoftext|>'  # of a tokenizer trained here


class Stream(NamedTuple):
  """What is learned where that is no one list of examples.

  Attributes:
    records: without end.
    encode: some of them to examples.
    window: records that are shuffled among each other.
  """

  records: grain.IterDataset
  encode: Callable[[Sequence[Any]], data.Encoded]
  window: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The data of a run, encoded: what is learned, what chooses, and what only measures.

  Where `stream` is given it is learned, and `train` holds all examples of a mixture, or the first
  ones of a stream. Rows that cannot be used are in `skipped`, which counts on as a stream is read.
  """

  train: data.Encoded
  valid: data.Encoded
  test: data.Encoded
  records: dict[str, list[Record]]
  names: tuple[str, ...]
  notes: tuple[str, ...]
  stream: Stream | None = None
  skipped: data.Skipped | None = None

  def remarks(self) -> list[str]:
    """All that a person should know of the data by now."""
    left_out = self.skipped.remark() if self.skipped else ''
    return [*self.notes, *([left_out] if left_out else [])]


def encode(config: Config, tok: data.Tokenizer, model: ModelSpec, rows: Rows) -> Corpus:
  """Every split as token ids, and what was cut or left out on the way."""
  length, task = config.data.max_length, tasks.TASKS[config.task]
  if length > model.config.positions:
    raise InputError(
      f'data.max_length is {length}, but the model has {model.config.positions} positions; '
      f'set it to {model.config.positions} or less'
    )
  names: tuple[str, ...] = ()
  records, learned, lines = {**rows.splits}, rows.learned, list(rows.notes)
  if task.names is not None:
    names = task.names(records['train'])
    lines += data.check_classes(records, 'tags' if 'tags' in task.kinds else 'label')

  def encoded(some: Sequence[Record]) -> data.Encoded:
    found = encode_rows(config, tok, some, names)
    interop.check_ids(all_tokens(found.examples), tok.encoder, model)
    return found

  def usable(some: Sequence[Record]) -> data.Encoded:
    return data.usable(some, encoded, rows.skipped)[1]

  def of_split(split: str) -> data.Encoded:
    if not records[split]:
      return data.Encoded([])
    kept, part = data.usable(records[split], encoded, rows.skipped)
    records[split] = [*kept]
    return part

  stream = None
  if config.data.stream:
    train = of_split('train')
    stream = Stream(sources.mixed(config, learned), usable, WINDOW)
  elif len(learned) > 1:
    several = {name: usable(some) for name, some in learned.items()}
    train = joined(several.values())
    examples = {name: part.examples for name, part in several.items()}
    # Each file is shuffled already, and every step gets the shares.
    whole = sources.mixed(config, examples)
    stream = Stream(whole, lambda some: data.Encoded(list(some)), config.train.batch_size)
  else:
    records['train'] = reached(config, records['train'])
    train = of_split('train')
  valid, test = of_split('valid'), of_split('test')
  for split, part in (('train', train), ('valid', valid), ('test', test)):
    lines += remarks(split, part, len(records[split]), length)
  return Corpus(
    train=train,
    valid=valid,
    test=test,
    records=records,
    names=names,
    notes=tuple(lines),
    stream=stream,
    skipped=rows.skipped,
  )


def reached(config: Config, rows: list[Record]) -> list[Record]:
  """The rows that the steps will reach; others need not be tokenized. Their order is random."""
  together = config.data.pack or config.data.buckets  # a step may take more rows, or look ahead
  if not config.train.steps or config.task == 'causal_lm' or together:
    return rows
  return rows[: config.train.steps * config.train.batch_size]


def joined(parts: Iterable[data.Encoded]) -> data.Encoded:
  """The examples of all parts, and their counts."""
  first, *others = parts
  for part in others:
    counts = {
      name: value + getattr(part, name)
      for name, value in first._asdict().items()
      if isinstance(value, int)
    }
    first = first._replace(examples=first.examples + part.examples, **counts)
  return first


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
