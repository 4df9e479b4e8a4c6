"""Tests against real Gunicorn processes."""
