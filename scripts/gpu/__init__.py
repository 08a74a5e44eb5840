"""The blocks of scripts/gpu_first.py."""
