"""The wall between a model and everything else: functions of parameters, and a few facts."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxtune import ops, shard, tree
from jaxtune.typing import Key, Params

Task = Literal[
  'features', 'causal_lm', 'masked_lm', 'seq2seq', 'classification', 'token_classification'
]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """A model as pure functions of its parameters.

  Attributes:
    family: 'encoder', 'decoder', 'encoder_decoder', 'vision', or the class name of a user's own
      module.
    config: the hyperparameters that fix all shapes.
    task: what `apply` returns: hidden states, logits of the next or of the masked tokens, or one
      row of outputs a text or a token.
    init: `(key) -> params`.
    features: `(params, tokens, mask=None, *, positions, segments, key) -> [B, T, D]`, the last
      hidden states. `key` switches dropout on.
    head: `(params, features, mask=None) -> outputs`. For a causal model it also takes `[N, D]`, so
      that a loss can ask for the logits of a few rows at a time.
    axis_rules: path rules to the logical names of a weight's axes, without the stacked one.
    start_cache: `(params, rows, size, dtype) -> models.Cache`, for `size` tokens a row, which holds
      nothing but a prompt or a prefix of the parameters; None for a model that does not generate.
    extend: `(params, tokens, cache, mask=None) -> [B, T, D], cache`: the hidden states of new
      tokens that see those in the cache, which then holds them too.
    source: what the parameters were read from, for `interop.save_hf`; None for nothing.
  """

  family: str
  config: Any
  task: Task
  init: Callable[..., Params]
  features: Callable[..., jax.Array]
  head: Callable[..., jax.Array]
  axis_rules: tree.Rules = ()
  start_cache: Callable[..., Any] | None = None
  extend: Callable[..., tuple[jax.Array, Any]] | None = None
  source: str | None = None

  def apply(
    self, params: Params, tokens: jax.Array, mask: jax.Array | None = None, **options: Any
  ) -> jax.Array:
    """`head(params, features(params, tokens, mask, ...), mask)`.

    Args:
      params: the parameters; any weight may be a weight leaf.
      tokens: int32 `[B, T]`; images of an image model, float `[B, H, W, C]`.
      mask: bool `[B, T]`, true for real tokens; None when all are.
      **options: `positions` int32 `[B, T]`, `segments` int32 `[B, T]`, `key` for dropout; of an
        encoder-decoder `targets` int32 `[B, U]` and `target_mask` bool `[B, U]`.

    Returns:
      `[B, T, D]` hidden states, `[B, T, V]` logits, `[B, C]` or `[B, T, C]` outputs, by `task`.
    """
    return self.head(params, self.features(params, tokens, mask, **options), mask)

  def shapes(self) -> Params:
    """The parameters as shapes and types, without making them."""
    return jax.eval_shape(self.init, jax.random.key(0))

  def axes(self, params: Params) -> Any:
    """Logical axis names of every leaf: `('layers', 'embed', 'heads')` for a stacked `attn/q`.

    A weight leaf names the axes of its own fields from those of the weight.
    """

    if not self.axis_rules:  # a user's own module
      return tree.map_weights(lambda _, leaf: ops.axes(leaf, (None,) * len(leaf.shape)), params)
    return logical_axes(self.axis_rules, params)

  @property
  def units(self) -> dict[str, int]:
    """Entries of a logical axis that stay together where it is cut: those of a head."""
    width = getattr(self.config, 'head_width', 0)
    return {'heads': width, 'kv_heads': width} if width else {}


def logical_axes(rules: tree.Rules, params: Params) -> Any:
  """The logical axis names of every leaf by its path, `layers` ahead where layers are stacked."""

  def names(path: str, leaf: Any) -> Any:
    axes = tree.match(rules, {path: jax.ShapeDtypeStruct((), 'float32')})[path]
    return ops.axes(leaf, ('layers', *axes) if tree.is_stacked(path) else tuple(axes))

  return tree.map_weights(names, params)


def gathered(rules: tree.Rules, params: Params, *names: str) -> Params:
  """Parameters as they are computed with, see `shard.gathered`; with names those entries alone."""
  own = {name: params[name] for name in names or params}
  return {**params, **shard.gathered(own, logical_axes(rules, own))}


def no_head(params: Params, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """The head of a model that hands its features on."""
  del params, mask
  return features


def init_head(key: Key, width: int, outputs: int, scale: float = 0.02) -> jax.Array:
  """A fresh `[D, C]` matrix, normal with a standard deviation of `scale` (BERT's own choice)."""
  return scale * jax.random.normal(key, (width, outputs))
