"""edge_client: the agent on a device. It takes tasks, has them trained on the device's own data, sends what was learnt.

Two processes: the agent (gRPC, no NumPy) lives for ever and owns the state folder; a trainer is started for a task
and ends with it, so a crash or an out-of-memory kill of the training is an event, not the end of the device.

===================  ==========================================================================================
``cli``              the commands ``run``, ``status``, ``outbox``
``settings``         what a user can set, and from where
``agent``            keeps the link to the coordinator
``worker``           one task from download to the coordinator's answer
``transport``        gRPC: the stream, resumable download, upload from disk
``state_dir``        what survives a power cut: identity, models, the pending update
``outbox``           the ledger of what left the device
``trainer_process``  starts, observes and ends a child
``trainer``          the child that trains: the only place with NumPy and the engine
``inspect``          the child that looks at the data once
===================  ==========================================================================================
"""

from __future__ import annotations

__all__: list[str] = []
