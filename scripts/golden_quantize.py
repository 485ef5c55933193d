"""Writes tests/adapt/golden/quantize.npz: matrices as bitsandbytes quantizes them.

python -m scripts.golden_quantize

Needs the extra `peers`. Arrays lie as ours do, `[in, out]`; bitsandbytes has the transposes.
"""

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parents[1] / 'tests' / 'adapt' / 'golden' / 'quantize.npz'
INPUTS, OUTPUTS = 128, 24


def matrix() -> np.ndarray:
  """Numbers at, just above and just below the midpoints of NF4, a block of zeros, and others."""
  import bitsandbytes

  book = bitsandbytes.functional.get_4bit_type('nf4', device='cpu').numpy()
  middle = (book[1:] + book[:-1]) / 2
  rng = np.random.default_rng(0)
  w = rng.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
  ties = [middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(-2))]
  w[:64, :8] = np.concatenate([[1], *ties, [0, -1], np.zeros(16)])[:64, None]
  w[:64, :8] *= np.float32(2) ** rng.integers(-9, 3, 8).astype(np.float32)  # so that ties stay
  w[64:, 3] = 0
  return w


def quantized(w: np.ndarray, double: bool) -> dict[str, np.ndarray]:
  """Of NF4 in blocks of 64: bytes, scales (or their codes), and what they decode to."""
  import torch
  from bitsandbytes import functional

  theirs = torch.tensor(np.ascontiguousarray(w.T))
  codes, state = functional.quantize_4bit(
    theirs, blocksize=64, quant_type='nf4', compress_statistics=double
  )
  found = {
    'codes': codes.numpy().reshape(w.shape[1], -1).T,
    'scales': state.absmax.numpy().reshape(w.shape[1], -1).T,
    'dense': functional.dequantize_4bit(codes, state).numpy().T,
  }
  if double:
    found |= {'scale_maxima': state.state2.absmax.numpy(), 'offset': state.offset.numpy()}
  return found


def int8(w: np.ndarray) -> dict[str, np.ndarray]:
  """One scale a column, as LLM.int8() has it."""
  import torch
  from bitsandbytes import functional

  codes, scales, _ = functional.int8_vectorwise_quant(torch.tensor(np.ascontiguousarray(w.T)))
  return {'codes': codes.numpy().T, 'scales': scales.numpy()[None]}


def main() -> None:
  w = matrix()
  arrays = {'w': w}
  for name, found in (
    ('nf4', quantized(w, False)),
    ('double', quantized(w, True)),
    ('int8', int8(w)),
  ):
    arrays |= {f'{name}_{field}': value for field, value in found.items()}
  FILE.parent.mkdir(exist_ok=True)
  np.savez_compressed(FILE, **{name: np.ascontiguousarray(x) for name, x in arrays.items()})


if __name__ == '__main__':
  main()
