"""A language model for EleutherAI's lm-evaluation-harness, the package `lm_eval`.

Only this module imports it, and nothing of jaxtune imports this module: `pip install
'jaxtune[lm-eval]'`, then

  from jaxtune.interop.lm_eval import LanguageModel
  lm_eval.simple_evaluate(LanguageModel(*jt.interop.load(folder), ...), tasks=['hellaswag'])
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from jaxtune.data import SpecialTokens, render_chat
from jaxtune.data.by_length import by_length, longest_first
from jaxtune.models import ModelSpec
from jaxtune.models.generate import generate
from jaxtune.models.likelihood import log_likelihood
from jaxtune.models.sample import Sampling
from jaxtune.typing import InputError, Params

Pair = tuple[Any, list[int], list[int]]  # a cache's key, the tokens before, the tokens scored

_SAMPLING = ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty')
_OTHERS = ('until', 'max_gen_toks', 'do_sample')


class LanguageModel(TemplateLM):
  """Answers the harness's requests with a model of jaxtune's.

  Contexts longer than the model's own are cut at the left, as the harness's other models do.
  """

  def __init__(
    self,
    model: ModelSpec,
    params: Params,
    tokenizer: tokenizers.Tokenizer,
    special: SpecialTokens,
    *,
    batch_size: int = 16,
    name: str = 'jaxtune',
  ):
    """
    Args:
      model: a causal language model.
      params: its parameters, on their devices.
      tokenizer: of the model.
      special: its special tokens and chat template.
      batch_size: rows at a time.
      name: of the tokenizer and template, under which the harness keeps prepared requests.

    Raises:
      InputError: another kind of model, or one without a token to begin or end a text with.
    """
    super().__init__()
    if model.task != 'causal_lm':
      raise InputError(f'the model is for {model.task}; the harness needs a causal language model')
    if special.eos is None and special.bos is None:
      raise InputError('the tokenizer names neither bos nor eos; give one in SpecialTokens')
    self._model, self._params, self._special = model, params, special
    self._tokenizer, self._batch_size, self._name = tokenizer, batch_size, name
    self._score = functools.partial(jax.jit(functools.partial(log_likelihood, model)), params)

  @property
  def eot_token_id(self) -> int:
    eos, bos = self._special.eos, self._special.bos
    return eos if eos is not None else bos  # type: ignore[return-value]

  @property
  def prefix_token_id(self) -> int:
    return self.eot_token_id if self._special.bos is None else self._special.bos

  @property
  def tokenizer_name(self) -> str:
    return self._name.replace('/', '__')

  @property
  def max_length(self) -> int:
    """Tokens that the model can read."""
    return self._model.config.positions

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
  ) -> list[int]:
    if add_special_tokens is None:
      bos = self._special.bos
      first = None if bos is None else self._tokenizer.id_to_token(bos)
      begun = first is not None and string.startswith(first)
      add_special_tokens = not begun  # a chat template writes them itself
    return self._tokenizer.encode(string, add_special_tokens=add_special_tokens).ids

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    return self._special.chat_template if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    return render_chat(self._special, chat_history, add_generation_prompt=add_generation_prompt)

  def _loglikelihood_tokens(
    self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
  ) -> list[tuple[float, bool]]:
    examples = []
    for _, before, scored in requests:
      tokens = np.array([*before, *scored], np.int32)[-self.max_length :]
      supervised = np.arange(len(tokens)) >= len(tokens) - len(scored)
      examples.append({'tokens': tokens, 'supervised': supervised})
    found: list[tuple[float, bool]] = [(0.0, True)] * len(examples)
    with tqdm(total=len(examples), desc='likelihood', disable=disable_tqdm) as bar:
      for places, batch in by_length(examples, self._batch_size, limit=self.max_length):
        kept = {name: batch[name] for name in ('tokens', 'mask', 'supervised')}
        out = jax.device_get(self._score(kept))
        for row, place in enumerate(places):
          found[place] = (float(out.nats[row]), bool(out.correct[row] == out.tokens[row]))
          if requests[place][0] is not None:
            self.cache_hook.add_partial('loglikelihood', requests[place][0], found[place])
        bar.update(len(places))
    return found

  def loglikelihood_rolling(
    self, requests: Sequence[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    pairs: list[Pair] = []
    owners: list[int] = []
    for owner, request in enumerate(requests):
      windows = get_rolling_token_windows(
        self.tok_encode(request.args[0], add_special_tokens=False),
        self.prefix_token_id,
        max_seq_len=self.max_length - 1,
        context_len=1,
      )
      for window in map(make_disjoint_window, windows):
        pairs.append((None, *window))
        owners.append(owner)
    totals = np.zeros(len(requests))
    parts = self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)
    np.add.at(totals, owners, [nats for nats, _ in parts])
    return totals.tolist()

  def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
    texts = [''] * len(requests)
    groups: dict[str, list[int]] = {}  # one batch has one way of sampling and one end
    for place, request in enumerate(requests):
      groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
    with tqdm(total=len(requests), desc='writing', disable=disable_tqdm) as bar:
      for places in groups.values():
        options = _options(requests[places[0]].args[1])
        room = max(self.max_length // 2, self.max_length - options['max_tokens'])
        prompts = [self.tok_encode(requests[i].args[0])[-room:] for i in places]
        for batch in longest_first([len(prompt) for prompt in prompts], self._batch_size):
          written = generate(
            self._model,
            self._params,
            [prompts[i] or [self.prefix_token_id] for i in batch],
            eos={*self._special.ends, self.eot_token_id},
            tokenizer=self._tokenizer,
            **options,
          )
          for i, one in zip(batch, written, strict=True):
            texts[places[i]] = one.text
            self.cache_hook.add_partial('generate_until', requests[places[i]].args, one.text)
          bar.update(len(batch))
    return texts


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
  """The harness's words for sampling and ends as those of `generate`.

  Raises:
    InputError: an option that is not computed here.
  """
  kwargs = dict(normalize_gen_kwargs(dict(given)))
  unknown = sorted(set(kwargs) - {*_SAMPLING, *_OTHERS})
  if unknown:
    raise InputError(
      f'generation_kwargs has {unknown[0]!r}; known: {", ".join([*_OTHERS, *_SAMPLING])}'
    )
  return {
    'max_tokens': kwargs['max_gen_toks'],
    'stop': [text for text in kwargs['until'] if text],
    'sampling': Sampling(**{name: kwargs[name] for name in _SAMPLING if name in kwargs}),
  }
