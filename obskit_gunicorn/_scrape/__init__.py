"""From metric files to text: collecting, merging, rendering, and applications that serve it."""
