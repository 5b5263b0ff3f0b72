"""All SQL, and the only folder that knows the database driver."""
