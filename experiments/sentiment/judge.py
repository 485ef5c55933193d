"""A tuned classifier of reviews as the reward of their continuations."""

from experiments import sources, tuned
from jaxtune import data, train
from jaxtune.typing import InputError

Opening = dict[str, str]


def reward(folder: str, label: str = '', max_length: int = 0) -> train.Reward:
  """How sure the classifier of a finished run is that prompt and completion have a label, in nats.

  Args:
    folder: of the run, as of configs/quickstart.py.
    label: the name of a class; its last by default, which for reviews is the positive one.
    max_length: tokens that it reads; by default as many as in its training.

  Raises:
    InputError: no finished run of a classifier, or no such class.
  """
  return reward_of(tuned.open_run(folder), folder, label, max_length)


def reward_of(run: tuned.Tuned, folder: str, label: str = '', max_length: int = 0) -> train.Reward:
  """`reward` by a run that is open."""
  if run.config.task != 'classification':
    raise InputError(f'{folder} holds a run for {run.config.task}; a judge is a classifier')
  name = run.names[-1] if label == '' else str(label)  # a command line makes a number of '0'
  if name not in run.names:
    raise InputError(f'{folder}: there is no class {name!r}; there are {", ".join(run.names)}')
  return train.log_odds(
    run.model,
    run.params,
    run.tok.encoder,
    run.names.index(name),
    max_length=max_length or run.config.data.max_length,
  )


def openings(run: tuned.Tuned, words: int, rows: int) -> dict[str, list[Opening]]:
  """The first words of reviews that did not tune the classifier: `train`, and `test` to measure on.

  `test` comes from the run's own test split; `train` from the end of its train split, which its
  steps need not have reached. Reviews of less than twice as many words, and such as begin with
  markup, are left out; so are openings that come twice.

  Raises:
    InputError: fewer than `rows` of either.
  """
  splits = sources.read(run.config).splits
  seen: set[str] = set()
  found: dict[str, list[Opening]] = {}
  for split, records in (('test', splits['test']), ('train', splits['train'][::-1])):
    found[split] = []
    for record in records:
      parts = record['text'].split()
      opening = ' '.join(parts[:words])
      if len(parts) >= 2 * words and '<' not in opening and opening not in seen:
        seen.add(opening)
        found[split].append({'prompt': opening})
      if len(found[split]) == rows:
        break
    if len(found[split]) < rows:
      raise InputError(
        f'{run.config.data.path}: {rows:,} openings of {words} words are asked for, and the '
        f'{split} split has {len(found[split]):,}; ask for fewer'
      )
  return found


def encoded(tok: data.Tokenizer, rows: list[Opening]) -> data.Encoded:
  """The openings as prompts, whatever their length."""
  return data.encode_prompts(tok, rows, max_length=1 << 30)
