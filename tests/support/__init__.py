"""What the live tests share: Gunicorn processes, applications for them, clients."""
