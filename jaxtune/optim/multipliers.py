"""Learning rates per parameter, as tables of path rules for `multiply_by_rules`.

Chain two of them to multiply both. Rules put before a table, `[(pattern, number), *table]`, come
first and win. Decoupled decay that is part of the update is multiplied too; `add_independent_decay`
after the table is not.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxtune import tree
from jaxtune.optim.lora_pairs import find_pairs
from jaxtune.optim.per_layer import STACKED
from jaxtune.optim.precision import in_precision
from jaxtune.optim.tables import DECAYED
from jaxtune.typing import InputError, Params

Table = Sequence[tuple[str, Any]]

EMBEDDINGS = r'(?i)embed|(^|/)(wte|wpe)(/|$)'
LAYERS = r'(?:^|/)(\d+)(?:-(\d+))?/'  # layer 3, or layers 0-11 stacked
SECOND_FACTORS = r'/b$|(^|/)lora_[bB](/|$)'  # attn/q/b of adapt.LoRA; others' lora_b, lora_B


def layerwise_decay(params: Params, rate: float) -> Table:
  r"""Lower learning rates for lower layers: $\mathrm{rate}^{N-l}$ for layer $l = 0, \dots, N-1$.

  Embeddings, tied ones too, get $\mathrm{rate}^{N+1}$; heads, poolers, final norms and all else
  outside the layers 1 (Clark et al., arXiv 2003.10555; Bao et al., arXiv 2106.08254). The first
  number in a path is the layer, as in `encoder/3/` and `encoder/0-5/`; a stack gets one multiplier
  for each of its layers. For fine-tuning; usual rates are 0.65 to 0.95.

  Args:
    params: the parameters, or the trainable part of them.
    rate: in (0, 1]; 1 changes nothing.

  Raises:
    InputError: a rate out of range, or no path with the number of a layer.
  """
  if not 0 < rate <= 1:
    raise InputError(f'layerwise_decay: rate is {rate!r}; give a number in (0, 1]')
  paths = tree.paths(params)
  found = [match for match in (re.search(LAYERS, path) for path in paths) if match]
  stacks = {match.string[: match.end()]: match for match in found}  # 'encoder/0-5/', 'encoder/6/'
  if not stacks:
    raise InputError(
      'layerwise_decay: no parameter has the number of a layer in its path, as encoder/3/ and '
      f'encoder/0-5/ have; the first is {paths[0] if paths else None!r}'
    )
  depths: dict[str, int] = {}  # by what stands before the number: an encoder and a decoder differ
  for m in stacks.values():
    before = m.string[: m.start(1)]
    depths[before] = max(depths.get(before, 0), int(m[2] or m[1]) + 1)
  rules: list[tuple[str, Any]] = []
  for stack, m in stacks.items():
    layers = np.arange(int(m[1]), int(m[2]) + 1) if m[2] else int(m[1])
    rules.append((f'^{re.escape(stack)}', rate ** (depths[m.string[: m.start(1)]] - layers)))
  return [*rules, (EMBEDDINGS, rate ** (max(depths.values()) + 1)), ('', 1.0)]


def mup(params: Params, base: Params, *, axes: Sequence[tuple[str, int]] = STACKED) -> Table:
  r"""muP for Adam: what sums over the width learns at $1/m$, $m$ = fan-in / the base's fan-in.

  An axis belongs to the width if its size differs from the base model's. Leaves with two such axes
  (hidden matrices, $m$ from the first, as weights are `[in, out]`), or with one that is not their
  last (the output head), get $1/m$. All else gets 1: embeddings, biases, norms (Yang et al., arXiv
  2203.03466, Table 3). For rules whose step does not depend on the gradient's size: Adam, Lion.

  It makes rates transfer only together with the rest of Table 3: variances at the start of
  $\propto 1/\text{fan-in}$, of the head $\propto 1/\text{fan-in}^2$ (or zero), and attention logits
  divided by the head width instead of its root. Table 8 is the same training with logits divided by
  $m$ in the forward pass and a head whose variance and rate stay: put `('^head/', 1.0)` before the
  table. Tied embeddings need that form.

  Args:
    params: the parameters, or their shapes.
    base: those of the model whose learning rate is known (`spec.shapes()`), of the same depth and
      vocabulary.
    axes: `(pattern, number of stacked leading axes)`, which are no width.

  Raises:
    InputError: trees with different paths; a leaf with three axes that differ.
  """
  mine, theirs = tree.routing(axes, params), tree.routing(axes, base)
  for a, b in zip(mine, theirs, strict=False):
    if a.path != b.path or len(a.shape) != len(b.shape):
      raise InputError(
        f'mup: {a.path!r} of shape {a.shape} stands where the base model has {b.path!r} of shape '
        f'{b.shape}; give a base that differs in width alone'
      )
  if len(mine) != len(theirs):
    raise InputError(f'mup: {len(mine)} parameters, but the base model has {len(theirs)}')
  rules = []
  for a, b in zip(mine, theirs, strict=True):
    sizes = list(zip(a.shape, b.shape, strict=True))[a.value :]
    wide = [i for i, (size, known) in enumerate(sizes) if size != known]
    if len(wide) > 2:
      raise InputError(f'mup: {a.path!r} of shape {a.shape} has over two axes unlike {b.shape}')
    if len(wide) == 2 or (wide and wide[0] < len(sizes) - 1):
      size, known = sizes[wide[0]]
      rules.append((f'^{re.escape(a.path)}$', known / size))
  return [*rules, ('', 1.0)]


def complete_p(depth: int, base_depth: int, alpha: float = 1.0) -> Table:
  r"""CompleteP's multipliers for depth: $m_L^{\alpha - 1}$ inside the layers, 1 elsewhere.

  $m_L$ = `depth / base_depth`. Inside the layers is what has the number of one in its path:
  matrices, biases and norms (Dey et al., arXiv 2505.01618, Table 1). Chain it with `mup` for the
  width.

  $\alpha = 1$ is CompleteP, and there *every multiplier is 1*: what it changes is the model,
  $x + m_L^{-\alpha} f(x)$ in each residual block, and Adam's `eps`, times $m_L^{-\alpha}$ and, with
  `mup`, $1/m$. $\alpha = 1/2$ is the older rule that the paper compares with.

  Args:
    depth: layers of the model.
    base_depth: layers of the model whose learning rate is known.
    alpha: exponent of the residual multiplier, in [1/2, 1].

  Raises:
    InputError: a depth below 1, an alpha out of range.
  """
  if min(depth, base_depth) < 1 or not 0.5 <= alpha <= 1:
    raise InputError(
      f'complete_p: depth is {depth!r}, base_depth {base_depth!r}, alpha {alpha!r}; give depths of '
      'at least 1 and an alpha in [0.5, 1]'
    )
  return [(LAYERS, (depth / base_depth) ** (alpha - 1)), ('', 1.0)]


def lora_plus_rates(ratio: float = 16.0) -> Table:
  r"""LoRA+: the second factor B learns `ratio` times as fast as all else.

  In $W + s A B$ with A `[in, r]` and B `[r, out]`, B starting at zero (the paper writes $B A$;
  Hayou et al., arXiv 2402.12354). Goes by name: fields `b`, and `lora_b` or `lora_B`.

  Args:
    ratio: rate of B over that of A, >= 0; the paper's advice is about 16.
  """
  return [(SECOND_FACTORS, ratio), ('', 1.0)]


def lora_plus(
  learning_rate: optax.ScalarOrSchedule,
  ratio: float = 16.0,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  *,
  weight_decay: float = 0.0,
  mask: Any = DECAYED,
) -> optax.GradientTransformationExtraArgs:
  r"""LoRA+: AdamW whose learning rate for the second factor B of LoRA is `ratio` times as large.

  $\eta_B = \lambda \eta_A$ (Hayou et al., arXiv 2402.12354). Everything that is no B, a head
  trained beside the adapter included, learns at $\eta_A$; PEFT's `create_loraplus_optimizer` also
  takes vectors for B, and has a third rate for embeddings. B's decay, being decoupled, is
  multiplied too, there as here.

  Args:
    learning_rate: $\eta_A$, a number or a function from the step to a number.
    ratio: $\lambda$, >= 0.
    b1: weight of the past in the first moment.
    b2: weight of the past in the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled.
    mask: which parameters decay, as Optax's masks are given; see `DECAY`.

  Raises:
    InputError: at `init`, parameters without a pair of factors, see `find_pairs`.
  """
  return in_precision(
    optax.chain(
      optax.scale_by_adam(b1, b2, eps),
      optax.add_decayed_weights(weight_decay, mask),
      _times_second_factors(ratio),
      optax.scale_by_learning_rate(learning_rate),
    )
  )


def _times_second_factors(ratio: float | jax.Array) -> optax.GradientTransformation:
  """`multiply_by_rules(lora_plus_rates(ratio))` for a ratio that may be traced."""

  def init(params):
    if jax.tree.leaves(params) and not find_pairs(params):
      raise InputError(
        'lora_plus: no parameters are factors a and b of LoRA; adapt the model with adapt.lora '
        'first and train them, name yours lora_a and lora_b, or use adamw'
      )
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    seconds = {pair.b for pair in find_pairs(updates)}
    leaves, structure = jax.tree.flatten(updates)
    return structure.unflatten(
      jnp.asarray(ratio, x.dtype) * x if i in seconds else x for i, x in enumerate(leaves)
    ), state

  return optax.GradientTransformation(init, update)
