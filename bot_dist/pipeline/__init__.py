"""The stages of a run, from a recipe to a report, composed and remembered."""
