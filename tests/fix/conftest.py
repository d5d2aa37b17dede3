"""Settings of this room's tests."""

from hypothesis import settings

# On a busy machine one example may take any time; the suite's own time-out is the limit.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
