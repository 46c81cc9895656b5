"""Everything that touches storage: local files, object stores, fsspec URLs, and what to do when they fail."""
