"""What Gunicorn is told, and what it tells us: settings, hooks, workers, requests."""
