"""Fixtures of tests of benchmarks."""

from tests.benchmarks.condition_toys import bench as bench
from tests.benchmarks.condition_toys import few_faces as few_faces
