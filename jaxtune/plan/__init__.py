"""What a compiled step needs, before it runs, and where to start."""

from jaxtune.plan.attention import attention_kernels
from jaxtune.plan.collectives import Collective, collectives, total_bytes
from jaxtune.plan.forecast import Forecast, forecast
from jaxtune.plan.rules import Advice, starting_point
from jaxtune.plan.strategy import Data, Model, advise, rank_for

__all__ = [
  'Advice',
  'Collective',
  'Data',
  'Forecast',
  'Model',
  'advise',
  'attention_kernels',
  'collectives',
  'forecast',
  'rank_for',
  'starting_point',
  'total_bytes',
]
