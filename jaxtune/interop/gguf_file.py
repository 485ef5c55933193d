"""A model in a GGUF file, the format of llama.cpp.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import functools
import pathlib
from collections.abc import Callable

import gguf
import numpy as np

from jaxtune.interop.check import check, listed
from jaxtune.interop.families import family_named
from jaxtune.interop.folder import Checkpoint
from jaxtune.interop.gguf_config import read_config
from jaxtune.interop.gguf_header import Header, Stored, field, read_header
from jaxtune.interop.gguf_names import names
from jaxtune.interop.tensors import Tensor
from jaxtune.models import build
from jaxtune.typing import InputError

_DIVISORS = 'rope_freqs.weight'


def open_gguf(path: pathlib.Path) -> Checkpoint:
  """Reads metadata and tensor headers, and checks them against each other.

  Raises:
    InputError: whatever keeps the file from being read whole and right.
  """
  header = read_header(path)
  architecture = field(header, 'general.architecture')
  offset = 1.0 if str(architecture).startswith('gemma') else 0.0
  tensors = {name: open_tensor(header, name, offset) for name in header.tensors}
  divisors = tensors.pop(_DIVISORS, None)
  raw = read_config(header, None if divisors is None else divisors.read())
  if raw['num_hidden_layers'] > len(tensors):
    raise InputError(
      f'{path}: {architecture}.block_count is {raw["num_hidden_layers"]}, but the file holds '
      f'{len(tensors)} tensors; convert the model to GGUF again'
    )
  config = family_named(raw['model_type'], str(path)).read_config(raw, str(path))
  model = build(config)
  wanted = model.shapes()
  table = names(config, architecture in ('llama', 'smollm3'))
  used = check(wanted, table, tensors)
  left = set(tensors) - used
  if left:
    raise InputError(
      f'{path}: holds tensors that {architecture} does not have in jaxtune '
      f'({listed(left, used)}); choose another checkpoint'
    )
  return Checkpoint(model, wanted, table, tensors)


def open_tensor(header: Header, name: str, offset: float = 0.0) -> Tensor:
  """A stored tensor as float32; of a norm less the offset, which llama.cpp's converter adds.

  Raises:
    InputError: the package cannot dequantize its type.
  """
  stored = header.tensors[name]
  if not _readable(stored.kind):
    raise InputError(
      f'{header.path}: tensor {name} is of type {stored.kind.name}, which the gguf package cannot '
      'dequantize; take a file of another quantization (Q4_K_M, Q8_0, F16)'
    )
  shift = offset if name.endswith('norm.weight') else 0.0
  entries = _entries(header.path, stored, np.float32(shift))
  kind, dtype = stored.kind.name, np.dtype(np.float32)
  return Tensor(str(header.path), name, stored.shape, kind, dtype, entries)


@functools.cache
def _readable(kind: gguf.GGMLQuantizationType) -> bool:
  try:
    gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
  except NotImplementedError:
    return False
  return True


def _entries(
  path: pathlib.Path, stored: Stored, shift: np.float32
) -> Callable[[int, int], np.ndarray]:
  block, size = gguf.GGML_QUANT_SIZES[stored.kind]

  def entries(start: int, stop: int) -> np.ndarray:
    first, end = start // block, -(-stop // block)
    count = (end - first) * size
    data = np.fromfile(path, np.uint8, count, offset=stored.offset + first * size)
    if len(data) < count:
      raise InputError(f'{path}: became shorter while it was read; download it again')
    # As one row: the package splits its work by rows, however short they are.
    values = gguf.quants.dequantize(data[None], stored.kind)[0]
    values = values[start - first * block : stop - first * block]
    return values - shift if shift else values

  return entries
