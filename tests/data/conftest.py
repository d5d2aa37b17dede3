"""Property tests have no deadline: several processes may share the cores."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
