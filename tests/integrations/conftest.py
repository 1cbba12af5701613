"""What all tests have: with the settings of pytest.ini beside it, pytest does not look further up."""

from tests.conftest import pytest_configure, pytest_fixture_setup, seeded

__all__ = ["pytest_configure", "pytest_fixture_setup", "seeded"]
