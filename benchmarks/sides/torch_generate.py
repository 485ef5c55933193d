"""Greedy text of torch: `generate` of Transformers on a folder of weights, one prompt."""

import writing


def main() -> None:
  options = writing.arguments()
  import torch
  import transformers

  torch.set_num_threads(options.threads)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    options.folder, dtype=getattr(torch, options.dtype)
  ).eval()

  def write(prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=count,
      min_new_tokens=count,
      pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()

  writing.report(write, options, ('torch', 'transformers'), {})


if __name__ == '__main__':
  main()
