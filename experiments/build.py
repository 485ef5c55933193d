"""From a configuration to the functions and values of a run."""

import dataclasses
import importlib.util
import inspect
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
import tokenizers

from experiments.keys import Config, check, count
from jaxtune import adapt, data, interop, losses, models, optim, shard, train, tree
from jaxtune.models import ModelSpec
from jaxtune.typing import InputError, Params

Record = dict[str, Any]
END_OF_TEXT = '<|endoftext|>'  # of a tokenizer trained here


@dataclasses.dataclass(frozen=True)
class Corpus:
  """The data of a run, encoded: what is learned, what chooses, and what only measures."""

  train: data.Encoded
  valid: data.Encoded
  test: data.Encoded
  records: dict[str, list[Record]]
  names: tuple[str, ...]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that a run needs, made from a configuration."""

  config: Config
  model: ModelSpec
  params: adapt.Adapted
  tokenizer: tokenizers.Tokenizer
  corpus: Corpus
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
  records, notes = read_records(config)
  if config.model:
    source = resolve(config.model)
    model, params = interop.load(source, remat=config.train.remat, shardings=placement(config))
    tokenizer = interop.load_tokenizer(source)
    interop.check_vocabulary(tokenizer, model, source)
    special = interop.special_tokens(source)
  else:
    tokenizer = train_tokenizer(config, records['train'])
    model = fresh_decoder(config, tokenizer)
    params = model.init(model_key)
    special = interop.SpecialTokens(eos=tokenizer.token_to_id(END_OF_TEXT))
  corpus = encode(config, tokenizer, special, model, records, notes)
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


def resolve(source: str) -> str:
  """A path or Hub id as it is; `package://NAME/PATH` as the file inside the installed package."""
  match = re.fullmatch(r'package://(\w+)/(.+)', source)
  if not match:
    return source
  spec = importlib.util.find_spec(match[1])
  if spec is None or not spec.submodule_search_locations:
    raise InputError(f'{source}: the package {match[1]!r} is not installed')
  return str(pathlib.Path(spec.submodule_search_locations[0]) / match[2])


def read_records(config: Config) -> tuple[dict[str, list[Record]], list[str]]:
  """Rows of each split, without duplicates, and remarks for the report."""
  path = resolve(config.data.path)
  records = read_rows(config, path)
  field = 'prompt' if config.data.prompt else config.data.text
  records, dropped = data.deduplicate(records, field)
  sizes = {name: held_out(config.data[name], len(records)) for name in ('valid', 'test')}
  splits = data.split(records, sizes, config.seed)
  notes = [
    f'{pathlib.Path(path).name}: '
    + ', '.join(f'{len(rows):,} {name}' for name, rows in splits.items())
    + f' rows; {dropped:,} duplicates left out.'
  ]
  return splits, notes


def read_rows(config: Config, path: str) -> list[Record]:
  """The rows of a file, its columns checked; for pairs, as their prompts and completions."""
  records = data.read(path)
  if not config.data.prompt:
    data.column(records, config.data.text, path)
  if config.data.prompt:
    records = [render(config, row, number) for number, row in enumerate(records, 1)]
  return records


def render(config: Config, row: Record, number: int) -> Record:
  """The row as `prompt` and `completion`: a column each, or a template over the columns."""

  def text(name: str) -> str:
    template = config.data[name]
    try:
      return template.format_map(row) if '{' in template else str(row[template])
    except KeyError as error:
      raise InputError(
        f'data.{name} asks for the column {error.args[0]!r}, which row {number} does not have; '
        f'its columns are {", ".join(row)}'
      ) from None
    except (ValueError, IndexError) as error:
      raise InputError(f'data.{name} is not a template like "{{column}}": {error}') from None

  return {'prompt': text('prompt'), 'completion': text('completion')}


def held_out(size: float, rows: int) -> int:
  """A count from 1 up; below that a fraction of the rows, and then at least one of them."""
  return int(size) if size >= 1 or size == 0 else max(1, round(size * rows))


def encode(
  config: Config,
  tokenizer: tokenizers.Tokenizer,
  special: interop.SpecialTokens,
  model: ModelSpec,
  records: dict[str, list[Record]],
  notes: Sequence[str],
) -> Corpus:
  """Every split as token ids, and what was cut or left out on the way."""
  length = config.data.max_length
  if length > model.config.positions:
    raise InputError(
      f'data.max_length is {length}, but the model has {model.config.positions} positions; '
      f'set it to {model.config.positions} or less'
    )
  names: tuple[str, ...] = ()
  if config.task == 'classification':
    names = data.label_names(records['train'], config.data.label)
  if config.train.steps and config.task != 'causal_lm':
    # What the steps will not reach need not be tokenized; the rows are in random order already.
    reach = config.train.steps * config.train.batch_size
    records = {**records, 'train': records['train'][:reach]}
  encoded = {
    split: encode_rows(config, tokenizer, special, rows, names)
    for split, rows in records.items()
    if rows
  }
  for part in encoded.values():
    interop.check_ids((example['tokens'] for example in part.examples), tokenizer, model)
  lines = list(notes)
  for split, part in encoded.items():
    cut = f'{part.truncated:,} of {len(records[split]):,} {split} rows are longer than {length} '
    if part.truncated:
      lines.append(cut + 'tokens and were cut.')
    if part.empty or part.unlearned:
      lines.append(
        f'{split}: {part.empty:,} rows without text and {part.unlearned:,} with nothing to learn '
        'were left out.'
      )
  nothing = data.Encoded([])
  return Corpus(
    train=encoded['train'],
    valid=encoded.get('valid', nothing),
    test=encoded.get('test', nothing),
    records=records,
    names=names,
    notes=tuple(lines),
  )


def encode_rows(
  config: Config,
  tokenizer: tokenizers.Tokenizer,
  special: interop.SpecialTokens,
  rows: Sequence[Record],
  names: tuple[str, ...],
  labelled: bool = True,
) -> data.Encoded:
  """Rows as examples of the configured task; without labels for prediction."""
  c = config.data
  label = c.label if labelled else None
  if config.task == 'classification':
    return data.encode_classification(
      rows, tokenizer, text=c.text, label=label, names=names, max_length=c.max_length
    )
  if config.task == 'regression':
    return data.encode_regression(
      rows, tokenizer, text=c.text, label=label, max_length=c.max_length
    )
  if c.prompt:
    return data.encode_completions(
      rows,
      tokenizer,
      prompt='prompt',
      completion='completion',
      max_length=c.max_length,
      eos=special.eos,
    )
  return data.encode_text(
    rows, tokenizer, text=c.text, max_length=c.max_length, bos=special.bos, eos=special.eos
  )


def eval_batches(config: Config, part: data.Encoded) -> list[dict[str, Any]]:
  """Every example once and in order, in batches of one shape; none without examples."""
  if not part.examples:
    return []
  return data.eval_batches(
    part.examples,
    config.eval.batch_size,
    max_length=config.data.max_length,
    pack=config.data.pack,
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


def train_tokenizer(config: Config, rows: Sequence[Record]) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer of `decoder.vocabulary` tokens, trained on the training rows."""
  field = 'prompt' if config.data.prompt else config.data.text
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=config.decoder.vocabulary,
    special_tokens=[END_OF_TEXT],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(data.column(rows, field), trainer)
  return tokenizer


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
