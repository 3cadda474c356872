"""A model called once, recorded, checked and made into a fixed program."""
