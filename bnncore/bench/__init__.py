"""How fast a training step is, beside another program's on the same machine at the same time.

``compare`` runs the sides, each in a process of its own, and gathers one result as JSON values; ``boards`` says what
the same step would take on Raspberry Pis. What counts as work is in ``counting``, the machine's limits in ``bounds``.
"""
