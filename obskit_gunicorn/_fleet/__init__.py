"""Many hosts: what each counts, brought together."""
