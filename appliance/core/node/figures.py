"""The figures of a node over time, for those who may not know the database: see `store/figures`."""

from __future__ import annotations

from appliance.core.store.figures import SPANS, Figures, FigureSeries, summed

__all__ = ["SPANS", "FigureSeries", "Figures", "summed"]
