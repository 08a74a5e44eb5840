"""The part that runs in MONAI Label's environment: its tasks, by medunet's engine."""
