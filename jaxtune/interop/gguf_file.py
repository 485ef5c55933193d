"""A model of the Llama family in a GGUF file, the format of llama.cpp.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import pathlib
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import gguf
import numpy as np

from jaxtune.interop import fields
from jaxtune.interop.folder import Checkpoint
from jaxtune.interop.llama import GGUF, check_heads
from jaxtune.interop.tensors import Tensor, check
from jaxtune.models import DecoderConfig, build
from jaxtune.typing import InputError

_BLOCK = 1 << 20  # elements dequantized at a time
_MISSING = object()


def open_reader(path: pathlib.Path) -> gguf.GGUFReader:
  """The `gguf` package's reader of a file of the Llama family.

  Raises:
    InputError: the file is not GGUF, is cut short, or is of another architecture.
  """
  with open(path, 'rb') as file:
    magic = file.read(4)
  if magic != b'GGUF':
    raise InputError(
      f'{path}: is not a GGUF file (it begins with {magic!r}); give a .gguf file or a model folder'
    )
  try:
    reader = gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f'{path}: is damaged or cut short ({text}); download it again') from None
  architecture = field(reader, path, 'general.architecture')
  if architecture != 'llama':
    raise InputError(f'{path}: general.architecture is {architecture!r}; known: llama')
  return reader


def field(reader: gguf.GGUFReader, path: pathlib.Path, key: str, default: Any = _MISSING) -> Any:
  """One value of the metadata.

  Raises:
    InputError: it is absent and has no default.
  """
  found = reader.get_field(key)
  if found is not None:
    return found.contents()
  if default is _MISSING:
    raise InputError(f'{path}: has no metadata field {key!r}; convert the model to GGUF again')
  return default


def open_gguf(path: pathlib.Path) -> Checkpoint:
  """Reads metadata and tensor headers, and checks them against each other.

  Raises:
    InputError: whatever keeps the file from being read whole and right.
  """
  reader = open_reader(path)
  stored = {tensor.name: tensor for tensor in reader.tensors}
  config = _read_config(reader, path, stored)
  tensors = {name: _tensor(path, tensor, config) for name, tensor in stored.items()}
  model = build(config)
  wanted = model.shapes()
  unknown = sorted(set(tensors) - check(wanted, GGUF, tensors))
  if unknown:
    raise InputError(
      f'{path}: holds tensors that jaxtune has no place for ({", ".join(unknown[:3])}); '
      'choose another checkpoint'
    )
  return Checkpoint(model, wanted, GGUF, tensors)


def _read_config(
  reader: gguf.GGUFReader, path: pathlib.Path, stored: dict[str, Any]
) -> DecoderConfig:
  raw = {key: field(reader, path, key) for key in reader.fields if key.startswith('llama.')}
  file = str(path)
  fields.refuse(raw, file, **{'llama.rope.scaling.type': 'none', 'llama.expert_count': 0})
  if 'rope_freqs.weight' in stored:
    raise InputError(f'{path}: scales its rotary positions (rope_freqs), which jaxtune cannot do')
  if 'token_embd.weight' not in stored:
    raise InputError(f'{path}: lacks the tensor token_embd.weight; take a whole checkpoint')
  width = fields.integer(raw, file, 'llama.embedding_length')
  heads = fields.integer(raw, file, 'llama.attention.head_count')
  head_width = fields.integer(raw, file, 'llama.attention.key_length', max(1, width // heads))
  fields.refuse(
    raw,
    file,
    **{'llama.rope.dimension_count': head_width, 'llama.attention.value_length': head_width},
  )
  config = DecoderConfig(
    vocabulary=int(stored['token_embd.weight'].shape[-1]),
    width=width,
    hidden=fields.integer(raw, file, 'llama.feed_forward_length'),
    layers=fields.integer(raw, file, 'llama.block_count'),
    heads=heads,
    kv_heads=fields.integer(raw, file, 'llama.attention.head_count_kv', heads),
    head_width=head_width,
    positions=fields.integer(raw, file, 'llama.context_length', 2048),
    rope_base=fields.real(raw, file, 'llama.rope.freq_base', 10000.0),
    # The file keeps it as float32; the shortest decimal that names that float32 is what was meant.
    epsilon=float(
      str(np.float32(fields.real(raw, file, 'llama.attention.layer_norm_rms_epsilon', 1e-5)))
    ),
    tied='output.weight' not in stored,
  )
  check_heads(config, file)
  return config


def _tensor(path: pathlib.Path, stored: Any, config: DecoderConfig) -> Tensor:
  """A stored tensor as float32 rows in Hugging Face's order."""
  shape = tuple(int(size) for size in reversed(stored.shape))
  order = None
  part = re.search(r'\.attn_([qk])\.weight$', stored.name)
  if part:
    order = _rope_order(shape[0], config.heads if part[1] == 'q' else config.kv_heads)
  kind = stored.tensor_type.name
  return Tensor(
    str(path), stored.name, shape, kind, np.dtype(np.float32), _rows(path, stored, shape, order)
  )


def _rows(
  path: pathlib.Path, stored: Any, shape: tuple[int, ...], order: np.ndarray | None
) -> Callable[[], Iterator[tuple[Any, np.ndarray]]]:
  step = max(1, _BLOCK // int(np.prod(shape[1:], dtype=np.int64)))

  def blocks() -> Iterator[tuple[Any, np.ndarray]]:
    for start in range(0, shape[0], step):
      rows = slice(start, min(start + step, shape[0]))
      try:
        values = gguf.quants.dequantize(stored.data[rows], stored.tensor_type)
      except NotImplementedError:
        raise InputError(
          f'{path}: tensor {stored.name} is of type {stored.tensor_type.name}, which the gguf '
          'package cannot dequantize; take a file of another quantization (Q4_1, Q8_0, F16)'
        ) from None
      yield rows if order is None else order[rows], values

  return blocks


def _rope_order(rows: int, heads: int) -> np.ndarray:
  """Where each stored row of q or k belongs: llama.cpp interleaves the two halves of a head."""
  if rows % (2 * heads):
    return np.arange(rows)  # the check of shapes refuses it with a better message
  stored = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)
  return np.argsort(stored)
