"""A pretrained model from other tools' files."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxtune.interop.fill import fill
from jaxtune.interop.folder import open_folder
from jaxtune.interop.gguf_file import open_gguf
from jaxtune.interop.source import locate
from jaxtune.models import ModelSpec, build
from jaxtune.typing import InputError, Params


def load(
  source: str | os.PathLike[str],
  *,
  dtype: Any = None,
  remat: str = 'products',
  shardings: Callable[[ModelSpec, Params], Any] | None = None,
) -> tuple[ModelSpec, Params]:
  """Reads a model: `model, params = load('folder')`.

  The families in `interop.FAMILIES` in a Hugging Face folder (`config.json` with
  `model.safetensors` or its shards) or whatever of them a Hub id names, and Llama in a GGUF file.
  The head is the one that `architectures` names: a language model's, a classifier's, or none.
  Tensors are read one at a time into stacked leaves; nothing is unpickled.

  Args:
    source: folder, `.gguf` file, or Hub id (needs `huggingface_hub` and a network or its cache).
    dtype: of all parameters. None keeps the file's: float16 and bfloat16 stay, and the model then
      computes in them; GGUF is dequantized to float32.
    remat: what the backward pass computes again (`config.remat`).
    shardings: `(model, shapes of the parameters) -> tree of shardings`; each device's part is then
      read for itself, without the whole leaf on the host. For a mesh of `jaxtune.shard`:
      `lambda model, shapes: shard.param_shardings(mesh, shapes, model.axes(shapes))`. By default
      all goes to the default device.

  Raises:
    InputError: one line that names the file, the tensor or field, and the remedy.
  """
  if dtype is not None and not _floating(dtype):
    raise InputError(f'dtype is {dtype!r}; it must be a floating type: float32, bfloat16, float16')
  path = locate(source)
  found = open_folder(path) if path.is_dir() else open_gguf(path)
  model = dataclasses.replace(
    build(dataclasses.replace(found.model.config, remat=remat)),
    task=found.model.task,
    head=found.model.head,
    source=str(path.absolute()),
  )
  places = None if shardings is None else shardings(model, found.wanted)
  return model, fill(found.wanted, found.names, found.tensors, dtype, places)


def _floating(dtype: Any) -> bool:
  try:
    return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
  except TypeError:
    return False
