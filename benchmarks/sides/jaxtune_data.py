"""A file of texts to packed batches with jaxtune: whole, and as a stream."""

import itertools
import json
import time
import zlib
from typing import Any

import numpy as np
import pipeline
import tokenizers

from jaxtune import data

PACKAGES = ('jaxtune', 'grain', 'numpy', 'tokenizers')
CHECKED = 32  # batches compared after the middle of a stream


def whole(options: Any, tok: data.Tokenizer) -> None:
  """Everything in memory: read, tokenize, and one pass over the batches of each strategy."""
  watch = pipeline.Watch()
  with watch('read'):
    records = data.read(options.file)
  with watch('tokenize'):
    examples = data.render_many(tok, records, max_length=options.length).examples
  fill = {}
  for pack in ('best_fit', 'concat', 'first_fit'):
    rows = data.steps_per_epoch(examples, 1, max_length=options.length, pack=pack)
    seen = []
    with watch(pack):
      batches = data.batches(examples, pipeline.BATCH, max_length=options.length, seed=0, pack=pack)
      for batch in itertools.islice(batches, -(-int(rows) // pipeline.BATCH)):
        seen.append(batch['mask'].mean())
    fill[pack] = float(np.mean(seen))
  # A block begins with the last token of the one before it.
  tokens = sum(int(example['supervised'].sum()) for example in examples) + len(records)
  pipeline.report(watch, PACKAGES, tokens=tokens, fill=fill)


def stream(options: Any, tok: data.Tokenizer) -> None:
  """One pass over a file; its middle is saved, or is where this process begins."""

  def encode(records: list) -> data.Encoded:
    return data.render_many(tok, records, max_length=options.length)

  def epoch(state: dict[str, Any]) -> int:
    return state['epoch'] if 'epoch' in state else epoch(state['parent'])

  def place(state: dict[str, Any]) -> int:
    return state['at'] if 'at' in state else place(state['parent'])

  size = options.file.stat().st_size
  batches = data.stream_batches(
    data.stream(options.file),
    encode,
    pipeline.BATCH,
    max_length=options.length,
    seed=0,
    pack='best_fit',
  )
  watch = pipeline.Watch()
  if options.cursor and options.cursor.exists():
    batches.set_state(json.loads(options.cursor.read_text()))
    with watch('first batch'):
      first = next(batches)
    check = checksum(itertools.chain([first], itertools.islice(batches, CHECKED - 1)))
    pipeline.report(watch, PACKAGES, check=check)
    return
  tokens = steps = check = real = 0
  saved = 0.0
  with watch('stream'):
    while True:
      state = batches.get_state()['cursor']
      if epoch(state):
        break
      if options.cursor and not options.cursor.exists() and place(state) > size / 2:
        before = time.perf_counter()
        options.cursor.write_text(json.dumps(batches.get_state()))
        check = checksum(itertools.islice(batches, CHECKED))
        batches.set_state(json.loads(options.cursor.read_text()))
        saved = time.perf_counter() - before
      mask = next(batches)['mask']
      tokens += int(mask.sum())
      real += mask.size
      steps += 1
  watch.seconds['stream'] -= saved
  pipeline.report(
    watch,
    PACKAGES,
    tokens=tokens,
    fill={'stream': tokens / real},
    steps=steps,
    check=check,
    bytes=size,
  )


def checksum(batches: Any) -> int:
  check = 0
  for batch in batches:
    for name in sorted(batch):
      check = zlib.crc32(np.ascontiguousarray(batch[name]).tobytes(), check)
  return check


def main() -> None:
  options = pipeline.arguments()
  encoder = tokenizers.Tokenizer.from_file(str(options.tokenizer))
  special = data.SpecialTokens(bos=encoder.token_to_id('[CLS]'), eos=encoder.token_to_id('[SEP]'))
  tok = data.Tokenizer(encoder, special)
  (stream if options.mode == 'stream' else whole)(options, tok)


if __name__ == '__main__':
  main()
