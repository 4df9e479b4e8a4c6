"""Tests of obskit_gunicorn."""
