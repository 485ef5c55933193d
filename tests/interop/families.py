"""Tiny random models of transformers beside ours: what the parity tests of all families share.

Matrices have a standard deviation of 0.25, norms and biases are random, and epsilons are large, so
that every part of the arithmetic shows in the outputs.
"""

import copy
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtune import interop
from jaxtune.typing import InputError

# Of the outputs' standard deviation: what agrees, and what is told apart.
SAME, APART = 1e-4, 1e-3


class Peer(NamedTuple):
  """A model of transformers, the folder that it saved, and what we read there."""

  folder: pathlib.Path
  theirs: Any
  model: Any
  params: Any


def maker(folder: pathlib.Path):
  """`make(architecture, **fields) -> Peer`, made once for the same arguments."""
  made: dict[str, Peer] = {}

  def make(architecture: str, **fields: Any) -> Peer:
    key = json.dumps([architecture, fields], sort_keys=True)
    if key not in made:
      theirs = random_model(architecture, **fields)
      where = folder / str(len(made))
      theirs.save_pretrained(where)
      made[key] = Peer(where, theirs, *interop.load(where))
    return made[key]

  return make


def random_model(architecture: str, seed: int = 0, **fields: Any) -> Any:
  """A model of that class with random parameters, computing attention step by step."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  kind = getattr(transformers, architecture)
  model = kind(kind.config_class(**copy.deepcopy(fields))).eval()
  model.set_attn_implementation('eager')
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      noise = torch.randn(parameter.shape, generator=generator)
      if parameter.ndim > 1:
        parameter.copy_(0.25 * noise)
      elif parameter.ndim == 1:
        parameter.add_(0.3 * noise)
  return model


def load_theirs(folder: pathlib.Path, architecture: str) -> Any:
  """The folder as transformers reads it, in float32; every tensor must find its place."""
  import torch
  import transformers

  kind = getattr(transformers, architecture)
  model, found = kind.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager', output_loading_info=True
  )
  assert not found['missing_keys'] and not found['unexpected_keys'], found
  return model.eval()


def outputs(theirs: Any, **inputs: np.ndarray | None) -> np.ndarray:
  """Their logits, or last hidden states where there is no head."""
  import torch

  given = {
    key: torch.tensor(np.asarray(x, np.float32 if x.dtype == np.float32 else np.int64))
    for key, x in inputs.items()
    if x is not None
  }
  with torch.no_grad():
    out = theirs(**given)
  out = out.logits if 'logits' in out else out.last_hidden_state
  return out.float().numpy()


def distance(want: np.ndarray, got: Any, real: np.ndarray | None = None) -> float:
  """The largest difference, in standard deviations of what is wanted; of real tokens alone."""
  got = np.asarray(got, np.float32)
  assert want.shape == got.shape, (want.shape, got.shape)
  if real is not None:
    want, got = want[real], got[real]
  spread = float(want.std())
  assert 1e-2 < spread < 1e3, spread
  return float(np.abs(want - got).max()) / spread


def tensors(folder: pathlib.Path) -> dict[str, tuple[Any, tuple[int, ...], bytes]]:
  """Of every tensor in a folder type, shape and bytes."""
  import safetensors
  import torch

  found = {}
  for file in sorted(folder.glob('*.safetensors')):
    with safetensors.safe_open(file, 'pt') as opened:
      for name in opened.keys():
        x = opened.get_tensor(name)
        found[name] = (x.dtype, tuple(x.shape), x.contiguous().view(torch.uint8).numpy().tobytes())
  return found


class Batch(NamedTuple):
  """tokens, mask and positions, each `[B, T]`."""

  tokens: np.ndarray
  mask: np.ndarray
  positions: np.ndarray


def batch(vocabulary: int, length: int = 12, side: str = 'none') -> Batch:
  """Three rows of random tokens, two of them shorter: padded `right`, `left`, `both` or `none`."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, vocabulary, (3, length)).astype(np.int32)
  places = np.arange(length)[None]
  starts = {'left': (0, 4, 7), 'both': (0, 4, 0)}.get(side, (0, 0, 0))
  ends = {'right': (0, 3, 6), 'both': (0, 0, 6)}.get(side, (0, 0, 0))
  first, behind = np.array([starts]).T, length - np.array([ends]).T
  mask = (places >= first) & (places < behind)
  positions = np.clip(places - first, 0, None).astype(np.int32)
  return Batch(np.where(mask, tokens, 0).astype(np.int32), mask, positions)


def theirs_on(theirs: Any, data: Batch) -> np.ndarray:
  """Their outputs for a batch of tokens."""
  return outputs(
    theirs, input_ids=data.tokens, attention_mask=data.mask, position_ids=data.positions
  )


def ours_on(model: Any, params: Any, data: Batch) -> np.ndarray:
  """Our outputs for a batch of tokens, op by op: models of one shape share what is compiled."""
  with jax.disable_jit():
    return np.asarray(model.apply(params, data.tokens, data.mask, positions=data.positions))


def edited(peer: Peer, folder: pathlib.Path, **changes: Any) -> pathlib.Path:
  """A copy of the folder whose `config.json` has other fields; a dotted name is a nested one.

  `...` takes a field away.
  """
  folder.mkdir(parents=True)
  for file in peer.folder.iterdir():
    if file.name != 'config.json':
      (folder / file.name).symlink_to(file)
  raw = json.loads((peer.folder / 'config.json').read_text())
  for key, value in changes.items():
    inner, *path = raw, *key.split('.')
    for part in path[:-1]:
      inner = inner[part]
    if value is ...:
      inner.pop(path[-1], None)
    else:
      inner[path[-1]] = value
  (folder / 'config.json').write_text(json.dumps(raw))
  return folder


def check_fields(
  peer: Peer,
  folder: pathlib.Path,
  architecture: str,
  changes: list[dict[str, Any]],
  ours: Callable[[Any, Any], np.ndarray],
  error: Callable[[Any, np.ndarray], float],
) -> None:
  """With other values in `config.json` parity fails, and transformers reads the same values.

  Args:
    peer: the model.
    folder: for copies of its own.
    architecture: class of transformers.
    changes: other fields of each copy, as for `edited`.
    ours: our outputs of a model and parameters.
    error: of ours beside those of a model of transformers, in standard deviations.
  """
  for number, change in enumerate(changes):
    copy = edited(peer, folder / str(number), **change)
    got = ours(*interop.load(copy))
    assert error(peer.theirs, got) > APART, change
    assert error(load_theirs(copy, architecture), got) < SAME, change


def check_shapes(peer: Peer, folder: pathlib.Path, changes: dict[str, Any]) -> None:
  """Each field that contradicts the weights is refused in one line."""
  for number, (field, value) in enumerate(changes.items()):
    copy = edited(peer, folder / str(number), **{field: value})
    try:
      interop.load(copy)
    except InputError as error:
      assert '\n' not in str(error), field
      continue
    raise AssertionError(f'{field} = {value!r} was read without a word')
