"""
Compare backbones: the same detector, recipe, data and seeds, many runs, one table and one figure.

A :class:`~spt_d2.compare.plan.Plan` says what to run; :mod:`~spt_d2.compare.matrix` performs each of it in a process of
its own (:mod:`~spt_d2.compare.worker`), which leaves one results file; :mod:`~spt_d2.compare.report` reads only those.
"""
