"""What stands on disk: metric files, slots and leases, and this process's membership of them.

Needs the standard library only.
"""
