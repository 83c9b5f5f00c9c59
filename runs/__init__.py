"""Recipes that can be executed: `cl-mofo run NAME`."""
