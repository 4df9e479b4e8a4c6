"""What is stored on disk: metric files, slots and leases, and this process's membership.

Needs only the standard library.
"""
