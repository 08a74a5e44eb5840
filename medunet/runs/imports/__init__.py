"""Bundles from models of other toolkits: nnU-Net's results folders."""

from .bundle import ImportedBundle as ImportedBundle
from .bundle import import_nnunet as import_nnunet
