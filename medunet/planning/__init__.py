"""From data to configuration."""

from .adapt import adapt as adapt
from .adapt import fit_patch as fit_patch
