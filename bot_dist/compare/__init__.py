"""Comparisons of ways to start a model: their trainings, what each saves, and how they rank."""
