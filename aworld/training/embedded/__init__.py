"""The reference trainer of the embedded policy, in NumPy: forward and backward pass, objectives, Adam.

Needs the extra `embedded`.
"""
