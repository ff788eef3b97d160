"""Where a run of an instance model differs from one of a semantic model (``semantic.py``): data, augmentation, score.

``tasks.of`` picks one of the two files; both have these functions.
"""

EVAL_KEYS = ()
EVAL_DEFAULTS = {}
