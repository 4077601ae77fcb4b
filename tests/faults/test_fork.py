"""D12: a process with threads that has the store open forks, and both go on."""

from __future__ import annotations

import pytest

import pyctrd
from tests.children import Child
from tests.faults.works import SECOND, Shop, judge_whole

pytestmark = pytest.mark.root

FORK = """
import os, sys, threading, warnings
import pyctrd
warnings.simplefilter("ignore", DeprecationWarning)
reference, other = sys.argv[1:]
engine = pyctrd.Engine()
# Once each: a module that another thread loads in the moment of the fork is locked in the child for ever, by Python.
engine.images.pull(other)
engine.images.remove(other)
engine.images.list()
engine.check()
stop = threading.Event()
failures = []

def use():
    try:
        while not stop.is_set():
            engine.images.pull(other)
            engine.images.list()
            engine.check()
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=use) for _ in range(3)]
for thread in threads:
    thread.start()
told = set()
for number in range(12):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        said = []
        for call in (engine.images.list, engine.check, lambda: engine.images.pull(other), engine.close):
            try:
                call()
                said.append("done")
            except pyctrd.PyctrdError as error:
                said.append(type(error).__name__)
        os.write(writing, "|".join(said).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        told.add(file.read().decode())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
assert failures == [], failures
engine.images.pull(reference)
engine.close()
print(sorted(told), flush=True)
"""


def test_d12_a_forked_child_is_refused_and_its_parent_with_all_threads_goes_on(shop_of_pull: Shop) -> None:
    with Child(FORK, shop_of_pull.reference("second"), shop_of_pull.reference("first")) as child:
        assert child.hear() == "['ConflictError|ConflictError|ConflictError|done']"
        assert child.wait() == 0
    judge_whole(shop_of_pull, "second", SECOND, told=True)
    with pyctrd.Engine() as engine:
        assert engine.images.get(shop_of_pull.reference("kept")).read_file("/kept") == b"stays"
