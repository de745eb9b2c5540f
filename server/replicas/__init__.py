"""Several coordinators over one database and one object store: who is there, who leads, and what they tell each other.

Imported where the database is PostgreSQL alone: a coordinator over SQLite is by itself.
"""
