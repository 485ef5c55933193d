"""The train step, the loop around it, evaluation, and checkpoints."""

from jaxtune.train.checkpoint import (
  Checkpoints,
  Note,
  Restored,
  best,
  open_checkpoints,
  restore,
  save,
  wait,
)
from jaxtune.train.digest import digest
from jaxtune.train.evaluate import evaluate, totalled
from jaxtune.train.features import (
  FeatureBatches,
  cache_features,
  feature_batches,
  feature_eval_batches,
  head_only,
  trains_head_alone,
)
from jaxtune.train.loop import fit
from jaxtune.train.program import Lowered, Program, lower, prepare
from jaxtune.train.reference import reference_log_probs
from jaxtune.train.rewards import Reward, exact_match, log_odds, matches, near_length
from jaxtune.train.rollout import Roll, evaluate_rollouts, rollout, rollout_example
from jaxtune.train.state import State, init_state
from jaxtune.train.step import Arguments, Step, make_evaluation, make_step
from jaxtune.train.teacher import teacher_outputs

__all__ = [
  'Arguments',
  'Checkpoints',
  'FeatureBatches',
  'Lowered',
  'Note',
  'Program',
  'Restored',
  'Reward',
  'Roll',
  'State',
  'Step',
  'best',
  'cache_features',
  'digest',
  'evaluate',
  'evaluate_rollouts',
  'exact_match',
  'feature_batches',
  'feature_eval_batches',
  'fit',
  'head_only',
  'init_state',
  'log_odds',
  'lower',
  'make_evaluation',
  'make_step',
  'matches',
  'near_length',
  'open_checkpoints',
  'prepare',
  'reference_log_probs',
  'restore',
  'rollout',
  'rollout_example',
  'save',
  'teacher_outputs',
  'totalled',
  'trains_head_alone',
  'wait',
]
