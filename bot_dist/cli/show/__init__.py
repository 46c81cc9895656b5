"""What the verbs show of their results: tables and lines, from plain data; and the same as JSON. A module per verb."""
