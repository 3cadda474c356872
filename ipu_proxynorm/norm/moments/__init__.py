"""The Gaussian proxy's mean and variance: exactly or by quadrature, with their derivatives."""

from ipu_proxynorm.norm.moments.gaussian import METHODS, proxy_moments

__all__ = ["METHODS", "proxy_moments"]
