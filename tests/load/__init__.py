"""Tests that shake what must stand still: damaged files, races, long runs."""
