"""What fairseq registers: models, criterion, tasks, data sets, generation, conversion.

The top floor of the package, the only one that imports fairseq. Importing a module of it changes
nothing in fairseq: :func:`fairseq_fixedpoint.register` does.
"""
