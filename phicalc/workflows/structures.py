"""Another name of :mod:`phicalc.data.boxes`, for older scripts."""

from phicalc.data.boxes import salt_water, water_box

__all__ = ["salt_water", "water_box"]
