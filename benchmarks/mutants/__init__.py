"""Mutation testing: plant known mistakes in the code, and see whether the tests fail."""
