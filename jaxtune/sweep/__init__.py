"""Many runs in one compiled step: lanes of runs above one frozen base."""

from jaxtune.sweep.halving import promotion, rungs, survivors
from jaxtune.sweep.lanes import Lanes, count, put, run, split, stack, take
from jaxtune.sweep.program import Program, make_step, prepare, shared_layers
from jaxtune.sweep.ranks import cut_ranks, fit_ranks, largest
from jaxtune.sweep.serve import serve

__all__ = [
  'Lanes',
  'Program',
  'count',
  'cut_ranks',
  'fit_ranks',
  'largest',
  'make_step',
  'prepare',
  'promotion',
  'put',
  'run',
  'rungs',
  'serve',
  'shared_layers',
  'split',
  'stack',
  'survivors',
  'take',
]
