"""What is right with a set-up, what will bite, and what to do: for the command line.

One module for each thing that is looked at. What is judged at the start of a server too is judged
by the same function, which is where the server's line comes from.
"""
