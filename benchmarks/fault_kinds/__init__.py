"""Kinds of faults that benchmarks/faults.py tries: kills, signals, damaged and hostile files, fuzzed inputs."""

from benchmarks.fault_kinds.accumulation import ACCUMULATION
from benchmarks.fault_kinds.cases import Kind
from benchmarks.fault_kinds.damage import FLIPS, TRUNCATIONS
from benchmarks.fault_kinds.fuzz import FUZZ
from benchmarks.fault_kinds.fuzz_api import FUZZ_API
from benchmarks.fault_kinds.hostile import HOSTILE
from benchmarks.fault_kinds.kills import KILLS
from benchmarks.fault_kinds.signals import SIGNALS

KINDS: dict[str, Kind] = {
    **{kind.name: kind for kind in (KILLS, SIGNALS, ACCUMULATION, TRUNCATIONS, FLIPS, HOSTILE)},
    **FUZZ,
    **FUZZ_API,
}
