"""Statistics in words and tables, and how tables are rendered."""
