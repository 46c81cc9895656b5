"""Results of the verbs as tables and lines, and as JSON; a module per verb."""
