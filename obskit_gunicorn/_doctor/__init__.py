"""What is right with a set-up, what is wrong, and what to do: for the command line."""
