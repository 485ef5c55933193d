"""From a configuration to the functions and values of a run."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from experiments import dataset, objective, parameters, rollouts, sources, tasks, teacher, trace
from experiments.keys import Config, check, count
from jaxtune import adapt, data, interop, losses, models, optim, train
from jaxtune.data.batch import checksum
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that a run needs, made from a configuration.

  `made_of` are digests of what a run cannot go on without, see `train.open_checkpoints`; the place
  in the data knows the rows to train on.
  """

  config: Config
  model: ModelSpec
  params: adapt.Adapted
  tok: data.Tokenizer
  corpus: dataset.Corpus
  objective: losses.Objective
  optimizer: optax.GradientTransformationExtraArgs
  arguments: train.Arguments | None
  steps: int
  score: Callable[[Mapping[str, float]], float]
  made_of: Mapping[str, str]


class Loaded(NamedTuple):
  """What runs of one model on the same rows share: all that no method has touched.

  Attributes:
    model, params: of the base, before a fresh head.
    tok, corpus: the tokenizer, and the rows encoded with it.
    digests: of what was loaded, name -> digest.
  """

  model: ModelSpec
  params: Params
  tok: data.Tokenizer
  corpus: dataset.Corpus
  digests: Mapping[str, str]


def job(config: Config) -> Job:
  """The run that a configuration describes.

  Raises:
    InputError: a value, file or column that cannot be used.
  """
  return adapted(config, load(config))


def load(config: Config) -> Loaded:
  """The model and the rows of a configuration.

  Raises:
    InputError: as `job`.
  """
  check(config)
  if config.task == 'reinforcement':
    rollouts.factory(config)  # before anything is loaded
  model_key, *_ = parameters.streams(config)
  rows = sources.read(config)
  if config.model:
    source = sources.resolve(config.model)
    model, params = parameters.pretrained(
      config, source, remat=config.train.remat, shardings=parameters.placement(config)
    )
    tok = interop.tokenizer(source)
    interop.check_vocabulary(tok.encoder, model, source)
  else:
    encoder = dataset.train_tokenizer(config, rows.splits['train'])
    tok = data.Tokenizer(encoder, data.SpecialTokens(eos=encoder.token_to_id(dataset.END_OF_TEXT)))
    model = parameters.fresh_decoder(config, encoder)
    params = model.init(model_key)
  digests = {'model': train.digest(params)} if config.model else {}
  task = tasks.TASKS[config.task]
  if task.base and model.task != task.base:
    raise InputError(
      f'task is {config.task}, but {config.model!r} is an {model.family} for {model.task}; '
      f'use a model for {task.base}'
    )
  corpus = dataset.encode(config, tok, model, rows)
  objective.check_example(config, corpus.train.examples[0])
  return Loaded(model, params, tok, corpus, digests)


def adapted(config: Config, loaded: Loaded) -> Job:
  """The run of a configuration on what was loaded for it, or for one that differs in other keys.

  Raises:
    InputError: as `job`.
  """
  _, head_key, method_key = parameters.streams(config)
  model, params, tok, corpus, digests = loaded
  made_of = dict(digests)
  task = tasks.TASKS[config.task]
  if task.outputs is not None:
    outputs = task.outputs(len(corpus.names))
    model, params = parameters.headed(config, head_key, model, params, outputs, corpus.names)
  steps = count_steps(config, corpus.train.examples)
  trace.check(config.train.profile, steps)
  params = parameters.method(config, method_key, model, params)
  if config.method.adapter:
    made_of['method.adapter'] = train.digest(adapt.trainable(params)[0])
  reason = parameters.obstacle(config, model, params)
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
  rule = averaged(config, adapt.wrap_optimizer(params, optimizer(config, steps), steps))
  rule = guarded(config, rule)
  taught = teacher.teacher(config, corpus.names, tok)
  if objective.compares(config):
    params = adapt.with_start(params)
  if taught is not None:
    made_of['objective.teacher'] = train.digest(taught[1])
    params = adapt.with_teacher(params, taught[1])
  return Job(
    config=config,
    model=model,
    params=params,
    tok=tok,
    corpus=corpus,
    objective=objective.make(config, model, tok, corpus.names, taught[0] if taught else None),
    optimizer=rule,
    arguments=arguments(config, model),
    steps=steps,
    score=lambda metrics: metrics.get(task.score, -metrics['loss']),
    made_of=made_of
    | {
      'data.valid': str(checksum(corpus.valid.examples)),
      'data.test': str(checksum(corpus.test.examples)),
    },
  )


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
  return max(1, math.ceil(c.epochs * epoch)) * config.rollout.updates


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


def guarded(config: Config, rule: optax.GradientTransformation) -> optax.GradientTransformation:
  """The rule, which skips broken gradients if the configuration wants that."""
  factor = config.optim.skip_spikes
  return optim.skip_spikes(rule, factor) if factor else rule


def without_company(params: Params) -> adapt.Adapted:
  """The parameters alone, without the start and the teacher that an objective compares with."""
  return adapt.without_start(adapt.without_teacher(params))


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
