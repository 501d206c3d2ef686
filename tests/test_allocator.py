"""Freed memory is kept where a run asks for it, and left alone where a person has an opinion."""

import os
import platform
import subprocess
import sys

import pytest

from agents.training import allocator

PROBE = """
import resource, sys
from agents.training.allocator import keep_freed_memory
import numpy as np
told = sys.argv[1] == "keep" and keep_freed_memory()
for turn in range(21):
    block = np.ones(2**24)
    del block
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")


def probe(mode: str, **variables: str) -> tuple[str, int]:
    """Whether the allocator was told, and page faults of 20 blocks of 128 MB, one after the other."""
    clean = {name: value for name, value in os.environ.items() if name not in allocator.OWN} | variables
    out = subprocess.run([sys.executable, "-c", PROBE, mode], env=clean, capture_output=True, text=True, check=True)
    told, faults = out.stdout.split()
    return told, int(faults)


@glibc
def test_memory_that_is_kept_needs_no_faults_again():
    (told, kept), (_, default) = probe("keep"), probe("leave")
    assert told == "True" and default >= 20 and kept < default / 10


@glibc
def test_a_variable_of_glibcs_own_is_an_opinion():
    assert probe("keep", MALLOC_TOP_PAD_="0")[0] == "False"


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert not allocator.keep_freed_memory()
