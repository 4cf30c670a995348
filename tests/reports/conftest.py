"""Makes the shared example importable."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def example():
    spec = importlib.util.spec_from_file_location("report_example", Path(__file__).with_name("example.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
