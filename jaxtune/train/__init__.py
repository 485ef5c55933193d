"""The train step, the loop around it, evaluation, and checkpoints."""

from jaxtune.train.checkpoint import Restored, best, open_checkpoints, restore, save
from jaxtune.train.evaluate import evaluate
from jaxtune.train.loop import fit
from jaxtune.train.program import Program, prepare
from jaxtune.train.state import State, init_state
from jaxtune.train.step import Arguments, Step, make_evaluation, make_step

__all__ = [
  'Arguments',
  'Program',
  'Restored',
  'State',
  'Step',
  'best',
  'evaluate',
  'fit',
  'init_state',
  'make_evaluation',
  'make_step',
  'open_checkpoints',
  'prepare',
  'restore',
  'save',
]
