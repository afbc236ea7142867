"""A trained adapter in the forms that other programs load, and on the hub."""
