"""What all tests share."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)  # a busy machine is no bug
if settings.get_current_profile_name() == "default":
    settings.load_profile("patient")
