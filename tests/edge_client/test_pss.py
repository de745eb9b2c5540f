import os
import subprocess
import sys

from edge_client.pss import process_tree, pss_bytes, tree_pss_bytes
from tests.patience import LIMIT_S


def test_a_process_has_a_size_and_one_that_ended_has_none() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()

    assert pss_bytes(os.getpid()) > 1 << 20
    assert pss_bytes(child.pid) == 0


def test_a_tree_holds_children_and_their_children() -> None:
    sleeper = f"import subprocess, sys; subprocess.run(['{sys.executable}', '-c', 'input()'])"
    child = subprocess.Popen([sys.executable, "-c", sleeper], stdin=subprocess.PIPE)
    try:
        while len(process_tree(child.pid)) < 2:
            pass
        tree = process_tree(os.getpid())

        assert set(process_tree(child.pid)) < set(tree)
        assert tree_pss_bytes(os.getpid()) > pss_bytes(os.getpid())
    finally:
        child.communicate(b"\n")


def test_a_peak_is_remembered_after_the_memory_was_given_back() -> None:
    # In a process of its own: this one may have been larger before.
    program = """
import os
from edge_client.pss import begin_peak, peak_pss_bytes
before = peak_pss_bytes()
block = bytearray(os.urandom(1)) * (64 << 20)
del block
print(peak_pss_bytes() - before)
begin_peak()
print(peak_pss_bytes() - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )

    remembered, anew = (int(line) for line in result.stdout.split())
    assert remembered > 48 << 20
    assert anew < 16 << 20
