"""A tiny classifier with LoRA, and data for it."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from jaxtune import adapt, data, losses, models, optim
from jaxtune.models import EncoderConfig, ModelSpec


@dataclasses.dataclass(frozen=True)
class Tiny:
  model: ModelSpec
  params: Any
  trainable: Any
  frozen: Any
  objective: losses.Objective
  examples: list[dict[str, np.ndarray]]

  def optimizer(self, rate: float = 1e-2, **options: Any):
    shape = optim.schedule('cosine', steps=20, warmup=2)
    return optim.create('adamw', rate, schedule=shape, clip_norm=1.0, **options)

  def batches(self, rows: int = 8):
    return data.batches(self.examples, rows, max_length=12, seed=3)


@pytest.fixture(scope='session')
def tiny() -> Tiny:
  config = EncoderConfig(
    vocabulary=60, width=16, hidden=32, layers=3, heads=2, positions=16, outputs=3, dropout=0.1
  )
  model = models.encoder(config)
  params = adapt.lora(jax.random.key(1), model.init(jax.random.key(0)), 2)
  trainable, frozen = adapt.trainable(params)
  rng = np.random.default_rng(0)
  examples = [
    {
      'tokens': rng.integers(1, 60, rng.integers(3, 13), dtype=np.int32),
      'label': np.int32(rng.integers(3)),
    }
    for _ in range(40)
  ]
  return Tiny(model, params, trainable, frozen, losses.classification(model), examples)
