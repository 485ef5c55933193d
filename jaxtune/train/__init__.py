"""The train step, the loop around it, evaluation, and checkpoints."""

from jaxtune.train.checkpoint import Restored, best, open_checkpoints, restore, save
from jaxtune.train.evaluate import evaluate
from jaxtune.train.features import (
  FeatureBatches,
  cache_features,
  feature_batches,
  feature_eval_batches,
  head_only,
  trains_head_alone,
)
from jaxtune.train.loop import fit
from jaxtune.train.program import Program, prepare
from jaxtune.train.reference import reference_log_probs
from jaxtune.train.state import State, init_state
from jaxtune.train.step import Arguments, Step, make_evaluation, make_step
from jaxtune.train.teacher import teacher_outputs

__all__ = [
  'Arguments',
  'FeatureBatches',
  'Program',
  'Restored',
  'State',
  'Step',
  'best',
  'cache_features',
  'evaluate',
  'feature_batches',
  'feature_eval_batches',
  'fit',
  'head_only',
  'init_state',
  'make_evaluation',
  'make_step',
  'open_checkpoints',
  'prepare',
  'reference_log_probs',
  'restore',
  'save',
  'teacher_outputs',
  'trains_head_alone',
]
