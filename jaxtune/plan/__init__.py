"""What a compiled step needs, before it runs, and where to start."""

from jaxtune.plan.advise import Advice, starting_point
from jaxtune.plan.attention import attention_kernels
from jaxtune.plan.collectives import Collective, collectives, total_bytes
from jaxtune.plan.forecast import Forecast, forecast

__all__ = [
  'Advice',
  'Collective',
  'Forecast',
  'attention_kernels',
  'collectives',
  'forecast',
  'starting_point',
  'total_bytes',
]
