"""edge_client: the agent on a device. It takes tasks, has them trained on the device's own data, sends what was learnt.

The agent (gRPC, no NumPy, no cryptography) lives for ever and owns the state folder; a trainer is started for a task,
serves those that come soon after, and ends, so a crash or an out-of-memory kill of the training is an event, not the
end of the device, and a device without work is small. A step of a secure sum has a short-lived child too.

===================  ==========================================================================================
``cli``              the commands ``run``, ``status``, ``outbox``, ``peers``, ``policy``
``settings``         what a user can set, and from where
``agent``            keeps the link to the coordinator
``worker``           one task from download to the coordinator's answer
``exchange``         a task's part in a secure sum: which step is due, and what becomes of it
``transport``        gRPC: the stream, resumable download, upload from disk
``state_dir``        what survives a power cut: identity, models, the pending update
``outbox``           the ledger of what left the device, each line bound to the one before it (``chain``)
``task_rules``       whether the owner lets a task be begun; ``privacy_account`` what is left of its budget
``trainer_process``  starts, observes and ends a child
``trainer``          the child that trains: with ``exchange_child`` the only place with NumPy and the engine
``exchange_child``   the child that makes a step of a secure sum: with ``enrolment`` the only place with cryptography
``inspect``          the child that looks at the data once
===================  ==========================================================================================
"""

from __future__ import annotations

__all__: list[str] = []
