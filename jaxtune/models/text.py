"""Text that comes token by token, and where it ends."""

from collections.abc import Sequence

import tokenizers


class Text:
  """The text of new tokens, given out as far as no later token can change it.

  Held back are characters whose bytes are not complete, and what may be the beginning of a stop
  string. All that is given out, joined, is the decoded text up to the first stop string.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, stop: Sequence[str] = ()):
    self.stopped = False
    self._tokenizer, self._stop = tokenizer, stop
    # The latest tokens, of which the first `_given` are given out: what comes next is decoded
    # behind them, because spaces at the beginning of a text are not as spaces within.
    self._tokens: list[int] = []
    self._given = 0
    self._held = ''

  def add(self, token: int) -> str:
    """What can be given out now; `stopped` is then true if a stop string is complete."""
    self._tokens.append(token)
    new = self._new()
    if not new or new.endswith('\ufffd'):  # the replacement of a character that is not complete
      return ''
    del self._tokens[: self._given]
    self._given = len(self._tokens)
    return self._give(new, self._stop)

  def finish(self) -> str:
    """The rest, when no token follows."""
    return self._give(self._new(), ())

  def _new(self) -> str:
    given = self._tokenizer.decode(self._tokens[: self._given])
    return self._tokenizer.decode(self._tokens)[len(given) :]

  def _give(self, new: str, held_for: Sequence[str]) -> str:
    text = self._held + new
    found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
    if found:
      self.stopped, self._held = True, ''
      return text[: min(found)]
    begun = max((_begun(text, stop) for stop in held_for), default=0)
    self._held = text[len(text) - begun :]
    return text[: len(text) - begun]


def _begun(text: str, stop: str) -> int:
  """How many characters at the end of `text` are the beginning of `stop`."""
  longest = min(len(text), len(stop) - 1)
  return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
