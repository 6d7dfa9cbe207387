"""Planted mistakes: whether the tests notice them."""
