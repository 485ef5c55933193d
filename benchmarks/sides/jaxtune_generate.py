"""Greedy text of jaxtune: `models.generate` on a folder of weights, one prompt."""

import writing


def main() -> None:
  options = writing.arguments()
  import jax

  from jaxtune import interop, models

  model, params = interop.load(options.folder, dtype=options.dtype)

  def write(prompt: list[int], count: int) -> list[int]:
    return list(models.generate(model, params, [prompt], max_tokens=count)[0].tokens)

  # How fast memory is read where nothing else is done: the sum of all weights.
  total = jax.jit(lambda tree: sum(leaf.sum(dtype='float32') for leaf in jax.tree.leaves(tree)))
  seconds = min(writing.timed(lambda: total(params).block_until_ready()) for _ in range(20))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  writing.report(write, options, ('jax', 'jaxtune'), {'bytes': size, 'read_seconds': seconds})


if __name__ == '__main__':
  main()
