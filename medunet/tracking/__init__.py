"""Experiment tracking."""

from .mlflow import TrackingHandler as TrackingHandler
