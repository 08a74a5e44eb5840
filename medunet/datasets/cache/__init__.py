"""The cache of preprocessed cases."""
