"""From a configuration to the functions and values of a run."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
import tokenizers

from experiments import dataset
from experiments.keys import Config, check, count
from jaxtune import adapt, data, interop, losses, models, optim, shard, train, tree
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that a run needs, made from a configuration."""

  config: Config
  model: ModelSpec
  params: adapt.Adapted
  tokenizer: tokenizers.Tokenizer
  corpus: dataset.Corpus
  objective: losses.Objective
  optimizer: optax.GradientTransformationExtraArgs
  arguments: train.Arguments | None
  steps: int
  score: Callable[[Mapping[str, float]], float]


def job(config: Config) -> Job:
  """The run that a configuration describes.

  Raises:
    InputError: a value, file or column that cannot be used.
  """
  check(config)
  model_key, head_key, method_key = streams(config)
  records, notes = dataset.read_records(config)
  if config.model:
    source = dataset.resolve(config.model)
    model, params = interop.load(source, remat=config.train.remat, shardings=placement(config))
    tokenizer = interop.load_tokenizer(source)
    interop.check_vocabulary(tokenizer, model, source)
    special = interop.special_tokens(source)
  else:
    tokenizer = dataset.train_tokenizer(config, records['train'])
    model = fresh_decoder(config, tokenizer)
    params = model.init(model_key)
    special = data.SpecialTokens(eos=tokenizer.token_to_id(dataset.END_OF_TEXT))
  corpus = dataset.encode(config, tokenizer, special, model, records, notes)
  if config.task == 'causal_lm' and model.task != 'causal_lm':
    raise InputError(f'task is causal_lm, but {config.model!r} is an {model.family}; use a decoder')
  if config.task != 'causal_lm':
    outputs = len(corpus.names) if config.task == 'classification' else 1
    model, params = headed(config, head_key, model, params, outputs, corpus.names)
  steps = count_steps(config, corpus.train.examples)
  params = method(config, method_key, model, params)
  reason = obstacle(config, model, params)
  whole = interop.merge_obstacle(params)
  if whole and not config.model:
    raise InputError(
      f'method.name is {config.method.name}, and {whole}: of a model from scratch nothing would be '
      'left; take the method full, or give a model'
    )
  if reason:
    kind = f'{interop.TRAINED}, which only jaxtune opens' if whole else 'the merged model'
    note = f'The export is {kind}: {whole or reason}.'
    corpus = dataclasses.replace(corpus, notes=(*corpus.notes, note))
  return Job(
    config=config,
    model=model,
    params=params,
    tokenizer=tokenizer,
    corpus=corpus,
    objective=objective(config, model),
    optimizer=averaged(config, adapt.wrap_optimizer(params, optimizer(config, steps), steps)),
    arguments=arguments(config, model),
    steps=steps,
    score=lambda metrics: (
      metrics.get('accuracy', 0.0) if config.task == 'classification' else -metrics['loss']
    ),
  )


def streams(config: Config) -> jax.Array:
  """Keys for a model from scratch, for a fresh head, and for the method."""
  return jax.random.split(jax.random.key(config.seed), 3)


def placement(config: Config) -> Callable[[ModelSpec, Params], Any] | None:
  """Where parameters go while they are read: onto the mesh if it cuts them, else one device."""
  mesh = shard.mesh(dict(config.mesh))
  if mesh.shape['fsdp'] == 1:
    return None
  return lambda model, shapes: shard.param_shardings(mesh, shapes, model.axes(shapes))


def count_steps(config: Config, examples: Sequence[Any]) -> int:
  """`train.steps`, or as many as `train.epochs` take."""
  c = config.train
  if c.steps:
    return c.steps
  if not c.epochs > 0:
    raise InputError('train.steps and train.epochs are both zero; set one of them')
  epoch = data.steps_per_epoch(
    examples, c.batch_size, max_length=config.data.max_length, pack=config.data.pack
  )
  return max(1, math.ceil(c.epochs * epoch))


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
  return models.classifier(key, model, params, outputs)


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
  if 'also' in known and config.task == 'causal_lm':
    given.setdefault('also', None)  # a language model's head is pretrained
  return adapt.widened(adapt.create(c.name, key, params, **given))


def quantized(config: Config, params: Params) -> Params:
  """The base in few bits, where the configuration says so."""
  kind = config.method.quantize
  return adapt.quantize(jax.random.key(0), params, kind=kind) if kind else params


def obstacle(config: Config, model: ModelSpec, params: Params) -> str | None:
  """Why no adapter alone can hold what an adapter trains, so that the model is exported whole."""
  adapted = any(adapt.is_adapter(leaf) for _, leaf in tree.named_weights(params))
  return interop.adapter_obstacle(model, params) if adapted else None


def objective(config: Config, model: ModelSpec) -> losses.Objective:
  """What the configured task minimizes."""
  if config.task == 'classification':
    return losses.classification(model)
  if config.task == 'regression':
    return losses.mean_squared_error(model)
  return losses.causal_lm(model, config.train.chunk or None)


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """The update rule with its schedule, clipping and hyperparameters."""
  c = config.optim
  others = dict(c.hyperparameters)
  # Rules have defaults of their own; what the configuration says counts, and that it says 0 too.
  if c.weight_decay or 'weight_decay' in inspect.signature(optim.factory(c.name)).parameters:
    others['weight_decay'] = c.weight_decay
  return optim.create(
    c.name,
    c.lr,
    schedule=optim.schedule(c.schedule, steps=steps, warmup=count(c.warmup)),
    clip_norm=c.clip_norm or None,
    **others,
  )


def averaged(config: Config, rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """The rule, with an average of the weights in its state if the configuration wants one."""
  return optim.average_weights(rule, config.optim.average) if config.optim.average else rule


def weights(config: Config, state: train.State) -> Params:
  """What is evaluated and exported of a state: the trained weights, or their average."""
  if not config.optim.average:
    return state.trainable
  return optim.averaged(state.opt, state.trainable)


def arguments(config: Config, model: ModelSpec) -> train.Arguments | None:
  """What the update rule needs besides gradients, from the parameters and the batch."""
  if config.optim.name != 'muonclip':
    return None
  return lambda params, batch: {'query_key_maxima': models.query_key_maxima(model, params, batch)}


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
