"""Which base an adapter was made for."""

import hashlib
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from jaxtune import tree
from jaxtune.typing import InputError, Params

_SAMPLES = 4096


def fingerprint(params: Params, trained: Collection[str] = ()) -> dict[str, str]:
  """A digest of each plain frozen array outside the stacks, from a few thousand entries.

  Entries are rounded to bfloat16, in which a base may be held. These arrays (embeddings, the last
  norm) tell models and their tunings apart, and a method that starts from a changed base leaves
  them alone.
  """
  found = {}
  for path, leaf in tree.named_weights(params):
    if path in trained or not path.startswith(('embed/', 'norm/')):
      continue
    if not isinstance(leaf, jax.Array | np.ndarray):
      continue
    flat = jnp.ravel(leaf)
    some = np.asarray(flat[:: max(1, flat.size // _SAMPLES)].astype(jnp.bfloat16))
    digest = hashlib.sha256(str(leaf.shape).encode() + some.tobytes())
    found[path] = digest.hexdigest()[:16]
  return found


def check_base(params: Params, made_for: dict[str, str], file: str) -> None:
  """Refuses a base that is not the one an adapter was made for.

  Raises:
    InputError: an array differs.
  """
  here = fingerprint(params)
  for path, digest in made_for.items():
    if path in here and here[path] != digest:
      raise InputError(
        f"{file}: the adapter was made for a base whose {path!r} is another than this model's; "
        'take the base it was made for'
      )
