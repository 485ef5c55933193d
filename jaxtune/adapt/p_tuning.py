"""P-tuning: the embeddings of a prompt come out of an MLP that trains with them.

Liu et al. 2021, arXiv:2103.10385.
"""

import dataclasses

import jax

from jaxtune.adapt.adapted import HEAD, Adapted
from jaxtune.adapt.lora_starts import uniform
from jaxtune.adapt.prompt import check_built_in, check_tokens, with_virtual
from jaxtune.typing import InputError, Key, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
  """The prompt `relu(relu(E W + b) V + c) U + d`, `[P, D]`, which is only ever made dense.

  Attributes:
    embedding: E, `[P, D]`.
    into, into_bias: W `[D, F]` and b `[F]`.
    hidden, hidden_bias: V `[F, F]` and c `[F]`.
    out, out_bias: U `[F, D]` and d `[D]`.
  """

  embedding: jax.Array
  into: jax.Array
  into_bias: jax.Array
  hidden: jax.Array
  hidden_bias: jax.Array
  out: jax.Array
  out_bias: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.embedding.shape

  def materialize(self) -> jax.Array:
    x = jax.nn.relu(self.embedding @ self.into + self.into_bias[None])
    x = jax.nn.relu(x @ self.hidden + self.hidden_bias[None])
    return x @ self.out + self.out_bias[None]

  def axes(self, names: tuple[str | None, ...]) -> 'EncodedPrompt':
    """Logical axes of the fields from those of the prompt; the hidden ones have none."""
    tokens, width = names
    fields = ((tokens, width), (width, None), (None,), (None, None), (None,), (None, width))
    return EncodedPrompt(*fields, (width,))  # type: ignore[arg-type]


def p_tuning(
  key: Key,
  params: Params,
  tokens: int = 20,
  hidden: int = 0,
  *,
  also: str | None = HEAD,
) -> Adapted:
  """Puts P virtual tokens before every text, made by an MLP, and trains them and the MLP.

  Of the paper's section 3.2, with PEFT's MLP (two hidden layers, ReLU) in place of the LSTM, and
  all virtual tokens before the text. What runs is prompt tuning (see `prompt`): after training only
  the result counts. `merge` makes it plain, and PEFT's files hold that.

  Args:
    key: for the start: embeddings standard normal, matrices and biases uniform within
      `1 / sqrt(in)`, as PEFT's.
    params: of a built-in decoder or encoder.
    tokens: P, at least 1; they take places of the model's context.
    hidden: F, the MLP's width; 0 for the model's.
    also: regular expression over parameters to train as they are, by default a fresh head.

  Raises:
    InputError: no built-in model, or one that has a prompt; no tokens, or a width below one.
  """
  check_built_in(params, 'p_tuning')
  check_tokens(tokens, 'p_tuning')
  width = params['embed']['tokens'].shape[-1]
  if hidden < 0:
    raise InputError(f"p_tuning: hidden is {hidden}; it must be at least 1, or 0 for the model's")
  embed_key, *keys = jax.random.split(key, 7)
  sides = [(width, hidden or width), (hidden or width,) * 2, (hidden or width, width)]
  layers = []
  for number, (inputs, outputs) in enumerate(sides):
    for own, shape in ((keys[2 * number], (inputs, outputs)), (keys[2 * number + 1], (outputs,))):
      layers.append(uniform(own, shape, inputs))
  leaf = EncodedPrompt(jax.random.normal(embed_key, (tokens, width)), *layers)
  return with_virtual(params, 'prompt', {'tokens': leaf}, also)
