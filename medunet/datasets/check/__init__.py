"""Checks: whether a data set can be used."""
