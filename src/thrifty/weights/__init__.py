"""Methods that change matrices: transform, allocate, target, solve, and the named points of their product.

`base.py` holds the verbs; every other file is one method.
"""
