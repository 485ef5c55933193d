"""The same batches from torch's DataLoader with the collator of TRL's SFTTrainer."""

import itertools

import pipeline


def main() -> None:
  options = pipeline.arguments()
  import datasets
  import transformers
  from torch.utils.data import DataLoader
  from trl import pack_dataset
  from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

  datasets.disable_progress_bars()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(options.tokenizer), cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]'
  )
  stream = options.mode == 'stream'
  dataset = datasets.load_dataset(
    'json', data_files=str(options.file), split='train', streaming=stream
  ).map(
    lambda rows: {
      'input_ids': tokenizer(text=rows['text'], truncation=True, max_length=options.length)[
        'input_ids'
      ]
    },
    batched=True,
    remove_columns=['text'],
  )
  strategy = {'best_fit': 'bfd', 'concat': 'wrapped'}.get(options.mode)
  if strategy:
    dataset = pack_dataset(dataset, options.length, strategy)
  elif stream:
    dataset = dataset.shuffle(seed=0, buffer_size=4096)
  if not stream:
    dataset = dataset.with_format(None)
  loader = DataLoader(
    dataset,
    batch_size=pipeline.ROWS,
    shuffle=None if stream else True,
    collate_fn=DataCollatorForLanguageModeling(
      pad_token_id=tokenizer.pad_token_id, padding_free=bool(strategy)
    ),
    num_workers=options.processes - 1,
    drop_last=True,
  )
  batches = itertools.chain.from_iterable(itertools.repeat(loader))

  def one() -> int:
    batch = next(batches)
    if 'attention_mask' in batch:
      return int(batch['attention_mask'].sum())
    return batch['input_ids'].numel()

  pipeline.rate(one, options.batches, ('torch', 'trl', 'datasets'), stream)


if __name__ == '__main__':
  main()
