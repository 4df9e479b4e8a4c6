"""What is drawn on a terminal: ``top``, and the tables of ``inspect``."""
