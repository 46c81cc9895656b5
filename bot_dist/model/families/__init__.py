"""One file of declarations per family of models."""
