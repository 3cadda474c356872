"""Plots and self-contained HTML. The modules that draw need the extra ``report`` (matplotlib)."""

from ipu_proxynorm.report.style import SERIES, THEME_CSS, Colour, NormStyle, norm_style

__all__ = ["SERIES", "THEME_CSS", "Colour", "NormStyle", "norm_style"]
