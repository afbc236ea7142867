from hypothesis import settings

# A loaded machine must not fail a property; fifty examples keep the suite quick.
settings.register_profile("data", deadline=None, max_examples=50)
settings.load_profile("data")
