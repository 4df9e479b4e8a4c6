"""From metric files to text: collecting, merging, rendering, and serving it as an application."""
