"""The user's verbs, a module each. No logic: make a recipe of the arguments, call one function, show its result."""
