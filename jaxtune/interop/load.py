"""A pretrained model from other tools' files."""

import dataclasses
import os
from typing import Any

import jax.numpy as jnp

from jaxtune.interop.folder import open_folder
from jaxtune.interop.gguf_file import open_gguf
from jaxtune.interop.source import locate
from jaxtune.interop.tensors import Place, fill
from jaxtune.models import ModelSpec, build
from jaxtune.typing import InputError, Params


def load(
  source: str | os.PathLike[str],
  *,
  dtype: Any = None,
  remat: bool = False,
  place: Place | None = None,
) -> tuple[ModelSpec, Params]:
  """Reads a model: `model, params = load('folder')`.

  Families: BERT and Llama in a Hugging Face folder (`config.json` with `model.safetensors` or its
  shards), Llama in a GGUF file, and whatever of the first a Hub id names. A checkpoint of
  `...ForSequenceClassification` comes with its classifier. Tensors are read one at a time into
  stacked leaves; nothing is unpickled.

  Args:
    source: folder, `.gguf` file, or Hub id (needs `huggingface_hub` and a network or its cache).
    dtype: of all parameters. None keeps the file's: float16 and bfloat16 stay, and the model then
      computes in them; GGUF is dequantized to float32.
    remat: recompute activations in the backward pass (`config.remat`).
    place: `(path, numpy array) -> jax.Array` for each finished leaf, to shard it; by default it
      goes to the default device.

  Raises:
    InputError: one line that names the file, the tensor or field, and the remedy.
  """
  if dtype is not None and not _floating(dtype):
    raise InputError(f'dtype is {dtype!r}; it must be a floating type: float32, bfloat16, float16')
  path = locate(source)
  checkpoint = open_folder(path) if path.is_dir() else open_gguf(path)
  model = build(dataclasses.replace(checkpoint.model.config, remat=remat))
  params = fill(checkpoint.wanted, checkpoint.names, checkpoint.tensors, dtype, place)
  return model, params


def _floating(dtype: Any) -> bool:
  try:
    return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating))
  except TypeError:
    return False
