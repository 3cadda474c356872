"""Another norm for other people's networks: read, planned, and exchanged in place."""

from ipu_proxynorm.norm.convert.conversion import convert_norms
from ipu_proxynorm.norm.convert.report import ConversionReport, NormLine

__all__ = ["ConversionReport", "NormLine", "convert_norms"]
