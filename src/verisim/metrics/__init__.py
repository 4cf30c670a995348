"""Is a set of generated images any good? Measures on image sets; no model is imported here.

Every measure works in float64, names its feature network and sample count, and comes with an interval.
"""
