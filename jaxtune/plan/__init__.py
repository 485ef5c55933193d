"""What a run will need, from the compiler, before the first step."""

from jaxtune.plan.forecast import Forecast, forecast

__all__ = ['Forecast', 'forecast']
