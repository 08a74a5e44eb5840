"""Past one process and one machine: training by torch.distributed."""

from .launch import train_processes as train_processes
