"""What a compiled step needs, before it runs."""

from jaxtune.plan.attention import attention_kernels
from jaxtune.plan.collectives import Collective, collectives, total_bytes
from jaxtune.plan.forecast import Forecast, forecast

__all__ = [
  'Collective',
  'Forecast',
  'attention_kernels',
  'collectives',
  'forecast',
  'total_bytes',
]
