"""Inference: medunet against MONAI's and nnU-Net's sliding windows."""
