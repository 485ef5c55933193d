"""The model of a run: placed, quantized, under a fresh head, and adapted by the method."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import tokenizers

from experiments import tasks
from experiments.keys import Config
from jaxtune import adapt, interop, models, shard, tree
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


def streams(config: Config) -> jax.Array:
  """Keys for a model from scratch, for a fresh head, and for the method."""
  return jax.random.split(jax.random.key(config.seed), 3)


def pretrained(config: Config, source: str, **options: Any) -> tuple[ModelSpec, Params]:
  """The model of a folder or file, with as many of its layers as the configuration wants."""
  model, params = interop.load(source, dtype=config.dtype or None, **options)
  return models.student(model, params, config.layers) if config.layers else (model, params)


def mesh_sizes(config: Config) -> dict[str, int]:
  """Devices along each axis of the mesh."""
  return {name: config.mesh[name] for name in shard.AXES}


def shardings(config: Config, model: ModelSpec, params: Params) -> Any:
  """Where parameters, or their shapes, lie on the mesh."""
  return shard.param_shardings(
    shard.mesh(mesh_sizes(config)),
    params,
    model.axes(params),
    units=model.units,
    replicate=config.mesh.replicate,
  )


def placement(config: Config) -> Callable[[ModelSpec, Params], Any] | None:
  """Where parameters go while they are read: onto the mesh if it cuts them, else one device."""
  mesh = shard.mesh(mesh_sizes(config))
  if all(mesh.shape[axis] == 1 for axis in set(shard.PARAMETERS.values())):
    return None
  return functools.partial(shardings, config)


def headed(
  config: Config,
  key: jax.Array,
  model: ModelSpec,
  params: Params,
  outputs: int,
  names: tuple[str, ...],
) -> tuple[ModelSpec, Params]:
  """The model under a fresh head, or under that of the adapter that the run starts from.

  Raises:
    InputError: the adapter's head is for other labels.
  """
  adapter = config.method.adapter
  if adapter:
    own, headed = interop.adapter_head(adapter, model, params)
    if own.config.outputs:
      labels = interop.load_labels(adapter) or names
      if own.config.outputs != outputs or tuple(labels) != tuple(names):
        raise InputError(
          f'method.adapter {adapter!r} tells {own.config.outputs} labels apart '
          f'({", ".join(labels)}), but the data has {", ".join(names) or outputs}; take the data '
          'that it was made for'
        )
      return own, headed
  return tasks.TASKS[config.task].head(key, model, params, outputs)


def method(config: Config, key: jax.Array, model: ModelSpec, params: Params) -> adapt.Adapted:
  """The parameters as the fine-tuning method wants them; they say which of them train.

  What trains is float32: a small update to a bfloat16 weight rounds to none.
  """
  c = config.method
  params = quantized(config, params)
  if c.adapter:
    return adapt.widened(interop.load_peft(c.adapter, model, params))
  known = adapt.options_of(c.name)
  given = dict(c.options)
  for name in ('rank', 'alpha', 'select'):
    if c[name] and name in known:
      given[name] = c[name]
  if 'also' in known and tasks.TASKS[config.task].outputs is None:
    given.setdefault('also', None)  # a language model's head is pretrained
  return adapt.widened(adapt.create(c.name, key, params, **given))


def quantized(config: Config, params: Params) -> Params:
  """The base in few bits, where the configuration says so."""
  kind = config.method.quantize
  return adapt.quantize(jax.random.key(0), params, kind=kind) if kind else params


def obstacle(config: Config, model: ModelSpec, params: Params) -> str | None:
  """Why no adapter alone can hold what an adapter trains, so that the model is exported whole."""
  adapted = any(adapt.is_adapter(leaf) for _, leaf in tree.named_weights(params))
  if config.layers and adapted:
    return 'its base has fewer layers than the file that it comes from'
  return interop.adapter_obstacle(model, params) if adapted else None


def fresh_decoder(config: Config, tokenizer: tokenizers.Tokenizer) -> ModelSpec:
  """A decoder of the configured sizes for the tokenizer's vocabulary."""
  c = config.decoder
  if c.width % c.heads or c.heads % c.kv_heads:
    raise InputError(
      f'decoder: heads {c.heads} must divide width {c.width}, and kv_heads {c.kv_heads} the heads'
    )
  return models.decoder(
    models.DecoderConfig(
      vocabulary=tokenizer.get_vocab_size(),
      width=c.width,
      hidden=c.hidden,
      layers=c.layers,
      heads=c.heads,
      kv_heads=c.kv_heads,
      head_width=c.width // c.heads,
      positions=max(config.data.max_length, 2048),
      remat=config.train.remat,
    )
  )
