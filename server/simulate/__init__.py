"""A whole federation in one process: the real coordinator, the devices' own code, messages over memory.

The modules are imported by their names: a worker that only trains (``ray_worker``) does not load the coordinator.
"""
