"""One thread, as for the models."""

from tests.models.conftest import one_thread  # noqa: F401
