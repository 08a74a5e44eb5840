"""Runs: train, cross-validate, evaluate, report and join bundles; training without tracking does not import MLflow."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
