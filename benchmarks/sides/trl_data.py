"""The same file to packed rows as TRL's SFTTrainer does it: datasets' map, then pack_dataset."""

import tempfile

import pipeline


def main() -> None:
  options = pipeline.arguments()
  import datasets
  import transformers
  from trl import pack_dataset

  datasets.disable_caching()
  datasets.disable_progress_bars()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(options.tokenizer), cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]'
  )
  several = {'num_proc': options.processes} if options.processes > 1 else {}
  watch = pipeline.Watch()
  with tempfile.TemporaryDirectory() as cache:
    with watch('read'):
      dataset = datasets.load_dataset(
        'json', data_files=str(options.file), split='train', cache_dir=cache
      )
    with watch('tokenize'):
      dataset = dataset.map(
        # SFTTrainer maps one record at a time; 'batched' is what a user may do beforehand.
        lambda row: {'input_ids': tokenizer(text=row['text'], verbose=False)['input_ids']},
        batched=options.mode == 'batched',
        remove_columns=dataset.column_names,
        **several,
      )
    tokens = sum(map(len, dataset['input_ids']))
    fill = {}
    for strategy in ('bfd', 'wrapped'):
      with watch(strategy):
        packed = pack_dataset(dataset, options.length, strategy, several)
      lengths = [len(row) for row in packed['input_ids']]
      fill[strategy] = sum(lengths) / (len(lengths) * options.length)
    pipeline.report(
      watch,
      ('trl', 'datasets', 'transformers', 'tokenizers', 'pyarrow'),
      tokens=tokens,
      fill=fill,
    )


if __name__ == '__main__':
  main()
