"""Several coordinators over one PostgreSQL and one object store: what they bear, and what they do."""
