"""``make matrix``: the built wheel with every release that it claims, in real servers.

``python -m tests.matrix --help`` says how it is told what to run. No test of pytest: it needs a
package index, and every Python that the package is for.
"""
