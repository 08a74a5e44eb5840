"""The part that runs in MONAI Label's environment: its tasks, implemented with medunet."""
