"""Batches a second of jaxtune: of examples in memory, or of a file as it is read, on devices."""

import jax
import pipeline
import tokenizers

from jaxtune import data, shard

PACKAGES = ('jaxtune', 'grain', 'numpy', 'tokenizers', 'jax')
MODES = {
  'padded': {},
  'by length': {'buckets': (64, 128)},
  'best_fit': {'pack': 'best_fit'},
  'first_fit': {'pack': 'first_fit'},
  'concat': {'pack': 'concat'},
}


def main() -> None:
  options = pipeline.arguments()
  tok = data.Tokenizer(tokenizers.Tokenizer.from_file(str(options.tokenizer)))
  size = {'max_length': options.length, 'seed': 0}
  if options.mode == 'stream':

    def encode(records: list) -> data.Encoded:
      return data.render_many(tok, records, max_length=options.length)

    records = data.stream(options.file)
    batches = data.stream_batches(records, encode, pipeline.ROWS, pack='best_fit', **size)
  else:
    records = data.read(options.file)
    examples = data.render_many(tok, records, max_length=options.length).examples
    batches = data.batches(examples, pipeline.ROWS, **MODES[options.mode], **size)
  mesh = shard.mesh(None)

  def one() -> int:
    batch = next(batches)
    jax.block_until_ready(shard.place_batch(mesh, batch))
    return int(batch['mask'].sum())

  pipeline.rate(one, options.batches, PACKAGES, options.mode == 'stream')


if __name__ == '__main__':
  main()
