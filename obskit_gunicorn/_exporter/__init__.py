"""The process that serves ``/metrics``, so that no worker has to: its program, and its start."""
